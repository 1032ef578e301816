"""Probes of models on images: which images they learn from, and what the records say."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from colours import CLASSES, ColourModel, colour_model
from PIL import Image

from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.evaluation.config import EvaluationConfig
from attar.evaluation.cost import cost, measure_cost
from attar.evaluation.evidence import Evidence, NotMeasurable, evaluation_data
from attar.evaluation.linear_probe_config import LinearProbeConfig
from attar.evaluation.models import from_student
from attar.evaluation.probing import ProbeData, possible_shots, probe_model
from attar.evaluation.zero_shot import TASK as ZERO_SHOT
from attar.evaluation.zero_shot import zero_shot
from attar.files import sha256_file
from attar.records import Record
from attar.students.config import StudentConfig
from attar.students.student import build_student

QUICK = EvaluationConfig(workers=0)
SMALL = LinearProbeConfig(shots=(2, 4), seeds=(0, 1), search_epochs=1, epochs=2)


def coloured(root, each: int, seed: int) -> ImageTable:
    """Write `each` images of every class in two domains: its colour, with much noise."""
    random = np.random.default_rng(seed)
    paths, labels, domains = [], [], []
    for label in range(3):
        for number in range(each):
            colour = np.full(3, 90.0)
            colour[label] += 60
            path = root / f"{seed}-{label}-{number}.png"
            root.mkdir(parents=True, exist_ok=True)
            pixel = tuple(int(c) for c in np.clip(colour + random.normal(0, 45, 3), 0, 255))
            Image.new("RGB", (9, 8), pixel).save(path)
            paths.append(path)
            labels.append(label)
            domains.append(number % 2)
    return ImageTable(
        paths=tuple(map(str, paths)),
        names=tuple(path.name for path in paths),
        keys=tuple(map(sha256_file, paths)),
        labels=tuple(labels),
        domains=tuple(domains),
        captions=(None,) * len(paths),
        splits=(None,) * len(paths),
        class_names=CLASSES,
        domain_names=("photo", "sketch"),
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> ProbeData:
    folder = tmp_path_factory.mktemp("images")
    train, test = coloured(folder, 12, seed=1), coloured(folder, 10, seed=2)
    return ProbeData(
        train=train,
        val=train.select([]),
        tests={"test_id": evaluation_data(test, "test_id", None, "colours")},
    )


@pytest.fixture(scope="module")
def measured(data, tmp_path_factory) -> list[Record]:
    return probe_model(colour_model(), data, tmp_path_factory.mktemp("out"), SMALL, QUICK)


def all_domains(records):
    return {record.task: record for record in records if record.domain == "all"}


def test_every_setting_has_a_record_for_all_and_for_each_domain(measured) -> None:
    tasks = ["linear_probe_2_shot", "linear_probe_4_shot", "linear_probe"]
    assert [(r.task, r.domain) for r in measured] == [
        (task, domain) for task in tasks for domain in ("all", "photo", "sketch")
    ]
    found = all_domains(measured)
    assert [found[task].extra["num_train"] for task in tasks] == [6, 12, 36]
    assert [found[task].extra["seeds"] for task in tasks] == [[0, 1], [0, 1], [0]]
    assert found["linear_probe"].metrics["acc1"] > 0.6
    assert found["linear_probe"].num_images == 30
    assert "acc1_std" not in found["linear_probe"].metrics


def test_records_hold_mean_and_deviation_over_the_seeds(data, measured, tmp_path) -> None:
    few = all_domains(measured)["linear_probe_2_shot"]
    single = []
    for seed in (0, 1):
        alone = replace(SMALL, seeds=(seed,), shots=(2,), full=False)
        found = all_domains(probe_model(colour_model(), data, tmp_path, alone, QUICK))
        single.append(found["linear_probe_2_shot"].metrics["acc1"])
    assert len(set(single)) > 1, "other shots, other probes"
    assert few.extra["acc1_of_seeds"] == single
    assert few.metrics["acc1"] == pytest.approx(np.mean(single))
    assert few.metrics["acc1_std"] == pytest.approx(np.std(single, ddof=1))


def test_labels_of_test_images_change_the_score_and_nothing_else(data, measured, tmp_path) -> None:
    one = all_domains(measured)
    test = data.tests["test_id"]
    labels = tuple((label + 1) % 3 for label in test.table.labels)
    turned = replace(test, table=replace(test.table, labels=labels))
    other = replace(data, tests={"test_id": turned})
    two = all_domains(probe_model(colour_model(), other, tmp_path, SMALL, QUICK))
    for task, record in one.items():
        for chosen in ("weight_decay", "lr", "val_acc1", "num_train"):
            assert record.extra[chosen] == two[task].extra[chosen]
        assert record.metrics["acc1"] != two[task].metrics["acc1"]


def test_given_validation_images_choose_and_are_learnt_from_at_the_end(data, tmp_path) -> None:
    val = coloured(tmp_path / "images", 4, seed=3)
    config = replace(SMALL, shots=())
    (record,) = all_domains(
        probe_model(colour_model(), replace(data, val=val), tmp_path, config, QUICK)
    ).values()
    assert record.extra["num_train"] == 36 + 12
    shares = [count / 12 for count in range(13)]
    assert any(abs(record.extra["val_acc1"][0] - share) < 1e-9 for share in shares)


def test_text_is_the_start_that_zero_shot_gives(data, tmp_path) -> None:
    features = np.eye(3, dtype=np.float32)
    model = colour_model(class_features=features)
    config = replace(SMALL, shots=(), start="text", epochs=1)
    record = all_domains(probe_model(model, data, tmp_path, config, QUICK))["linear_probe"]
    assert record.extra["start"] == "text"
    assert record.extra["solver"] == "minibatch"
    assert record.metrics["acc1"] > 0.6
    with pytest.raises(NotMeasurable, match="cannot start from text"):
        probe_model(colour_model(), data, tmp_path, config, QUICK)


def test_shots_that_a_class_cannot_give_are_left_out_and_said(data, caplog) -> None:
    assert possible_shots(data, replace(SMALL, shots=(20, 4))) == [4, None]
    assert "20 shots are left out: red has 12 training images" in caplog.text
    with pytest.raises(UsageError, match="fewer shots"):
        possible_shots(data, replace(SMALL, shots=(20,), full=False))


def test_a_students_trunk_is_probed_on_request_and_a_plain_classifiers_always(
    data, tmp_path
) -> None:
    config = StudentConfig(weights="none", image_size=32)
    student = from_student(build_student("mobilenetv3_small_050", 8, config))
    plain = from_student(build_student("mobilenetv3_small_050", 3, config, class_names=CLASSES))
    one = replace(SMALL, shots=())
    for model, asked, kind in (
        (student, "projected", "projected"),
        (student, "trunk", "trunk"),
        (plain, "projected", "trunk"),
    ):
        records = probe_model(model, data, tmp_path, replace(one, features=asked), QUICK)
        assert records[0].extra["features"] == kind
    with pytest.raises(NotMeasurable, match="no trunk features"):
        probe_model(colour_model(), data, tmp_path, replace(one, features="trunk"), QUICK)


def test_the_zero_shot_record_beside_it_is_of_the_same_images(data) -> None:
    model = colour_model(class_features=np.eye(3, dtype=np.float32))
    test = data.tests["test_id"]
    evidence = Evidence(model=model, features=np.zeros((30, 3)), logits=np.zeros((30, 3)))
    records = zero_shot(evidence, None, test)
    assert {r.task for r in records} == {ZERO_SHOT}
    assert records[0].num_images == 30


def test_the_cost_is_that_of_the_network(data) -> None:
    config = StudentConfig(weights="none", image_size=32)
    student = build_student("mobilenetv3_small_050", 8, config)
    model = from_student(student)
    evidence = Evidence(model=model, features=np.zeros((1, 8)), logits=None)
    (record,) = cost(evidence, None, data.tests["test_id"])
    numbers = sum(p.numel() for p in student.network.parameters())
    assert record.task == "cost"
    assert record.metrics["num_parameters"] == numbers
    statistics = sum(b.numel() * b.element_size() for b in student.network.buffers())
    assert record.metrics["megabytes"] == pytest.approx((4 * numbers + statistics) / 1e6)
    assert record.metrics["latency_ms"] > 0
    assert record.extra["runtime"] == "torch"
    assert record.extra["threads"] == 1
    assert record.extra["image_size"] == 32


def test_timing_gives_the_threads_back() -> None:
    before = torch.get_num_threads()
    model = colour_model(network=ColourModel())
    assert measure_cost(replace(model, network=torch.nn.Linear(2, 2))) is not None
    assert torch.get_num_threads() == before


def test_what_does_not_run_here_costs_nothing_known(data) -> None:
    assert measure_cost(colour_model()) is None
    evidence = Evidence(model=colour_model(), features=np.zeros((1, 3)), logits=None)
    assert cost(evidence, None, data.tests["test_id"]) == []

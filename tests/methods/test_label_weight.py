from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from attar.config import to_plain
from attar.errors import AttarError, UsageError
from attar.losses import embedding_alignment
from attar.methods.label_weight import (
    PRIOR_IMAGES,
    STREAM,
    image_weights,
    reliability,
    weighted_alignment,
)
from attar.methods.registry import find_method, method_options
from attar.methods.vl2v_adip import EmbeddingAlignment
from attar.run import DataConfig, RunConfig, differences, plain_options
from attar.types import Batch, Outputs

RELIABILITY = torch.tensor([[1.0, 0.5, 0.0], [0.2, 0.4, 0.6], [0.1, 0.3, 0.7]])


def unit_rows(*shape):
    return F.normalize(
        torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))), dim=-1
    )


def batch_of(labels, domains):
    return Batch(
        images=torch.zeros(len(labels), 3, 2, 2),
        keys=tuple(map(str, range(len(labels)))),
        image_features=unit_rows(len(labels), 8),
        labels=torch.tensor(labels),
        domains=torch.tensor(domains),
        streams={STREAM: RELIABILITY},
    )


BATCH = batch_of([0, 1, 2, 2, -1], [0, 0, 1, -1, 1])
CLASSES, STUDENT = unit_rows(3, 8), unit_rows(5, 8)


def loss_of(objective, batch=BATCH):
    return objective(Outputs(features=STUDENT), batch, CLASSES).total


def test_reliability_leans_on_the_domain_and_the_domain_on_all():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(-1, 3, (200,), generator=generator)
    domains = torch.randint(-1, 2, (200,), generator=generator)
    right = torch.rand(200, generator=generator) < 0.6
    found = reliability(right, domains, labels, 3, 4)
    assert found.shape == (4, 4)
    known = [i for i in range(200) if labels[i] >= 0]
    overall = (sum(bool(right[i]) for i in known) + 1) / (len(known) + 2)
    for row, domain in enumerate([0, 1, 2, -1]):
        here = [i for i in known if domains[i] == domain]
        hits = sum(bool(right[i]) for i in here)
        of_domain = (hits + PRIOR_IMAGES * overall) / (len(here) + PRIOR_IMAGES)
        for label in range(4):
            cell = [bool(right[i]) for i in here if labels[i] == label]
            wanted = (sum(cell) + PRIOR_IMAGES * of_domain) / (len(cell) + PRIOR_IMAGES)
            assert found[row, label].item() == pytest.approx(wanted, abs=1e-6)


def test_one_wrong_image_of_a_class_does_not_condemn_it():
    right = torch.tensor([True] * 99 + [False])
    labels = torch.tensor([0] * 99 + [1])
    found = reliability(right, torch.zeros(100, dtype=torch.int64), labels, 1, 3)
    assert found[0, 0] > 0.98
    assert 0.85 < found[0, 1] < 0.95
    assert found[0, 2] > 0.95


def test_weights_of_each_image():
    auto = image_weights(BATCH, "auto", 0.5)
    # w r of (domain 0, class 0), (0, 1), (1, 2), (none, 2); w itself without a label.
    assert auto.tolist() == pytest.approx([0.5, 0.25, 0.3, 0.35, 0.5])
    assert image_weights(BATCH, 0.7, 0.5).tolist() == pytest.approx([0.3] * 4 + [0.5])


def test_auto_without_the_stream_is_refused():
    with pytest.raises(AttarError, match="reliability"):
        image_weights(replace(BATCH, streams={}), "auto", 0.5)


def test_one_weight_for_all_is_the_plain_loss():
    texts = CLASSES[torch.tensor([0, 1, 2, 2, 0])]
    found = weighted_alignment(STUDENT, BATCH.image_features, texts, torch.full((5,), 0.3))
    wanted = embedding_alignment(STUDENT, BATCH.image_features, texts, 0.3)
    torch.testing.assert_close(found, wanted)


def test_the_weighted_loss_image_by_image():
    texts, weights = unit_rows(4, 8), torch.tensor([0.0, 0.2, 0.9, 1.0])
    images, student = unit_rows(2, 2, 8)[0], 3 * unit_rows(1, 4, 8)[0]
    images = torch.cat([images, -images])
    found = weighted_alignment(student, images, texts, weights)
    parts = [
        weights[i] * F.cosine_similarity(student[i], images[i], dim=0)
        + (1 - weights[i]) * F.cosine_similarity(student[i], texts[i], dim=0)
        for i in range(4)
    ]
    torch.testing.assert_close(found, -torch.stack(parts).mean())


def test_by_default_nothing_changes_to_the_last_bit():
    batch = batch_of([0, 1, 2, 2, 1], [0, 0, 1, -1, 1])
    texts = CLASSES[batch.labels]
    wanted = embedding_alignment(STUDENT, batch.image_features, texts, 0.4)
    assert loss_of(EmbeddingAlignment(0.4), batch).item() == wanted.item()


def test_labels_alone_and_the_teacher_alone():
    batch = batch_of([0, 1, 2, 2, 1], [0, 0, 1, -1, 1])
    labels_only = loss_of(EmbeddingAlignment(0.4, label_weight=1.0), batch)
    teacher_only = loss_of(EmbeddingAlignment(0.4, label_weight=0.0), batch)
    to_texts = F.cosine_similarity(STUDENT, CLASSES[batch.labels]).mean()
    to_images = F.cosine_similarity(STUDENT, batch.image_features).mean()
    torch.testing.assert_close(labels_only, -to_texts)
    torch.testing.assert_close(teacher_only, -to_images)


def test_auto_is_between_the_two_and_reaches_both_phases():
    method = find_method("vl2v-adip")
    options = method_options(method, {"label-weight": "auto"})
    assert options.label_weight == "auto"
    from attar.methods.base import Sizes

    sizes = Sizes(dim=8, trunk_width=8, num_classes=3, num_domains=2, teacher_dim=8)
    phases = method.phases(options, 8, sizes)
    assert len(phases) == 2
    batch = batch_of([0, 1, 2, 2, 1], [0, 0, 1, -1, 1])
    weights = 0.5 * torch.stack([RELIABILITY[d, c] for d, c in zip(
        batch.domains, batch.labels, strict=True)])  # fmt: skip
    wanted = weighted_alignment(STUDENT, batch.image_features, CLASSES[batch.labels], weights)
    for phase in phases:
        torch.testing.assert_close(loss_of(phase.objective, batch), wanted)


def test_values_of_the_option():
    method = find_method("vl2v-adip")
    assert method_options(method, {}).label_weight is None
    assert method_options(method, {"label-weight": "0.25"}).label_weight == 0.25
    assert method_options(method, {"label-weight": 1}).label_weight == 1.0
    with pytest.raises(UsageError, match=r"--method\.label-weight 1\.5"):
        method_options(method, {"label-weight": "1.5"})
    with pytest.raises(UsageError, match="sometimes"):
        method_options(method, {"label-weight": "sometimes"})


def test_a_cell_from_before_the_option_is_the_same_run():
    def config(**options):
        chosen = to_plain(method_options(find_method("vl2v-adip"), options))
        return RunConfig(
            data=DataConfig(data=()), teacher="pocket", student="s", method_options=chosen
        )

    before = plain_options(config())
    assert before["method"].pop("label_weight") is None
    assert differences(before, plain_options(config())) == []
    changed = differences(before, plain_options(config(label_weight="auto")))
    assert changed == ["method.label_weight None there, auto asked"]

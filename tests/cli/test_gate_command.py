"""`attar gate` on real images with real teachers."""

import numpy as np
import pytest
import torch
from tests.cli.commands import save_image

from attar.data.emoji import extract_emoji
from attar.records import read_records
from attar.store.store import Store
from attar.teachers import pocket

QUICK = ("--embed.workers", 0)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("gate")


def teacher_lines(folder):
    records = read_records(folder / "results.jsonl")
    return {r.domain: r for r in records if r.role == "teacher" and r.task == "teacher_gate"}


def test_the_gate_judges_each_domain_and_all(give, world, out):
    done = give("gate", "--data", world.domains, "--teacher", world.teacher, "--out", out, *QUICK)
    assert done.status == 0, done.err
    found = teacher_lines(out)
    assert list(found) == ["art", "photo", "sketch", "all"]
    assert [record.num_images for record in found.values()] == [12, 12, 12, 36]
    for domain, record in found.items():
        assert f"{domain}: {record.extra['verdict']}. " in done.out
    assert found["all"].extra["summary"] in (out / "gate.html").read_text()
    # Twelve pictures of nothing cannot show that a teacher of random weights is good.
    assert all(record.extra["verdict"] != "go" for record in found.values())


def test_the_accuracy_is_that_of_the_stored_answers(world, out):
    store = Store.open(out / "store")
    texts = store.text_features(["a photo of a cat", "a photo of a dog"]).astype(np.float32)
    records = teacher_lines(out)
    right = {}
    for stored in store.iterate_images(100):
        answers = (stored.features.astype(np.float32) @ texts.T).argmax(axis=1)
        for name, answer in zip(stored.names, answers, strict=True):
            domain, label, _ = name.split("/")
            right.setdefault(domain, []).append(("cat", "dog")[answer] == label)
    assert {domain: np.mean(hits) for domain, hits in right.items()} == pytest.approx(
        {domain: records[domain].metrics["acc1"] for domain in right}
    )


def test_the_teacher_is_asked_once(give, world, out, tmp_path):
    again = give(
        "gate", "--data", world.domains, "--store", out / "store", "--out", tmp_path, *QUICK
    )
    assert again.status == 0, again.err
    assert (tmp_path / "results.jsonl").read_bytes() == (out / "results.jsonl").read_bytes()


def test_only_the_judged_domain_and_some_labels_are_asked_about(give, world, tmp_path):
    words = ("--data", world.domains, "--teacher", world.teacher, "--domains", "sketch")
    words += ("--labels-per-class", 1, "--draws", 2, *QUICK, "--out", tmp_path)
    done = give("gate", *words, "--dry-run")
    assert done.status == 0, done.err
    assert not any(tmp_path.iterdir())
    done = give("gate", *words)
    assert done.status == 0, done.err
    assert list(teacher_lines(tmp_path)) == ["sketch"]
    asked = [n for part in Store.open(tmp_path / "store").iterate_images(99) for n in part.names]
    assert sum(name.startswith("sketch/") for name in asked) == 12
    # Of the two other domains and classes at most one label in each of two draws.
    assert 4 <= len(asked) - 12 <= 8


def test_a_students_backbone_is_probed_too(give, world, out, tmp_path):
    words = ("--data", world.domains, "--store", out / "store", "--out", tmp_path, *QUICK)
    words += ("--student", "mobilenetv3_small_050", "--student.image-size", 32)
    done = give("gate", *words, "--student.weights", "none")
    assert done.status == 0, done.err
    probes = [r for r in read_records(tmp_path / "results.jsonl") if r.role == "probe"]
    of_student = [r for r in probes if r.extra["features"] == "student"]
    assert len(probes) == 2 * len(of_student) == 16
    assert {r.model for r in of_student} == {"timm/mobilenetv3_small_050"}
    assert "probe on student features" in (tmp_path / "gate.html").read_text()


def test_copies_of_an_image_count_once(give, world, tmp_path):
    for number in range(6):
        save_image(tmp_path / "data" / "cat" / f"{number}.png", number)
        save_image(tmp_path / "data" / "dog" / f"{number}.png", 100 + number)
    for label in ("cat", "dog"):
        folder = tmp_path / "data" / label
        (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    words = ("--data", tmp_path / "data", "--teacher", world.teacher, *QUICK)
    done = give("gate", *words, "--out", tmp_path / "out")
    assert done.status == 0, done.err
    found = teacher_lines(tmp_path / "out")
    assert {domain: record.num_images for domain, record in found.items()} == {"all": 12}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--domains", "sketsch"), "did you mean 'sketch'"),
        (("--labels-per-class", "0"), "--labels-per-class 0"),
        (("--student", "no-such-net"), "no-such-net"),
        (("--unlabelled",), "needs labelled images"),
    ],
)
def test_wrong_use_is_refused_before_the_teacher_is_asked(give, world, tmp_path, words, said):
    place = ("--data", world.domains, "--teacher", world.teacher, "--out", tmp_path)
    done = give("gate", *place, *words)
    assert done.status == 2
    assert said in done.err
    assert not (tmp_path / "store").exists()


def test_unlabelled_images_and_missing_folders_are_refused(give, world, tmp_path):
    ends = ("--teacher", world.teacher, "--out", tmp_path / "out")
    flat = give("gate", "--data", world.flat, "--classes", world.classes, *ends)
    assert flat.status == 2
    assert "needs labelled images" in flat.err
    gone = give("gate", "--data", tmp_path / "gone", *ends)
    assert gone.status == 2
    assert "does not exist" in gone.err
    one = give("gate", "--data", world.root / "one-class", "--labels-of", "others", *ends)
    assert one.status == 2
    assert "two or more domains" in one.err


def test_the_pocket_teacher_on_emoji(give, tmp_path):
    for package in pocket.PACKAGES:
        pytest.importorskip(package, reason="the pocket teacher needs pip install 'attar[demo]'")
    data = extract_emoji(tmp_path / "emoji", ("fluent", "noto", "twemoji"), 8, seed=7)
    out = tmp_path / "out"
    done = give("gate", "--data", data, "--teacher", "pocket", "--out", out, *QUICK)
    assert done.status == 0, done.err
    found = teacher_lines(out)
    assert [record.num_images for record in found.values()] == [8, 8, 8, 24]
    # One picture of each class and domain: nothing can be learnt from a domain's own labels.
    probes = [r for r in read_records(out / "results.jsonl") if r.role == "probe"]
    assert {r.extra["labels_of"] for r in probes} == {"others"}
    # It knows the families that its head saw; eight pictures are no proof of it.
    assert found["fluent"].metrics["acc1"] >= 0.75
    assert found["fluent"].metrics["acc1_low"] < found["fluent"].metrics["acc1"]
    assert "unsure" in found["fluent"].extra["grounds"]
    assert torch.get_num_threads() == 1

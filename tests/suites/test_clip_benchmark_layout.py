import io
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, recall_score
from small_suites import (
    by_domain,
    measure,
    pictures,
    request,
    teacher_cosines,
    write_layout,
    write_tar,
)

from attar.cli.main import main
from attar.errors import AttarError, UsageError
from attar.suites.clip_benchmark import read_samples, read_set
from attar.suites.labelled import LabelledSet, Missing

NAMES = ("boat", "tree", "lamp")
LABELS = (0, 1, 2, 0, 1, 1, 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    templates = ("a picture of a {c}.", "{c}!")
    images = pictures(len(LABELS), seed=70)
    return write_layout(
        tmp_path / "things", NAMES, LABELS, images=images, templates=templates, shards=2
    )


def test_the_numbers_are_scikit_learns_on_the_teachers_answers(
    root: Path, run: Path, folder: Path, tmp_path: Path
) -> None:
    records = measure(run, tmp_path / "out", "clip-benchmark", folder)
    found = by_domain(records, "teacher")["things"]
    prompts = [[f"a picture of a {name}.", f"{name}!"] for name in NAMES]
    cosines = teacher_cosines(root, run, pictures(len(LABELS), seed=70), prompts)
    answers = cosines.argmax(axis=1)
    assert found.metrics["acc1"] == pytest.approx(accuracy_score(LABELS, answers))
    recall = recall_score(LABELS, answers, average="macro")
    assert found.metrics["mean_per_class_recall"] == pytest.approx(recall)
    assert found.metrics["score"] == found.metrics["acc1"]
    assert (found.dataset, found.split, found.num_images) == ("clip-benchmark", "test", 7)
    assert {record.role for record in records} == {"student", "teacher"}


def test_all_sets_in_a_folder_are_measured_and_their_mean_says_over_which(
    run: Path, folder: Path, tmp_path: Path
) -> None:
    write_layout(folder.parent / "more", NAMES, (0, 2), images=pictures(2, seed=90))
    (folder.parent / "other").mkdir()
    found = by_domain(measure(run, tmp_path / "out", "clip-benchmark", folder.parent), "student")
    assert set(found) == {"more", "things", "all"}
    scores = [found[name].metrics["score"] for name in ("more", "things")]
    assert found["all"].metrics["score"] == pytest.approx(np.mean(scores))
    assert found["all"].extra["mean_over"] == ["more", "things"]


def test_a_second_run_computes_no_feature_again(run: Path, folder: Path, tmp_path: Path) -> None:
    measure(run, tmp_path / "out", "clip-benchmark", folder)
    files = sorted((tmp_path / "out" / "features").iterdir())
    before = [file.stat().st_mtime_ns for file in files]
    measure(run, tmp_path / "out", "clip-benchmark", folder)
    assert [file.stat().st_mtime_ns for file in files] == before


def test_the_command_prints_the_suite(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", run, "--suite=clip-benchmark", "--suite-data", folder, "--workers=0"]
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in [*words, "--out", tmp_path / "out"]])
    printed = capsys.readouterr()
    assert stopped.value.code == 0, printed.err
    assert "things" in printed.out
    assert "score by each data set's own metric in %" in printed.out


def _cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


BREAK = {
    "cannot be read: it ends early (unexpected end": lambda test: _cut(test / "1.tar", 900),
    "it ends early, at byte": lambda test: _cut(
        test / "1.tar", read_samples(test / "1.tar")[1].start - 512
    ),
    "more behind its end mark": lambda test: (test / "1.tar").write_bytes(
        (test / "0.tar").read_bytes() + (test / "1.tar").read_bytes()
    ),
    "lacks 1 of 2 tars, first 1.tar": lambda test: (test / "1.tar").unlink(),
    "nshards.txt cannot be read": lambda test: (test / "nshards.txt").unlink(),
    "not the number of tars": lambda test: (test / "nshards.txt").write_text("two"),
    "zeroshot_classification_templates.txt": lambda test: (
        test.parent / "zeroshot_classification_templates.txt"
    ).unlink(),
    "have no .cls beside them, first a.png": lambda test: write_tar(
        test / "1.tar", {"a.png": b"1"}
    ),
    "class 3 of 3": lambda test: write_tar(test / "1.tar", {"a.png": b"1", "a.cls": b"3"}),
    "invalid literal": lambda test: write_tar(test / "1.tar", {"a.png": b"1", "a.cls": b"dog"}),
}


@pytest.mark.parametrize("reason", BREAK)
def test_what_is_not_whole_is_named(folder: Path, tmp_path: Path, reason: str) -> None:
    asked = request(tmp_path / "run", tmp_path / "out", "clip-benchmark", folder)
    assert isinstance(read_set(asked, "things", folder, "acc1"), LabelledSet)
    BREAK[reason](folder / "test")
    found = read_set(asked, "things", folder, "acc1")
    assert isinstance(found, Missing)
    assert reason in found.reason
    assert "\n" not in found.reason


def test_a_broken_tar_is_not_measured_in_part(run: Path, folder: Path, tmp_path: Path) -> None:
    _cut(folder / "test" / "1.tar", 900)
    with pytest.raises(UsageError, match=r"things: .*1\.tar cannot be read: it ends early"):
        measure(run, tmp_path / "out", "clip-benchmark", folder, suite_partial=True)


def test_an_image_that_cannot_be_read_makes_a_set_partial(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_layout(tmp_path / "things", NAMES, (0, 2), images=pictures(2, seed=90))
    good = next(iter(read_samples(folder / "test" / "0.tar")))
    data = (folder / "test" / "0.tar").read_bytes()[good.start : good.end]
    files = {"0.png": data, "0.cls": b"0", "1.png": data[: len(data) // 2], "1.cls": b"2"}
    write_tar(folder / "test" / "0.tar", files)
    with pytest.raises(UsageError, match="1 of 2 images cannot be read"):
        measure(run, tmp_path / "out", "clip-benchmark", folder)
    records = measure(run, tmp_path / "out", "clip-benchmark", folder, suite_partial=True)
    found = by_domain(records, "student")
    assert found["things"].num_images == 1
    assert "1 of 2 images cannot be read" in found["things"].extra["partial"]
    assert found["all"].extra["partial"] == ["things"]
    assert "of things only a part is measured" in caplog.text


def test_members_may_lie_in_folders_and_several_labels_are_a_row(tmp_path: Path) -> None:
    file = io.BytesIO()
    np.save(file, np.array([1, 0, 1]))
    files = {"./a/1.PNG": b"xy", "./a/1.cls": b"2", "./a/1.npy": file.getvalue(), "note": b""}
    write_tar(tmp_path / "0.tar", files)
    (one,) = read_samples(tmp_path / "0.tar")
    assert (one.image, one.end - one.start, one.labels(3)) == ("a/1.PNG", 2, (2,))
    (one,) = read_samples(tmp_path / "0.tar", several=True)
    assert one.labels(3) == (0, 2)
    with pytest.raises(AttarError, match=r"\[3\] numbers for 4 classes"):
        one.labels(4)


def test_a_compressed_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"\x1f\x8b" + b"0" * 1000)
    with pytest.raises(AttarError, match=r"0\.tar cannot be read"):
        read_samples(tmp_path / "0.tar")


@pytest.mark.parametrize(
    ("suite", "reason"),
    [("nothing", "did you mean|known"), ("clip-benchmark", "needs --suite-data")],
)
def test_wrong_use_is_said(run: Path, tmp_path: Path, suite: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        measure(run, tmp_path / "out", suite)


def test_a_folder_without_the_layout_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no folder in .* has CLIP_benchmark's layout"):
        measure(run, tmp_path / "out", "clip-benchmark", tmp_path)

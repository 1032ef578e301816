"""ELEVATER on tiny copies: each metric, both layouts, and what is said of the sets that lack."""

import re
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import recall_score, roc_auc_score
from small_suites import by_domain, measure, pictures, png, teacher_cosines, write_layout

from attar.errors import UsageError
from attar.evaluation.features import read_features
from attar.evaluation.metrics import mean_average_precision_11_points
from attar.suites.elevater import DATA_SETS
from attar.suites.torchvision_sets import LOADERS

SIGNS = ("apple", "bell", "coat")


def test_there_are_the_20_sets_with_their_metrics() -> None:
    assert len(DATA_SETS) == 20
    by_metric: dict[str, set[str]] = {}
    for name, of in DATA_SETS.items():
        by_metric.setdefault(of.metric, set()).add(name)
    assert by_metric["mean_per_class_recall"] == {
        "caltech101", "fgvc-aircraft", "flowers102", "oxford-pets"
    }  # fmt: skip
    assert by_metric["roc_auc"] == {"hateful-memes"}
    assert by_metric["map_11_points"] == {"voc2007"}
    assert LOADERS.keys() <= DATA_SETS.keys()
    assert len(LOADERS["gtsrb"].class_names) == 43


def prompts(names: tuple[str, ...], template: str = "a picture of a {}.") -> list[list[str]]:
    return [[template.format(name)] for name in names]


def test_each_set_has_its_own_metric(
    root: Path, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "sets"
    labels = [0, 0, 0, 1, 2, 2, 1, 0, 2]
    images = pictures(9, seed=300)
    write_layout(data / "vtab-pets", SIGNS, labels, images=images)
    write_layout(data / "wds_cifar10", SIGNS, labels, images=images)
    memes = [0, 1, 1, 0, 1, 0, 1, 1, 0]
    write_layout(data / "hateful_memes", ("kind", "hateful"), memes, images=images)
    shown = (np.random.default_rng(0).random((9, 3)) < 0.4).astype(np.int64)
    shown[0] = 1
    write_layout(data / "voc2007_multilabel", SIGNS, shown, images=images)

    found = by_domain(measure(run, tmp_path / "out", "elevater", data), "teacher")

    assert set(found) == {"oxford-pets", "cifar10", "hateful-memes", "voc2007", "all"}
    cosines = teacher_cosines(root, run, images, prompts(SIGNS))
    answers = cosines.argmax(axis=1)
    expected = {
        "oxford-pets": recall_score(labels, answers, average="macro"),
        "cifar10": float(np.mean(answers == labels)),
        "voc2007": mean_average_precision_11_points(cosines, shown),
    }
    two = teacher_cosines(root, run, images, prompts(("kind", "hateful")))
    expected["hateful-memes"] = roc_auc_score(memes, two[:, 1] - two[:, 0])
    for name, value in expected.items():
        assert found[name].metrics["score"] == pytest.approx(value), name
        assert found[name].extra["metric"] == DATA_SETS[name].metric
    mean = found["all"]
    assert mean.metrics["score"] == pytest.approx(np.mean(list(expected.values())))
    assert sorted(mean.extra["mean_over"]) == sorted(expected)
    assert len(mean.extra["missing"]) == 16
    place = data / "food101"
    assert "food101 is not measured: not there; get clip-benchmark/wds_food101" in caplog.text
    assert str(place) in caplog.text


@pytest.mark.parametrize(
    ("names", "labels", "reason"),
    [
        (("meme",), [0, 0], "roc_auc needs two classes, and .*classnames.txt names 1"),
        (("kind", "hateful"), [1, 1], "roc_auc needs images of both classes"),
        (SIGNS, np.zeros((2, 3), int), "map_11_points needs images that show a class"),
    ],
)
def test_what_its_metric_cannot_score_is_missing_and_the_others_are_measured(
    run: Path, tmp_path: Path, names: tuple[str, ...], labels, reason: str, caplog
) -> None:
    data = tmp_path / "sets"
    several = isinstance(labels, np.ndarray)
    place = "voc2007_multilabel" if several else "hateful_memes"
    write_layout(data / place, names, labels, images=pictures(2, seed=330))
    write_layout(data / "cifar10", SIGNS, [0, 2], images=pictures(2, seed=340))
    found = by_domain(measure(run, tmp_path / "out", "elevater", data), "student")
    assert set(found) == {"cifar10", "all"}
    assert re.search(f"is not measured: {reason}", caplog.text)


def test_kitti_is_squeezed_so_that_no_side_is_cut_off(run: Path, tmp_path: Path) -> None:
    # All that tells the classes apart is at the sides, which a centre crop would cut off.
    wide = Image.new("RGB", (400, 100), (128, 128, 128))
    wide.paste((255, 0, 0), (0, 0, 100, 100))
    plain = Image.new("RGB", (400, 100), (128, 128, 128))
    folder = tmp_path / "sets" / "vtab-kitti_closest_vehicle_distance"
    write_layout(folder, ("near", "far"), (0, 1), images=[wide, plain])
    measure(run, tmp_path / "out", "elevater", tmp_path / "sets")
    features = read_features(tmp_path / "out" / "features" / "teacher-kitti_distance.safetensors")
    assert not np.allclose(features[0], features[1])


def _write_idx(path: Path, array: np.ndarray) -> None:
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(head + array.astype(np.uint8).tobytes())


@pytest.fixture
def torchvision_root(tmp_path: Path) -> Path:
    """Write MNIST, Rendered SST2 and VOC 2007 as torchvision keeps them."""
    root = tmp_path / "torchvision"
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    digits = np.random.default_rng(0).integers(0, 256, (6, 28, 28))
    for part in ("train", "t10k"):
        _write_idx(raw / f"{part}-images-idx3-ubyte", digits)
        _write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(6))
    for number, label in enumerate(("negative", "positive", "positive")):
        path = root / "rendered-sst2" / "test" / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pictures(1, seed=400 + number)[0]))
    voc = root / "VOCdevkit" / "VOC2007"
    for folder in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (voc / folder).mkdir(parents=True)
    shown = (
        (("cat", 0), ("dog", 1), ("cat", 0)),
        (("person", 0), ("dog", 0)),
        (("tvmonitor", 0),),
    )
    for number, objects in enumerate(shown):
        picture = pictures(1, seed=500 + number)[0]
        picture.save(voc / "JPEGImages" / f"{number:06}.jpg")
        xml = "".join(
            f"<object><name>{name}</name><difficult>{hard}</difficult></object>"
            for name, hard in objects
        )
        path = voc / "Annotations" / f"{number:06}.xml"
        path.write_text(f"<annotation>{xml}</annotation>")
    (voc / "ImageSets" / "Main" / "test.txt").write_text("000000\n000001\n000002\n")
    return root


def test_what_torchvision_reads_is_measured_too(
    root: Path, run: Path, torchvision_root: Path, tmp_path: Path
) -> None:
    records = measure(run, tmp_path / "out", "elevater", torchvision_root)
    found = by_domain(records, "teacher")
    assert set(found) == {"mnist", "rendered-sst2", "voc2007", "all"}
    images = [pictures(1, seed=400 + number)[0] for number in range(3)]
    cosines = teacher_cosines(
        root, run, images, prompts(("negative", "positive"), "a {} review of a movie.")
    )
    assert found["rendered-sst2"].metrics["acc1"] == pytest.approx(
        np.mean(cosines.argmax(axis=1) == [0, 1, 1])
    )
    assert found["mnist"].extra["num_classes"] == 10
    assert found["mnist"].num_images == 6
    assert 0 < found["voc2007"].metrics["map_11_points"] <= 1


def test_a_class_that_is_only_hard_to_see_is_not_shown(torchvision_root: Path) -> None:
    loader = LOADERS["voc2007"]
    dataset = loader.open(torchvision_root)
    names = loader.class_names
    shown = [{names[c] for c in loader.labels(dataset[row][1])} for row in range(3)]
    assert shown == [{"cat"}, {"person", "dog"}, {"monitor"}]


def test_half_a_download_of_torchvisions_is_named(
    run: Path, torchvision_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (torchvision_root / "VOCdevkit" / "VOC2007" / "JPEGImages" / "000001.jpg").unlink()
    raw = torchvision_root / "MNIST" / "raw"
    (raw / "t10k-images-idx3-ubyte").rename(raw / "t10k-images-idx3-ubyte.part")
    found = by_domain(measure(run, tmp_path / "out", "elevater", torchvision_root), "student")
    assert set(found) == {"rendered-sst2", "all"}
    assert {"mnist", "voc2007"} <= set(found["all"].extra["missing"])
    assert "voc2007 is not measured: torchvision cannot read" in caplog.text
    assert "000001.jpg" in caplog.text
    assert "mnist is not measured: torchvision cannot read" in caplog.text


def test_nothing_at_all_is_an_error_that_shows_the_way(run: Path, tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    with pytest.raises(UsageError, match="none of the data sets of --suite elevater"):
        measure(run, tmp_path / "out", "elevater", tmp_path / "sets")

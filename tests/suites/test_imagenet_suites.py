"""ImageNet and its variants on tiny copies whose labels a teacher chose, so that scores are known.

Pictures are put into the folder of the class that one of two models answers: its accuracy is then
known without measuring it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_suites import by_domain, measure, pictures, teacher_cosines
from tests.doubles import random_image

from attar.errors import UsageError
from attar.evaluation.features import read_features
from attar.prompts import get_templates
from attar.store.store import Store
from attar.suites import imagenet_classes as classes
from attar.suites.imagenet import IMAGENET, OBJECTNET, TEMPLATES, VARIANTS
from attar.teachers.registry import load_teacher

CHAIRS = ("barber chair", "folding chair", "rocking chair")
OBJECTS = {
    "Chair": "barber chair; folding chair; rocking chair, rocker",
    "Mug": "coffee mug",
    "Banana": "banana",
}
FOLDERS = {"chair": "Chair", "coffee_mug": "Mug", "banana": "Banana", "squeegee": "Squeegee"}


def test_the_class_lists_are_the_published_ones() -> None:
    assert classes.wnids()[:2] == ("n01440764", "n01443537")
    assert classes.names()[:2] == ("tench", "goldfish")
    assert len(classes.names()) == 1000
    adversarial, rendition = classes.adversarial_classes(), classes.rendition_classes()
    assert len(adversarial.folders) == len(rendition.folders) == 200
    # The first class of ImageNet-A is the stingray, number 6; of ImageNet-R the goldfish, 1.
    assert adversarial.imagenet[0] == (6,)
    assert adversarial.names[0] == "stingray"
    assert rendition.names[0] == "goldfish"
    assert rendition.folders["n01443537"] == 0
    assert classes.numbered_classes().folders["10"] == 10  # and not the third name sorted as text
    assert len(get_templates(TEMPLATES)) == 80
    counts = {v.published.name: v.published.num_images for v in VARIANTS}
    assert counts == {
        "imagenet-v2": 10_000, "imagenet-a": 7_500, "imagenet-r": 30_000, "imagenet-sketch": 50_889
    }  # fmt: skip


def test_objectnets_classes_are_those_that_imagenet_has(tmp_path: Path) -> None:
    write_mappings(tmp_path)
    shared = classes.objectnet_classes(tmp_path)
    assert shared.names == ("banana", "chair", "mug")
    assert shared.folders == {"banana": 0, "chair": 1, "coffee_mug": 2}
    words = [tuple(classes.names()[n] for n in of) for of in shared.imagenet]
    assert words == [("banana",), CHAIRS, ("coffee mug",)]


def test_a_class_that_imagenet_lacks_is_named(tmp_path: Path) -> None:
    write_mappings(tmp_path, {**OBJECTS, "Mug": "mug of coffee"})
    with pytest.raises(Exception, match="'Mug' is 'mug of coffee'"):
        classes.objectnet_classes(tmp_path)


def write_mappings(folder: Path, objects: Mapping[str, str] = OBJECTS) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "folder_to_objectnet_label.json").write_text(json.dumps(FOLDERS))
    (folder / "objectnet_to_imagenet_1k.json").write_text(json.dumps(objects))


Predict = Callable[[Sequence[Image.Image], Sequence[str]], np.ndarray]


@pytest.fixture(scope="module")
def predict(root: Path) -> dict[str, Predict]:
    """Return the answers of two models by their own towers, with a look at how sure they are."""

    def of(name: str) -> Predict:
        teacher = load_teacher(f"local-dir:{root / name}")

        def answers(images: Sequence[Image.Image], names: Sequence[str]) -> np.ndarray:
            texts = teacher.encode_texts([name.replace("_", " ") for name in names])
            pixels = torch.stack([teacher.prepare(image) for image in images])
            rows = torch.nn.functional.normalize(teacher.encode_images(pixels), dim=1)
            return (rows @ torch.nn.functional.normalize(texts, dim=1).T).argmax(dim=1).numpy()

        return answers

    return {name: of(name) for name in ("teacher", "rival")}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, predict: dict[str, Predict]) -> Path:
    """Write every set: four pictures where the teacher puts them, two where the rival does."""
    folder = tmp_path_factory.mktemp("imagenets")
    known = {
        "imagenet/val": classes.all_classes(),
        "imagenetv2-matched-frequency-format-val": classes.numbered_classes(),
        "imagenet-a": classes.adversarial_classes(),
        "imagenet-r": classes.rendition_classes(),
        "sketch": classes.all_classes(),
    }
    for seed, (place, of) in enumerate(known.items()):
        images = pictures(6, seed=2000 + 10 * seed)
        where = [*predict["teacher"](images[:4], of.names), *predict["rival"](images[4:], of.names)]
        for number, (image, label) in enumerate(zip(images, where, strict=True)):
            path = folder / place / list(of.folders)[label] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    # A class that ImageNet-A has as well, the stingray, and one that it has not, the tench.
    for number, wnid in enumerate(("n01498041", "n01440764")):
        path = folder / "imagenet" / "val" / wnid / "known.png"
        path.parent.mkdir(exist_ok=True)
        random_image(2800 + number, (44, 40)).save(path)
    write_mappings(folder / "objectnet-1.0" / "mappings")
    for number, place in enumerate(("chair", "chair", "banana", "squeegee")):
        bordered = Image.new("RGB", (48, 44), (255, 0, 0))
        bordered.paste(random_image(2900 + number, (44, 40)), (2, 2))
        path = folder / "objectnet-1.0" / "images" / place / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        bordered.save(path)
    (folder / "imagenet-r" / "README.txt").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def found(root: Path, run: Path, sets: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("robustness")
    rival = f"local-dir:{root / 'rival'}"
    options = {"suite_partial": True, "suite_templates": "plain"}
    records = measure(run, out, "robustness", sets, others=(rival,), **options)
    return out, {role: by_domain(records, role) for role in ("student", "teacher", rival)}


def test_the_teacher_is_right_where_it_chose_the_label(found) -> None:
    _, by_role = found
    assert by_role["teacher"]["imagenet"].metrics["acc1"] >= 4 / 8
    for variant in VARIANTS:
        assert by_role["teacher"][variant.published.name].metrics["acc1"] >= 4 / 6
    rival = next(of for role, of in by_role.items() if role.startswith("local-dir"))
    assert all(rival[v.published.name].metrics["acc1"] >= 2 / 6 for v in VARIANTS)
    assert by_role["teacher"]["imagenet-a"].extra["num_classes"] == 200
    assert "instead of 7,500" in by_role["teacher"]["imagenet-a"].extra["partial"]


def test_objectnet_is_measured_without_its_border_and_foreign_classes(
    root: Path, run: Path, found
) -> None:
    _, by_role = found
    record = by_role["teacher"]["objectnet"]
    assert (record.num_images, record.extra["num_classes"]) == (3, 3)
    images = [random_image(2900 + number, (44, 40)) for number in (0, 1, 2)]
    cosines = teacher_cosines(root, run, images, [["banana"], ["chair"], ["mug"]])
    assert record.metrics["acc1"] == pytest.approx(np.mean(cosines.argmax(axis=1) == [1, 1, 0]))


def test_the_mean_is_over_the_five_variants(found) -> None:
    _, by_role = found
    for of in by_role.values():
        names = [*(v.published.name for v in VARIANTS), OBJECTNET.name]
        mean = np.mean([of[name].metrics["acc1"] for name in names])
        assert of["all"].metrics["score"] == pytest.approx(mean)
        assert of["all"].extra["mean_over"] == names
        assert of["all"].extra["missing"] == []
        assert IMAGENET.name not in of["all"].extra["partial"]


def test_at_home_a_model_is_asked_about_the_sets_own_classes(run: Path, sets: Path, found) -> None:
    """ImageNet-A's x axis: ImageNet's images of its 200 classes, ranked among the 200."""
    out, by_role = found
    store = Store.open(run / "store")
    features = read_features(out / "features" / "teacher-imagenet.safetensors")
    texts = store.text_features([name.replace("_", " ") for name in classes.names()])
    chosen = [n for (n,) in classes.adversarial_classes().imagenet]
    # The folders of ImageNet are read in their order, as the class numbers are.
    files = sorted((sets / "imagenet" / "val").glob("*/*.png"))
    labels = np.array([classes.all_classes().folders[file.parent.name] for file in files])
    inside = np.isin(labels, chosen)
    assert 1 <= inside.sum() < len(inside)
    scores = features[inside].astype(float) @ texts[chosen].astype(float).T
    expected = np.mean(np.array(chosen)[scores.argmax(axis=1)] == labels[inside])
    metrics = by_role["teacher"]["imagenet-a"].metrics
    assert metrics["imagenet_acc1"] == pytest.approx(expected)


def test_effective_robustness_is_what_lies_above_the_line_of_the_table(found) -> None:
    """On V2, whose classes are all of ImageNet's, against a line fitted here."""
    _, by_role = found
    rows = [of["imagenet-v2"].metrics for of in by_role.values()]
    home, away = (np.array([row[name] for row in rows]) for name in ("imagenet_acc1", "acc1"))
    assert np.ptp(home) > 0
    assert home == pytest.approx([of["imagenet"].metrics["acc1"] for of in by_role.values()])
    home = np.clip(home, 1 / 16, 15 / 16)  # half of the 8 images
    x, y = (np.log(p / (1 - p)) for p in (home, np.clip(away, 1 / 12, 11 / 12)))
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    expected = away - 1 / (1 + np.exp(-(y.mean() + slope * (x - x.mean()))))
    assert [row["effective_robustness"] for row in rows] == pytest.approx(expected.tolist())


def test_two_models_have_no_effective_robustness(run: Path, sets: Path, tmp_path: Path) -> None:
    options = {"suite_partial": True, "suite_templates": "plain"}
    records = measure(run, tmp_path / "out", "robustness", sets, **options)
    assert len({record.role for record in records}) == 2
    assert not any("effective_robustness" in record.metrics for record in records)
    assert any("imagenet_acc1" in record.metrics for record in records)


def test_half_a_download_is_refused_and_what_is_absent_says_how_to_get_it(
    run: Path, sets: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UsageError) as refused:
        measure(run, tmp_path / "out", "imagenet", sets, suite_templates="plain")
    said = str(refused.value)
    assert "of 1,000 class folders hold no image" in said
    assert "holds 8 images instead of 50,000" in said
    assert "--suite-partial" in said
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="none of the data sets of --suite robustness"):
        measure(run, tmp_path / "out", "robustness", tmp_path / "empty")
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    for name in ("imagenet", *(v.published.name for v in VARIANTS), "objectnet"):
        assert any(line.startswith(f"{name} is not measured") and "get " in line for line in lines)

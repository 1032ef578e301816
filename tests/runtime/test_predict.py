import csv
import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from attar.data.classes import ClassList
from attar.errors import AttarError, UsageError
from attar.runtime.bundle import Bundle
from attar.runtime.config import PredictConfig
from attar.runtime.labels import bare, find_features, read_labels
from attar.runtime.predict import Predictor, run_predict


def predict(bundle_path, inputs, **settings):
    out = io.StringIO()
    run_predict(bundle_path, inputs, PredictConfig(**settings), out)
    return out.getvalue()


def answers(bundle_path, inputs, **settings):
    return [
        json.loads(line)
        for line in predict(bundle_path, inputs, json=True, **settings).split("\n")[:-1]
    ]


def test_each_colour_is_of_its_class(predictor, pictures):
    paths = [pictures / f"{name}.png" for name in ("red", "green", "blue")]
    predictions = predictor.predict(paths, batch_size=2)
    assert [p.label for p in predictions] == ["red", "green", "blue"]
    assert [p.path for p in predictions] == paths
    for prediction in predictions:
        values = [value for _, value in prediction.top]
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1)
        assert prediction.confidence == values[0]


def test_confidence_is_the_softmax_of_scaled_cosines(predictor, pictures):
    pixels = predictor.bundle.preprocess(Image.open(pictures / "red.png"))[None]
    embedding = predictor.embed(pixels)[0]
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)
    logits = 2.0 * predictor.bundle.labels.features.astype(np.float64) @ embedding
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(predictor.scores(pixels)[0], expected, atol=1e-5)


def test_the_threshold_decides_between_an_answer_and_none(bundle_path, pictures):
    red = pictures / "red.png"
    confidence = Predictor(Bundle.open(bundle_path)).predict([red])[0].confidence
    sure = Predictor(Bundle.open(bundle_path), threshold=confidence - 0.01).predict([red])[0]
    unsure = Predictor(Bundle.open(bundle_path), threshold=confidence + 0.001).predict([red])[0]
    assert (sure.label, sure.abstained) == ("red", False)
    assert (unsure.label, unsure.abstained) == (None, True)
    assert unsure.top == sure.top


def test_the_bundles_threshold_belongs_to_its_own_classes(bundle_path, pictures):
    bundle = Bundle.open(bundle_path)
    strict = replace(bundle, manifest={**bundle.manifest, "threshold": 0.999})
    predictor, red = Predictor(strict), pictures / "red.png"
    assert predictor.predict([red])[0].abstained
    predictor.use_labels(["white", "red"])
    assert predictor.predict([red])[0].label == "red"
    predictor.use_labels(["blue", "green", "red"])
    assert predictor.predict([red])[0].abstained, "its own classes in another order"


def test_a_given_threshold_holds_for_any_classes(bundle_path, pictures):
    predictor = Predictor(Bundle.open(bundle_path), threshold=1.0)
    predictor.use_labels(["white", "red"])
    assert predictor.predict([pictures / "red.png"])[0].abstained


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_that_is_no_confidence_is_refused(bundle_path, threshold):
    with pytest.raises(UsageError, match="between 0 and 1"):
        Predictor(Bundle.open(bundle_path), threshold=threshold)


def test_classes_are_swapped_by_name_from_the_labels_and_the_vocabulary(predictor, pictures):
    predictor.use_labels(["White", "dark grey", "cyan sea", "RED"])
    names = {"white": "White", "dark_grey": "dark grey", "cyan": "cyan sea", "red": "RED"}
    paths = [pictures / f"{name}.png" for name in names]
    assert [p.label for p in predictor.predict(paths)] == list(names.values())


def test_an_unknown_class_is_refused_with_the_nearest(predictor):
    with pytest.raises(UsageError, match=r"'dark gray' is not in its labels or voc.*'dark_grey'"):
        predictor.use_labels(["red", "dark gray"])
    assert predictor.labels == predictor.bundle.labels


@pytest.mark.parametrize("names", [["red"], ["red", "Red"], []])
def test_too_few_or_equal_classes_are_refused(predictor, names):
    with pytest.raises(UsageError):
        predictor.use_labels(names)


def test_a_class_that_is_only_described_takes_the_mean_of_its_descriptions(predictor):
    classes = ClassList(("light", "red"), (("white", "a photo of a cyan sea"), ("nonsense",)))
    features = find_features(predictor.bundle, classes).features
    white, cyan = predictor.bundle.vocabulary.features[1:3]
    mean = (white + cyan) / np.linalg.norm(white + cyan)
    np.testing.assert_allclose(features[0], mean, atol=1e-5)
    np.testing.assert_array_equal(features[1], predictor.bundle.labels.features[0])
    partly = ClassList(("light", "red"), (("white", "a beach"), ()))
    with pytest.raises(UsageError, match="'light' is not in"):
        find_features(predictor.bundle, partly)


def test_templates_are_seen_through():
    assert bare("A photo of a dog.") == bare("a blurry picture of the dog") == bare("Dog") == "dog"
    assert bare("the_kite") == "the kite"
    assert bare("photograph album") == "photograph album"


def test_labels_files(bundle_path, pictures, tmp_path):
    listed = tmp_path / "labels.txt"
    listed.write_text("white\nRed\n")
    assert [a["label"] for a in answers(bundle_path, [pictures / "red.png"], labels=listed)] == [
        "Red"
    ]
    own = tmp_path / "own.safetensors"
    bundle = Bundle.open(bundle_path)
    features = 5 * bundle.labels.features[:2]
    save_file({"class_features": features}, own, metadata={"names": '["rosso", "verde"]'})
    inputs = [pictures / "red.png", pictures / "green.png"]
    assert [a["label"] for a in answers(bundle_path, inputs, labels=own)] == ["rosso", "verde"]


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"class_features": np.ones((2, 7), np.float32)}, {"names": '["a", "b"]'}, "7.*32 wide"),
        ({"class_features": np.ones((2, 32), np.float32)}, {"names": '["a"]'}, "1 names for 2"),
        ({"class_features": np.ones((2, 32), np.float32)}, None, "no metadata entry 'names'"),
        ({"class_features": np.zeros((2, 32), np.float32)}, {"names": '["a", "b"]'}, "zero"),
        ({"class_features": np.ones((2, 32), np.float32)}, {"names": '["a", "A"]'}, "duplicates"),
        ({"other": np.ones((2, 32), np.float32)}, {"names": '["a", "b"]'}, "class_features"),
    ],
)
def test_labels_with_features_that_do_not_fit(predictor, tmp_path, tensors, metadata, message):
    path = tmp_path / "labels.safetensors"
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(AttarError, match=message):
        read_labels(predictor.bundle, path)


def test_a_folder_with_unreadable_images_predicts_the_others_and_fails(
    bundle_path, pictures, tmp_path
):
    folder = tmp_path / "mixed" / "deeper"
    folder.mkdir(parents=True)
    for name in ("red", "blue"):
        shutil.copy(pictures / f"{name}.png", folder / f"{name}.PNG")
    (folder / "broken.jpg").write_bytes((pictures / "red.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("no image")
    out = io.StringIO()
    with pytest.raises(AttarError, match=r"1 of 3 images.*broken\.jpg") as raised:
        run_predict(bundle_path, [tmp_path], PredictConfig(json=True), out)
    assert raised.value.exit_status == 1
    rows = {json.loads(line)["path"]: json.loads(line) for line in out.getvalue().splitlines()}
    assert rows[str(folder / "red.PNG")]["label"] == "red"
    assert rows[str(folder / "blue.PNG")]["label"] == "blue"
    broken = rows[str(folder / "broken.jpg")]
    assert broken["label"] is None
    assert broken["error"]


def test_only_unreadable_images_still_give_a_table(bundle_path, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"")
    out = io.StringIO()
    with pytest.raises(AttarError, match="1 of 1 images"):
        run_predict(bundle_path, [tmp_path], PredictConfig(), out)
    assert "unreadable" in out.getvalue()
    assert "empty" in out.getvalue()


def test_csv_and_table(bundle_path, pictures):
    inputs = [pictures / "red.png", pictures / "green.png"]
    rows = list(csv.DictReader(io.StringIO(predict(bundle_path, inputs, csv=True))))
    assert [row["label"] for row in rows] == ["red", "green"]
    assert 0 < float(rows[0]["confidence"]) <= 1
    abstained = predict(bundle_path, inputs, csv=True, threshold=1.0)
    first = next(csv.DictReader(io.StringIO(abstained)))
    assert (first["label"], first["abstained"], first["top_label"]) == ("", "1", "red")
    header, *lines = predict(bundle_path, inputs).splitlines()
    assert header.split() == ["image", "answer", "confidence", "then"]
    assert [line.split()[1] for line in lines] == ["red", "green"]
    assert "none of these" in predict(bundle_path, inputs, threshold=1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"json": True, "csv": True}, "--json and --csv"),
        ({"top": 0}, "--top 0"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"threads": -1}, "--threads -1"),
    ],
)
def test_wrong_settings_are_refused(bundle_path, pictures, settings, message):
    with pytest.raises(UsageError, match=message):
        predict(bundle_path, [pictures], **settings)


def test_wrong_inputs_are_refused(bundle_path, tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        predict(bundle_path, [tmp_path / "absent.jpg"])
    with pytest.raises(UsageError, match="holds no images"):
        predict(bundle_path, [tmp_path])
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UsageError, match="is no bundle"):
        predict(tmp_path, [tmp_path])

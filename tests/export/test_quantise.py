"""The int8 model of a bundle: smaller and nearly the same, or left out with its figures kept."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny_students import DIM, NAMES, make_student

from attar.errors import AttarError, UsageError
from attar.export.bundle import export_bundle
from attar.export.config import BundleFacts, ExportConfig
from attar.export.quantise import SourceImages, write_int8
from attar.runtime.bundle import Bundle
from attar.runtime.config import PredictConfig
from attar.runtime.predict import Predictor, run_predict
from attar.runtime.preprocess import Preprocess, load_inputs
from attar.students.student import Student, save_student


def telling_apart(student: Student, photos):
    """Centre the student's features on these photos; return its features of the first as classes.

    So a healthy copy of it calls each of the first photos by its own name.
    """
    spec = student.spec
    preprocess = Preprocess(
        image_size=spec.image_size, crop_pct=spec.crop_pct, interpolation=spec.interpolation
    )
    pixels = torch.from_numpy(load_inputs(photos, preprocess)[0])
    with torch.no_grad():
        student.projection().bias.sub_(student(pixels).features.mean(dim=0))
        return student(pixels).features[: len(NAMES)].numpy()


def export(student, out, photos, *, images=None, class_features="own", **settings):
    if class_features == "own":
        class_features = telling_apart(student, photos)
    folder = save_student(student, out.parent / f"{out.name}-student")
    labels = [*range(len(NAMES)), *[-1] * (len(photos) - len(NAMES))]
    default = SourceImages(training=photos[::-1], validation=photos, labels=labels)
    return export_bundle(
        folder,
        out,
        class_features=class_features,
        class_names=NAMES,
        sample_images=photos,
        config=ExportConfig(int8=True, **settings),
        extras=BundleFacts(teacher="pocket", logit_scale=20.0),
        source_images=default if images is None else images,
    )


def figures(bundle):
    return json.loads((bundle / "bundle.json").read_text())["int8"]


def embed(bundle, photos, **options):
    opened = Bundle.open(bundle)
    return Predictor(opened, **options).embed(load_inputs(photos, opened.preprocess)[0])


@pytest.fixture(scope="module")
def bundle(photos, tmp_path_factory):
    return export(make_student("resnet10t"), tmp_path_factory.mktemp("int8") / "bundle", photos)


def test_the_int8_model_is_smaller_and_answers_alike(bundle, photos):
    small, large = bundle / "model-int8.onnx", bundle / "model.onnx"
    assert small.stat().st_size < 0.4 * large.stat().st_size
    int8, fp32 = embed(bundle, photos, int8=True), embed(bundle, photos)
    assert int8.shape == (len(photos), DIM)
    assert not np.array_equal(int8, fp32), "it is another model"
    cosines = (int8 * fp32).sum(axis=1)
    said = figures(bundle)
    assert said["mean_cosine"] == pytest.approx(cosines.mean(), abs=1e-5)
    assert said["min_cosine"] == pytest.approx(cosines.min(), abs=1e-5)
    classes = Bundle.open(bundle).labels.features
    same = (int8 @ classes.T).argmax(axis=1) == (fp32 @ classes.T).argmax(axis=1)
    assert said["top1_agreement"] == same.mean() >= 0.95
    assert (said["written"], said["reason"]) == (True, "")
    assert said["unrelated_cosine"] < 0.5 < said["min_cosine"], "a cosine here says something"
    assert (said["labelled_images"], said["accuracy_fp32"]) == (len(NAMES), 1.0)
    assert (said["training_images"], said["validation_images"]) == (12, 12)
    assert said["bytes_int8"] == small.stat().st_size


def test_its_weights_are_integers_and_it_is_checked_on_opening(bundle):
    graph = onnx.load(bundle / "model-int8.onnx").graph
    assert any(t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4 for t in graph.initializer)
    assert "model-int8.onnx" in Bundle.open(bundle).manifest["files"]
    card = (bundle / "card.md").read_text()
    assert "`model-int8.onnx` is " in card
    assert "attar predict BUNDLE IMAGES --int8" in card


def test_predict_takes_either_model(bundle, photos):
    paths, rows = [Path(photo) for photo in photos[: len(NAMES)]], {}
    for int8 in (False, True):
        out = io.StringIO()
        run_predict(bundle, paths, PredictConfig(json=True, int8=int8), out)
        rows[int8] = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [row["top"][0]["label"] for row in rows[True]] == list(NAMES)
    assert [row["confidence"] for row in rows[True]] != [row["confidence"] for row in rows[False]]


def test_attention_stays_in_floats(photos, tmp_path):
    settings = {"int8_min_agreement": 0.0, "int8_min_cosine": 0.0}  # of random weights: anything
    bundle = export(make_student("test_vit"), tmp_path / "bundle", photos, **settings)
    graph = onnx.load(bundle / "model-int8.onnx").graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    products = [[made_by.get(i) for i in n.input] for n in graph.node if n.op_type == "MatMul"]
    in_floats = [kinds for kinds in products if "DequantizeLinear" not in kinds]
    assert len(in_floats) == 2 * len(make_student("test_vit").network.blocks)
    assert len(products) > len(in_floats), "the others are in integers"


def spoiled():
    """A student with a channel that nothing reads, ten thousand times as large as the others.

    In float32 it changes nothing; in 8 bits a tensor it leaves no levels to the other channels.
    """
    student = make_student("resnet10t")
    stem = student.network.conv1
    with torch.no_grad():
        stem[1].weight[0] = 1e4
        stem[3].weight[:, 0] = 0
    return student


def test_a_model_that_int8_spoils_is_left_out_and_the_bundle_is_whole(photos, tmp_path):
    bundle = export(spoiled(), tmp_path / "bundle", photos)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "bundle-student"]
    assert not (bundle / "model-int8.onnx").exists()
    said = figures(bundle)
    assert not said["written"]
    assert said["top1_agreement"] < 0.95
    assert "int8-min-agreement 0.95" in said["reason"]
    assert said["accuracy_int8"] < said["accuracy_fp32"] == 1.0
    assert "There is no `model-int8.onnx`" in (bundle / "card.md").read_text()
    assert np.isfinite(embed(bundle, photos)).all()
    with pytest.raises(UsageError, match=r"holds no model-int8\.onnx: on 12 validation images"):
        Predictor(Bundle.open(bundle), int8=True)


def test_the_bounds_decide(bundle, photos, tmp_path):
    opened = Bundle.open(bundle)
    model = Path(shutil.copy(bundle / "model.onnx", tmp_path))

    def judged(**bounds):
        images = SourceImages(training=photos, validation=photos, labels=[-1] * len(photos))
        config = ExportConfig(int8=True, int8_images=4, **bounds)
        return write_int8(model, images, opened.labels.features, opened.preprocess, config)

    exact = judged(int8_min_cosine=1.0)
    assert not exact.written
    assert "int8-min-cosine 1.0" in exact.reason
    assert "int8-min-agreement" not in exact.reason
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"], "and nothing else is left"
    assert judged(int8_min_agreement=0.0, int8_min_cosine=0.0).written
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model-int8.onnx", "model.onnx"]


def test_a_missing_calibration_image_is_named_and_nothing_is_left(bundle, photos, tmp_path):
    model = Path(shutil.copy(bundle / "model.onnx", tmp_path))
    images = SourceImages(training=["/gone.png"], validation=photos, labels=[-1] * len(photos))
    with pytest.raises(AttarError, match=r"/gone\.png cannot be read"):
        write_int8(model, images, None, Bundle.open(bundle).preprocess, ExportConfig(int8=True))
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_plain_classifier_and_one_validation_image(photos, tmp_path):
    images = SourceImages(training=photos[:3], validation=photos[:1], labels=[-1])
    student = make_student("resnet10t", NAMES)
    bundle = export(
        student, tmp_path / "b", photos, images=images, class_features=None, int8_images=2
    )
    said = figures(bundle)
    assert (said["training_images"], said["accuracy_int8"], said["unrelated_cosine"]) == (
        2, None, None)  # fmt: skip
    assert embed(bundle, photos, int8=True).shape == (len(photos), len(NAMES))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (SourceImages(training=["a.png"], validation=[], labels=[]), "no validation images"),
        (SourceImages(training=[], validation=["a.png"], labels=[0]), "no training images"),
    ],
)
def test_without_images_it_is_refused(photos, tmp_path, images, message):
    with pytest.raises(UsageError, match=rf"{message}.*--splits\.val-fraction"):
        export(make_student("resnet10t"), tmp_path / "bundle", photos, images=images)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("option", ["int8_min_agreement", "int8_min_cosine"])
@pytest.mark.parametrize("value", [-0.1, 95])
def test_an_impossible_bound_is_refused(option, value):
    with pytest.raises(UsageError, match=f"{option} is {value}"):
        ExportConfig(**{option: value})

import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from safetensors.numpy import load_file
from tiny_students import DIM, NAMES, SIZE, make_student, unit_features

import attar.export.bundle
from attar.errors import AttarError, UsageError
from attar.export.bundle import export_bundle
from attar.export.config import BundleFacts, ExportConfig
from attar.export.onnx import write_onnx
from attar.files import sha256_file
from attar.records import Record
from attar.runtime.bundle import Bundle
from attar.runtime.predict import Predictor
from attar.students.student import load_student, save_student

FACTS = BundleFacts(
    teacher="pocket",
    licence="research use only",
    method="vl2v-adip",
    logit_scale=40.0,
    threshold=0.1,
    datasets=("emoji",),
    metrics=(
        Record(
            dataset="emoji",
            model="timm/resnet10t",
            pretrained="run",
            task="zeroshot_classification",
            metrics={"acc1": 0.6124, "ece": 0.04},
            domain="noto",
            num_images=1234,
        ),
    ),
)


def export(folder, out, photos, **changes):
    arguments = {
        "class_features": 3 * unit_features(len(NAMES)),
        "class_names": NAMES,
        "sample_images": photos,
        "config": ExportConfig(),
        "extras": FACTS,
        **changes,
    }
    return export_bundle(folder, out, **arguments)


@pytest.fixture(scope="module")
def bundle(resnet_folder, photos, tmp_path_factory):
    texts = ["otter", "red panda", "lighthouse"]
    vocabulary = (texts, 2 * unit_features(3, seed=1))
    out = tmp_path_factory.mktemp("export") / "bundle"
    return export(resnet_folder, out, photos, vocabulary=vocabulary)


def pixels(count):
    return np.random.default_rng(count).random((count, 3, SIZE, SIZE), dtype=np.float32)


def check_against_torch(folder, bundle_path, count):
    student = load_student(folder)
    images = pixels(count)
    with torch.no_grad():
        features = student(torch.from_numpy(images)).features
    if student.spec.head == "embedding":
        features = features / features.norm(dim=1, keepdim=True)
    output = Predictor(Bundle.open(bundle_path)).embed(images)
    assert output.shape == tuple(features.shape)
    np.testing.assert_allclose(output, features.numpy(), atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_any_batch_size_gives_the_unit_embedding_of_torch(resnet_folder, bundle, count):
    check_against_torch(resnet_folder, bundle, count)


@pytest.mark.parametrize(
    ("name", "options"),
    [("mobilenetv3_small_050", {}), ("test_vit", {}), ("test_vit", {"projector": "mlp"})],
)
def test_other_architectures_export(name, options, photos, tmp_path):
    folder = save_student(make_student(name, **options), tmp_path / "student")
    out = export(folder, tmp_path / "bundle", photos)
    for count in (1, 7):
        check_against_torch(folder, out, count)
    parity = Bundle.open(out).manifest["parity"]
    assert 0 < parity["max_abs_difference"] <= 1e-4
    assert parity["images"] == len(photos)


def test_a_plain_classifier_exports_its_logits(photos, tmp_path):
    folder = save_student(make_student("resnet10t", NAMES), tmp_path / "student")
    facts = BundleFacts(teacher="", logit_scale=1.0, method="erm")
    out = export(folder, tmp_path / "bundle", photos, class_features=None, extras=facts)
    check_against_torch(folder, out, 3)
    session = onnxruntime.InferenceSession(out / "model.onnx")
    assert [o.name for o in session.get_outputs()] == ["logits"]
    assert set(load_file(out / "labels.safetensors")) == {"logit_scale"}
    predictor = Predictor(Bundle.open(out))
    images = pixels(2)
    logits = torch.from_numpy(predictor.embed(images)).double()
    np.testing.assert_allclose(predictor.scores(images), logits.softmax(dim=1), atol=1e-6)


def test_the_model_is_one_file_with_a_dynamic_batch_and_normalises_inside(bundle, resnet_folder):
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert shape[0].dim_param
    assert [d.dim_value for d in shape[1:]] == [3, SIZE, SIZE]
    assert model.graph.input[0].name == "image"
    assert [output.name for output in model.graph.output] == ["embedding"]
    spec = load_student(resnet_folder).spec
    grey = np.tile(np.float32(spec.mean).reshape(1, 3, 1, 1), (1, 1, SIZE, SIZE))
    with torch.no_grad():
        raw = load_student(resnet_folder).network(torch.zeros(1, 3, SIZE, SIZE))
    expected = (raw / raw.norm()).numpy()
    np.testing.assert_allclose(Predictor(Bundle.open(bundle)).embed(grey), expected, atol=1e-4)


def test_files_and_checksums(bundle):
    manifest = json.loads((bundle / "bundle.json").read_text())
    on_disk = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert on_disk == {*manifest["files"], "bundle.json"}
    for name, entry in manifest["files"].items():
        assert entry["sha256"] == sha256_file(bundle / name)
    assert manifest["version"] == 1
    assert (manifest["teacher"], manifest["student"]) == ("pocket", "resnet10t")
    assert (manifest["head"], manifest["dim"], manifest["threshold"]) == ("embedding", DIM, 0.1)
    assert manifest["parity"]["min_cosine"] >= 0.9999
    assert manifest["parity"]["top1_agreement"] == 1.0
    assert manifest["parity"]["max_pixel_difference"] <= 1 / 255 + 1e-6


def test_labels_are_unit_features_with_the_scale(bundle):
    tensors = load_file(bundle / "labels.safetensors")
    np.testing.assert_allclose(tensors["class_features"], unit_features(len(NAMES)), atol=1e-6)
    assert tensors["class_features"].dtype == np.float32
    assert tensors["logit_scale"].tolist() == [40.0]
    assert (bundle / "labels.txt").read_text().splitlines() == list(NAMES)


def test_the_vocabulary_keeps_its_texts_and_directions(bundle):
    vocabulary = Bundle.open(bundle).vocabulary
    assert vocabulary.texts == ("otter", "red panda", "lighthouse")
    np.testing.assert_allclose(vocabulary.features, unit_features(3, seed=1), atol=1e-3)


def test_the_card_has_front_matter_and_the_facts(bundle):
    _, front, text = (bundle / "card.md").read_text().split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["library_name"] == "timm"
    assert front["pipeline_tag"] == "zero-shot-image-classification"
    assert front["base_model"] == ["timm/resnet10t", "pocket"]
    assert front["datasets"] == ["emoji"]
    assert {"license", "metrics"} <= set(front)
    for fact in ("research use only", "vl2v-adip", "| noto | 1,234 | 61.2 % | 0.040 |", "0.10"):
        assert fact in text


def test_broken_parity_raises_and_leaves_no_bundle(resnet_folder, photos, tmp_path, monkeypatch):
    def write_other_weights(student, path):
        with torch.no_grad():
            for parameter in student.network.layer4.parameters():
                parameter.mul_(0.5)
        write_onnx(student, path)
        student.load_state_dict(load_student(resnet_folder).state_dict())

    monkeypatch.setattr(attar.export.bundle, "write_onnx", write_other_weights)
    with pytest.raises(AttarError, match=r"is not the student.*an output differs by"):
        export(resnet_folder, tmp_path / "bundle", photos)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_is_quiet_and_leaves_the_old_bundle(
    resnet_folder, bundle, photos, tmp_path, capfd
):
    old = tmp_path / "bundle"
    shutil.copytree(bundle, old)
    with pytest.raises(AttarError, match="cosine falls to"):
        export(resnet_folder, old, photos, config=ExportConfig(min_cosine=1.01))
    assert Bundle.open(old).manifest == Bundle.open(bundle).manifest
    assert list(tmp_path.iterdir()) == [old]
    assert capfd.readouterr() == ("", "")


def test_another_folder_is_not_replaced(resnet_folder, photos, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="is no bundle"):
        export(resnet_folder, tmp_path, photos)
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_features": None}, "give --classes"),
        ({"class_features": np.ones((len(NAMES), DIM + 1))}, "do not fit"),
        ({"class_features": np.zeros((len(NAMES), DIM))}, "zeros"),
        ({"class_names": ("cat", "cat", "dog", "cow", "hen")}, "different"),
        ({"class_names": ("a\nb", "cat", "dog", "cow", "hen")}, "one line"),
        ({"vocabulary": (["otter"], np.ones((2, DIM)))}, "vocabulary features"),
        ({"sample_images": []}, "at least one readable image"),
    ],
)
def test_wrong_use_is_refused(resnet_folder, photos, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        export(resnet_folder, tmp_path / "bundle", photos, **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("option", "value"), [("threshold", 1.5), ("parity_images", 0)])
def test_an_impossible_setting_is_refused(option, value):
    with pytest.raises(UsageError, match=str(value)):
        ExportConfig(**{option: value})


def test_an_unreadable_sample_image_is_named(resnet_folder, photos, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not a picture")
    with pytest.raises(AttarError, match=r"broken\.jpg cannot be read"):
        export(resnet_folder, tmp_path / "bundle", [str(broken), *photos])
    assert list(tmp_path.iterdir()) == [broken]

"""The one door: teacher, store, student, trunk, constant and bundle, each a real one."""

import pickle
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from colours import CLASSES, COLOURS, IMAGES, ColourModel

from attar.data.images import read_image
from attar.errors import AttarError, UsageError
from attar.evaluation.features import features_of
from attar.evaluation.metrics import mean_cosine, unit
from attar.evaluation.models import (
    from_constant,
    from_store,
    from_student,
    from_teacher,
    from_trunk,
    open_model,
)
from attar.evaluation.tasks import evaluate_models
from attar.store.store import Store
from attar.store.writer import StoreWriter
from attar.students.config import StudentConfig
from attar.students.student import build_student, save_student
from attar.teachers.base import TeacherInfo

SIZE = 32
TEACHER = TeacherInfo(name="colour", identity="c" * 64, dim=3, logit_scale=20.0)


class ColourTeacher:
    """A teacher of three dimensions, its preprocessing an ordinary one."""

    info = TEACHER
    towers = None

    def __init__(self) -> None:
        preprocess = open_clip.image_transform(16, is_train=False, mean=(0,) * 3, std=(1,) * 3)
        self.prepare = preprocess
        self.network = ColourModel()

    def encode_images(self, pixels):
        return self.network(pixels * 255)

    def encode_texts(self, texts):
        return torch.eye(3)[: len(texts)]


def make_student(name="mobilenetv3_small_050", dim=3, class_names=()):
    torch.manual_seed(0)
    config = StudentConfig(weights="none", image_size=SIZE)
    return build_student(name, dim, config, class_names=class_names, logit_scale=20.0)


def test_a_teacher_gives_what_it_gives_by_hand(table, tmp_path):
    model = from_teacher(ColourTeacher())
    assert (model.role, model.name, model.dim, model.logit_scale) == ("teacher", "colour", 3, 20.0)
    features = features_of(model, table, tmp_path / "f.safetensors", workers=2, batch_size=3)
    assert np.allclose(features, COLOURS, atol=1e-6)


def test_another_clip_model_has_a_space_of_its_own():
    model = from_teacher(ColourTeacher(), role="another", class_features=torch.eye(3).double())
    assert not model.in_teacher_space
    assert model.class_features.dtype == np.float32


def test_a_store_answers_in_the_tables_order_without_the_teacher(table, tmp_path):
    with StoreWriter.open(tmp_path / "store", TEACHER) as writer:
        order = [5, 1, 0, 7, 2, 3, 6, 4]
        part = table.select(order)
        writer.add_images(part.keys, part.names, "clean", COLOURS[order])
    model = from_store(Store.open(tmp_path / "store"))
    assert (model.role, model.name, model.logit_scale) == ("teacher", "colour", 20.0)
    features = features_of(model, table, tmp_path / "never-written")
    assert features.dtype == np.float32
    assert np.allclose(features, unit(COLOURS), atol=1e-3)
    assert not (tmp_path / "never-written").exists()


def test_a_store_that_lacks_images_says_how_to_add_them(table, tmp_path):
    with StoreWriter.open(tmp_path / "store", TEACHER) as writer:
        part = table.select([0, 1])
        writer.add_images(part.keys, part.names, "clean", COLOURS[:2])
    with pytest.raises(AttarError, match="attar embed"):
        features_of(from_store(Store.open(tmp_path / "store")), table, tmp_path / "f")


def test_a_student_gives_what_it_gives_by_hand(table, tmp_path):
    student = make_student().train()
    model = from_student(student, method="feature-mse", pretrained="runs/a")
    features = features_of(model, table, tmp_path / "f.safetensors", batch_size=3)
    assert student.training
    pixels = torch.stack([model.prepare(read_image(path)) for path in table.paths])
    assert pixels.shape == (8, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = student.eval()(pixels / 255).features
    assert np.allclose(features, expected.numpy(), atol=1e-5)
    assert (model.name, model.head, model.logit_scale) == (
        "timm/mobilenetv3_small_050", "embedding", 20.0,
    )  # fmt: skip
    assert pickle.loads(pickle.dumps(model.prepare)) == model.prepare


def test_a_students_identity_follows_its_weights():
    student = make_student()
    before = from_student(student).identity
    assert from_student(make_student()).identity == before
    assert from_student(student, logit_scale=7.0).identity == before
    with torch.no_grad():
        next(student.parameters()).view(-1)[0] += 1e-3
    assert from_student(student).identity != before


def test_a_plain_classifiers_logits_are_not_scaled_unless_asked():
    student = make_student(dim=3, class_names=CLASSES)
    assert from_student(student).logit_scale == 1.0
    assert from_student(student).class_names == CLASSES
    assert from_student(student, logit_scale=0.5).logit_scale == 0.5


def test_trunk_features_through_the_projection_are_the_features(table, tmp_path):
    student = make_student()
    trunk = features_of(from_trunk(student), table, tmp_path / "trunk")
    assert trunk.shape == (8, student.projection().in_features)
    with torch.no_grad():
        projected = student.projection()(torch.from_numpy(trunk)).numpy()
    features = features_of(from_student(student), table, tmp_path / "features")
    assert np.allclose(projected, features, atol=1e-5)


def test_the_constant_model_answers_every_image_alike(table, tmp_path):
    model = from_constant(np.array([0.6, 0.8, 0.0]), TEACHER)
    features = features_of(model, table, tmp_path / "never-written")
    assert features.shape == (len(IMAGES), 3)
    assert mean_cosine(features, np.tile([3.0, 4.0, 0.0], (8, 1))) == pytest.approx(1)


def test_open_model_finds_students_in_runs_and_folders(table, tmp_path):
    student = make_student()
    save_student(student, tmp_path / "run" / "student")
    for path in (tmp_path / "run", tmp_path / "run" / "student"):
        model = open_model(path, role="mine", method="feature-mse")
        assert model.identity == from_student(student).identity
        assert (model.role, model.pretrained, model.method) == ("mine", str(path), "feature-mse")


def test_open_model_refuses_what_is_none(tmp_path):
    with pytest.raises(UsageError, match="no student"):
        open_model(tmp_path)
    with pytest.raises(UsageError, match="not a folder"):
        open_model(tmp_path / "missing")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    from colours import write_images

    from attar.export.bundle import export_bundle
    from attar.export.config import BundleFacts, ExportConfig

    folder = tmp_path_factory.mktemp("exported")
    table = write_images(folder / "images")
    save_student(make_student("resnet10t"), folder / "student")
    facts = BundleFacts(teacher="colour", method="feature-mse", logit_scale=15.0)
    return export_bundle(
        folder / "student",
        folder / "bundle",
        class_features=np.eye(3),
        class_names=CLASSES,
        sample_images=table.paths,
        config=ExportConfig(),
        extras=facts,
    )


def test_a_bundle_is_measured_beside_the_student_it_was_made_of(bundle, table, tmp_path):
    student = open_model(bundle.parent / "student")
    deployed = open_model(bundle, role="bundle")
    assert (deployed.name, deployed.method) == ("timm/resnet10t", "feature-mse")
    assert (deployed.logit_scale, deployed.dim) == (15.0, 3)
    models = [from_teacher(ColourTeacher()), student, deployed]
    records = evaluate_models(models, table, "test_id", np.eye(3), tmp_path, "colours")
    of = {
        role: {(r.task, r.domain): r.metrics for r in records if r.role == role}
        for role in ("student", "bundle")
    }
    assert of["student"].keys() == of["bundle"].keys()
    for key, metrics in of["student"].items():
        for name in set(metrics) - {"ece"}:  # the scales differ, and the confidence with them
            assert of["bundle"][key][name] == pytest.approx(metrics[name], abs=1e-3)

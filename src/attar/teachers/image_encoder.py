"""A teacher's image encoder as a timm network: where white-box students start from.

A student is `timm.create_model(name, num_classes=D)`, whose classifier is the projection into the
joint space. Towers that are such a network under another name are translated: that of the pocket
teacher, OpenCLIP's timm towers, and by timm's own conversion of CLIP's files OpenCLIP's ViTs and
ResNets.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import timm
import torch
from timm.models import byobnet, vision_transformer
from torch import Tensor, nn

from attar.errors import UsageError
from attar.teachers.base import Teacher
from attar.teachers.normalisation import Channels, normalisation_of

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class ImageEncoder:
    """A teacher's image tower, told as a timm network and its preprocessing."""

    architecture: str
    """timm's name."""
    weights: Callable[[nn.Module], State]
    """From a network of this architecture with D outputs to its weights; positions are resampled
    where a ViT of another image size is given."""
    image_size: int
    interpolation: str
    crop_pct: float
    mean: Channels = (0.5, 0.5, 0.5)
    std: Channels = (0.5, 0.5, 0.5)
    """Of the pixels that the teacher is shown."""


def find_image_encoder(teacher: Teacher) -> ImageEncoder:
    """Return the teacher's image tower as a timm network.

    Raises:
        UsageError: the teacher shows no tower (a service, say), or one of another kind.
    """
    if teacher.towers is None:
        raise _refused(teacher, "it does not show its image tower")
    tower: Any = teacher.towers.image
    kind = f"{type(tower).__module__}.{type(tower).__qualname__}"
    if kind not in IMAGE_ENCODERS:
        raise _refused(teacher, f"its image tower is a {type(tower).__name__}")
    mean, std = normalisation_of(teacher)
    return replace(IMAGE_ENCODERS[kind](teacher, tower), mean=mean, std=std)


def _refused(teacher: Teacher, reason: str) -> UsageError:
    return UsageError(
        f"the student cannot start from teacher {teacher.info.name!r}: {reason}; it works with the "
        "pocket teacher and with OpenCLIP's ViTs, ResNets and timm towers"
    )


def _pocket(teacher: Teacher, tower: Any) -> ImageEncoder:
    """Return EfficientNet-Lite2 with its BatchNorms, which the teacher has folded away."""
    from attar.teachers.pocket import BACKBONE, PREPROCESSING, load_backbone

    backbone = load_backbone().network.state_dict()
    head = {f"classifier.{name}": tensor for name, tensor in tower.head.state_dict().items()}
    values: dict[str, Any] = PREPROCESSING
    return ImageEncoder(
        architecture=BACKBONE,
        weights=lambda network: _copied({**backbone, **head}),
        image_size=values["input_size"][-1],
        interpolation=values["interpolation"],
        crop_pct=values["crop_pct"],
    )


def _openclip_vit(teacher: Teacher, tower: Any) -> ImageEncoder:
    """Return OpenCLIP's own ViT under timm's name for its shape."""
    blocks = tower.transformer.resblocks
    shape = (tower.conv1.out_channels, len(blocks), tower.patch_size[0])
    stem = _VIT_STEMS.get(shape)
    quick = "quickgelu_" if _has(tower, "QuickGELU") else ""
    size = _image_size(tower)
    names = [f"{stem}_clip_{quick}{side}" for side in (size, 224, 240)]
    name = next((name for name in names if timm.is_model(name)), None)
    if name is None:
        raise _refused(
            teacher, "timm has no ViT of width {}, {} layers and patch {}".format(*shape)
        )
    state = {f"visual.{key}": value for key, value in tower.state_dict().items()}
    return _openclip(tower, name, lambda network: _as_vit(state, network))


def _openclip_resnet(teacher: Teacher, tower: Any) -> ImageEncoder:
    """Return OpenCLIP's ResNet with attention pooling under timm's name for its depths."""
    depths = tuple(len(getattr(tower, f"layer{i}")) for i in (1, 2, 3, 4))
    name = _RESNETS.get((*depths, tower.conv1.out_channels))
    if name is None:
        raise _refused(teacher, f"timm has no CLIP ResNet with {depths} blocks")
    state = {f"visual.{key}": value for key, value in tower.state_dict().items()}
    convert: Any = byobnet.checkpoint_filter_fn
    return _openclip(tower, name, lambda network: _copied(convert(state, network)))


def _openclip_timm(teacher: Teacher, tower: Any) -> ImageEncoder:
    """Return the trunk of an OpenCLIP timm tower; what stands behind it becomes its classifier."""
    trunk = tower.trunk
    classifier = trunk.pretrained_cfg["classifier"]
    parts = {name for name, _ in tower.head.named_children()} - {"drop"}
    if parts - {"proj"} or not isinstance(classifier, str):
        raise _refused(
            teacher, f"its image tower ends in {', '.join(sorted(parts)) or 'two heads'}"
        )
    state, dim = trunk.state_dict(), teacher.info.dim
    if parts:
        state[f"{classifier}.weight"] = tower.head.proj.weight
        bias = tower.head.proj.bias
        state[f"{classifier}.bias"] = torch.zeros(dim) if bias is None else bias
    elif f"{classifier}.weight" not in state:
        # The pooled features are the joint space: the projection begins as the identity.
        state |= {f"{classifier}.weight": torch.eye(dim), f"{classifier}.bias": torch.zeros(dim)}
    is_vit = isinstance(trunk, vision_transformer.VisionTransformer)
    return _openclip(
        tower,
        trunk.pretrained_cfg["architecture"],
        lambda network: _as_vit(state, network) if is_vit else _copied(state),
    )


def _openclip(tower: Any, name: str, weights: Callable[[nn.Module], State]) -> ImageEncoder:
    return ImageEncoder(
        architecture=name,
        weights=weights,
        image_size=_image_size(tower),
        interpolation=tower.preprocess_cfg["interpolation"],
        crop_pct=1.0,
    )


def _image_size(tower: Any) -> int:
    size = tower.preprocess_cfg["size"]
    return int(size if isinstance(size, int) else size[0])


def _as_vit(state: State, network: nn.Module) -> State:
    """Translate CLIP's names where they are CLIP's, and resample positions to the network's."""
    convert: Any = vision_transformer.checkpoint_filter_fn
    return _copied(convert(dict(state), network))


def _copied(state: State) -> State:
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def _has(module: nn.Module, layer: str) -> bool:
    return any(type(one).__name__ == layer for one in module.modules())


_VIT_STEMS = {
    (256, 10, 16): "vit_xsmall_patch16",
    (512, 12, 16): "vit_medium_patch16",
    (512, 12, 32): "vit_medium_patch32",
    (768, 12, 16): "vit_base_patch16",
    (768, 12, 32): "vit_base_patch32",
    (896, 12, 16): "vit_base_patch16_plus",
    (1024, 24, 14): "vit_large_patch14",
    (1280, 32, 14): "vit_huge_patch14",
    (1408, 40, 14): "vit_giant_patch14",
    (1664, 48, 14): "vit_gigantic_patch14",
}
"""(width, layers, patch) of OpenCLIP's ViTs -> what timm's names for them begin with."""

_RESNETS: dict[tuple[int, ...], str] = {
    (3, 4, 6, 3, 32): "resnet50_clip",
    (3, 4, 23, 3, 32): "resnet101_clip",
    (4, 6, 10, 6, 40): "resnet50x4_clip",
    (6, 8, 18, 8, 48): "resnet50x16_clip",
    (3, 15, 36, 10, 64): "resnet50x64_clip",
}
"""Blocks of each stage and width of the first convolution -> timm's name."""

# By name, so that OpenCLIP, which takes seconds to import, is not imported for other teachers.
IMAGE_ENCODERS: dict[str, Callable[[Teacher, Any], ImageEncoder]] = {
    "attar.teachers.pocket.ImageTower": _pocket,
    "open_clip.modified_resnet.ModifiedResNet": _openclip_resnet,
    "open_clip.timm_model.TimmModel": _openclip_timm,
    "open_clip.transformer.VisionTransformer": _openclip_vit,
}
"""Class of a teacher's image tower -> what tells it as a timm network."""

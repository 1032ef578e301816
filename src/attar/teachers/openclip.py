"""OpenCLIP teachers: built-in names with a tag, models on the hub, and model folders.

The features are those of `open_clip.create_model(...).encode_image` and `.encode_text` in fp32;
the preprocessing is the one OpenCLIP restores for the weights.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor, nn

from attar.errors import AttarError, UsageError, unknown_name
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

log = logging.getLogger(__name__)

CONFIG_FILE = "open_clip_config.json"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth")  # where OpenCLIP looks, in this order


class ImageTower(nn.Module):
    """Pixels [N, 3, H, W] to the features [N, D] of `encode_image`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, pixels: Tensor) -> Tensor:
        """Return unnormalised features."""
        return self.model.encode_image(pixels)


class TextTower(nn.Module):
    """Token ids [N, L] to the features [N, D] of `encode_text`.

    It holds the whole model, because OpenCLIP's plain CLIP class keeps the parts of the text tower
    (`token_embedding`, `transformer`, `ln_final`, …) in the model itself.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Return unnormalised features."""
        return self.model.encode_text(tokens)


def check_builtin(value: str) -> TeacherSpec:
    """Check "MODEL/TAG" or "MODEL,TAG" (or "MODEL,FILE") against OpenCLIP's lists."""
    model, tag = split_builtin(value)
    names = {name.lower(): name for name in open_clip.list_models()}
    if model.lower() not in names:
        kind = "teacher (no OpenCLIP model, no folder, not 'pocket')"
        raise unknown_name(kind, model, [*names.values(), "pocket"])
    model = names[model.lower()]
    tags = open_clip.list_pretrained_tags_by_model(model)
    if not tag:
        weights = (
            f"name one: {model}/{tags[0]} (known tags: {', '.join(tags)})"
            if tags
            else f"OpenCLIP publishes none for it; give a file as {model},WEIGHTS.pt"
        )
        raise UsageError(f"teacher {value!r} names a model but not its weights; {weights}")
    if open_clip.is_pretrained_cfg(model, tag):
        tag = tag.lower().replace("-", "_")
    elif not Path(tag).is_file():
        if Path(tag).suffix in {".pt", ".safetensors", ".bin", ".pth"}:
            raise UsageError(f"the weights file {tag} of teacher {value!r} does not exist")
        raise unknown_name(f"pretrained tag of OpenCLIP's {model}", tag, tags)
    name = f"{model}/{tag}"
    _check_text_config(open_clip.get_model_config(model), name)
    return TeacherSpec(kind="open_clip", value=value, name=name, licence=licence_line(name))


def split_builtin(value: str) -> tuple[str, str]:
    """Split "MODEL,TAG" or "MODEL/TAG" (OpenAI's "ViT-B/32" too) into model and tag or ""."""
    model, _, tag = value.partition(",")
    if not tag and not _is_model(model):
        model, _, tag = model.rpartition("/") if "/" in model else (model, "", "")
    return model.strip().replace("/", "-"), tag.strip()


def _is_model(name: str) -> bool:
    wanted = name.replace("/", "-").lower()
    return any(wanted == known.lower() for known in open_clip.list_models())


def check_hub(value: str) -> TeacherSpec:
    """Check the form of an "org/name" on the Hugging Face hub; nothing is fetched."""
    if value.count("/") != 1 or not all(value.split("/")):
        raise UsageError(f"teacher 'hf-hub:{value}' should read hf-hub:ORGANISATION/NAME")
    name = f"hf-hub:{value}"
    return TeacherSpec(kind="hf-hub", value=value, name=name, licence=licence_line(value))


def check_folder(value: str) -> TeacherSpec:
    """Check a folder saved by OpenCLIP: its configuration and its weights file."""
    folder, name = Path(value).expanduser(), f"local-dir:{value}"
    if not folder.is_dir():
        raise UsageError(
            f"the folder {value} of teacher {name!r} does not exist; give one saved by OpenCLIP"
        )
    if not (folder / CONFIG_FILE).is_file():
        way_out = "use 'hf:PATH'" if (folder / "config.json").is_file() else "save it with OpenCLIP"
        raise UsageError(f"{value} is no OpenCLIP model: it lacks {CONFIG_FILE}; {way_out}")
    try:
        config = read_json(folder / CONFIG_FILE)
    except AttarError as error:
        raise UsageError(f"{folder / CONFIG_FILE} is not valid JSON; save it again") from error
    model = config.get("model_cfg") if isinstance(config, dict) else None
    if not isinstance(model, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= set(model):
        raise UsageError(
            f"{folder / CONFIG_FILE} lacks 'model_cfg' with embed_dim, vision_cfg and text_cfg"
        )
    if not any(path.suffix in WEIGHT_SUFFIXES for path in folder.iterdir()):
        raise UsageError(
            f"{value} holds no weights; put open_clip_model.safetensors beside {CONFIG_FILE}"
        )
    _check_text_config(model, name)
    return TeacherSpec(kind="local-dir", value=str(folder), name=name)


def _check_text_config(model_config: dict[str, Any], name: str) -> None:
    text = model_config["text_cfg"]
    if text.get("hf_model_name") or text.get("hf_tokenizer_name"):
        require_transformers(name)


def load_openclip(spec: TeacherSpec, device: torch.device) -> FrozenTeacher:
    """Load a checked OpenCLIP teacher (kinds "open_clip", "hf-hub" and "local-dir").

    Raises `UsageError` in one line when the weights cannot be fetched, read or run.
    """
    model, tokenizer, config = _create(spec)
    prepare_config = dict(model.visual.preprocess_cfg)
    plain = isinstance(model, open_clip.CLIP)
    custom = isinstance(model, open_clip.CustomTextCLIP)
    towers = Towers(
        image=model.visual if plain or custom else ImageTower(model),
        text=model.text if custom else TextTower(model),
        tokenizer=tokenizer,
    )
    freeze(towers, torch.device("cpu"))  # OpenCLIP hands models back in training mode
    size = PreprocessCfg(**prepare_config).input_size
    dim = check_towers(towers, torch.zeros(1, *size), tokenizer(["a photo"]), spec.name)
    info = TeacherInfo(
        name=spec.name,
        identity=weights_identity(
            model.state_dict(),
            prepare_config,
            _architecture(config),
            tokenizer(list(PROBE_TEXTS)).tolist(),
        ),
        dim=dim,
        logit_scale=model.logit_scale.detach().exp().mean().item(),
        licence=spec.licence,
    )
    freeze(towers, device)
    return FrozenTeacher(
        info=info,
        prepare=image_transform_v2(PreprocessCfg(**prepare_config), is_train=False),
        towers=towers,
        count_cut=lambda texts: count_cut(tokenizer, texts),
        device=device,
    )


def _create(spec: TeacherSpec) -> tuple[Any, Any, dict[str, Any]]:
    """Return the model, its tokenizer and its configuration; every failure is one line."""
    try:
        name, options = _CREATE[spec.kind](spec)
    except UsageError:
        raise
    except Exception as error:  # a hub fails in many ways: no network, no such name, no rights
        raise cannot_fetch(spec.name, error) from error
    try:
        config = open_clip.get_model_config(name)
        # Without require_pretrained, missing weights are only a warning and random numbers.
        model = open_clip.create_model(name, require_pretrained=True, **options)
        return model, open_clip.get_tokenizer(name), config
    except OSError as error:
        if spec.kind == "local-dir":
            raise _broken(spec, error) from error
        raise cannot_fetch(spec.name, error) from error  # parts of a text tower from the hub
    except Exception as error:  # torch, safetensors, timm and transformers each raise their own
        raise _broken(spec, error) from error


def _broken(spec: TeacherSpec, error: Exception) -> UsageError:
    return UsageError(
        f"teacher {spec.name!r} cannot be loaded ({one_line(error)}); "
        "its files are incomplete or do not belong together: save or download it again"
    )


def _builtin_options(spec: TeacherSpec) -> tuple[str, dict[str, Any]]:
    model, _, tag = spec.name.partition("/")
    tag_config = open_clip.get_pretrained_cfg(model, tag)
    if tag_config:
        download_pretrained(tag_config)
    options: dict[str, Any] = {"pretrained": tag}
    if needs_quick_gelu(model, tag):
        log.info("%s was trained with QuickGELU; it is used here", spec.name)
        options["force_quick_gelu"] = True
    return model, options


def needs_quick_gelu(model: str, tag: str) -> bool:
    """Say whether weights were trained with QuickGELU while the model's name means exact GELU.

    OpenCLIP 3 only warns about this ("ViT-B-32" with "openai") and computes other features than
    the published model's.
    """
    trained_with = open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", False)
    return bool(trained_with and not open_clip.get_model_config(model).get("quick_gelu", False))


def _hub_options(spec: TeacherSpec) -> tuple[str, dict[str, Any]]:
    download_pretrained_from_hf(spec.value, filename=CONFIG_FILE)
    download_pretrained_from_hf(spec.value)
    return f"hf-hub:{spec.value}", {}


def _folder_options(spec: TeacherSpec) -> tuple[str, dict[str, Any]]:
    text = read_json(Path(spec.value) / CONFIG_FILE)["model_cfg"]["text_cfg"]
    options: dict[str, Any] = {}
    if text.get("hf_model_name") and (Path(spec.value) / "config.json").is_file():
        # The path in the file is that of the machine which saved it; the folder holds the same
        # configuration, and the tower's weights are in the checkpoint.
        folder = str(Path(spec.value).resolve())
        options["text_cfg"] = {**text, "hf_model_name": folder, "hf_model_pretrained": False}
    return f"local-dir:{spec.value}", options


_CREATE = {"open_clip": _builtin_options, "hf-hub": _hub_options, "local-dir": _folder_options}


def model_config(spec: TeacherSpec) -> dict[str, Any]:
    """Return the `model_cfg` of a teacher that was loaded, with the GELU that it is used with."""
    name, options = _CREATE[spec.kind](spec)
    config: dict[str, Any] = open_clip.get_model_config(name)
    return {**config, "quick_gelu": True} if options.get("force_quick_gelu") else config


def _architecture(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration without what says where files are or whether to fetch weights."""
    places = {"hf_model_name", "hf_tokenizer_name", "hf_model_pretrained", "timm_model_pretrained"}
    return {
        key: {k: v for k, v in part.items() if k not in places} if isinstance(part, dict) else part
        for key, part in config.items()
    }


def count_cut(tokenizer: Any, texts: Sequence[str]) -> int:
    """Count the texts that `tokenizer` cuts: those with more tokens where there is more room."""
    room = tokenizer.context_length
    inner = getattr(tokenizer, "tokenizer", None)
    padding = (inner.pad_token_id if inner is not None else 0) or 0
    lengths = (tokenizer(list(texts)) != padding).sum(dim=1)
    full = [text for text, length in zip(texts, lengths.tolist(), strict=True) if length == room]
    if not full:
        return 0
    longer = (tokenizer(full, context_length=room + 1) != padding).sum(dim=1)
    return int((longer > room).sum())

"""The student as an OpenCLIP model: its timm network, and the teacher's text tower beside it.

`open_clip.create_model_and_transforms("local-dir:PATH")` and `open_clip.get_tokenizer` of the
folder give attar's features. OpenCLIP itself reads it back on real images and texts first; without
that proof there is no folder.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import attar
from attar.data.images import read_image
from attar.data.transforms import eval_transform
from attar.errors import AttarError, UsageError
from attar.export.card import data_text, licence_text, results_table
from attar.export.config import BundleFacts, OpenCLIPConfig
from attar.files import atomic_folder, check_writable, write_json, write_text
from attar.students.student import Student, StudentSpec, load_student
from attar.teachers.base import Teacher
from attar.teachers.loading import TeacherSpec
from attar.teachers.normalisation import as_known
from attar.teachers.openclip import CONFIG_FILE, TextTower, load_openclip, model_config
from attar.teachers.registry import describe_teacher_spec, load_teacher

WEIGHTS_FILE = "open_clip_model.safetensors"
FACTS_FILE = "export.json"
TOLERANCE = 1e-5
"""Largest difference of any value of a unit feature, or of a normalised pixel."""
_KINDS = ("open_clip", "hf-hub", "local-dir")
_INTERPOLATIONS = ("bicubic", "bilinear")
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class OpenCLIPParity:
    """How far the folder, read by OpenCLIP, is from the student and its teacher's text tower."""

    images: int
    texts: int
    max_pixel_difference: float
    """Largest difference of any pixel as the network sees it."""
    max_image_difference: float
    """Largest difference of any value of an image's unit feature."""
    max_text_difference: float
    """Largest difference of any value of a text's unit feature."""


def export_openclip(
    student_folder: Path,
    out: Path,
    *,
    sample_images: Sequence[str],
    sample_texts: Sequence[str],
    config: OpenCLIPConfig,
    facts: BundleFacts,
) -> Path:
    """Write the student with its teacher's text tower as an OpenCLIP folder, and prove it.

    Args:
        student_folder: the student, or the run folder that holds it.
        out: the folder; an older export there is replaced once the new one is whole.
        sample_images: paths of real images to compare on.
        sample_texts: texts to compare on.
        config: settings.
        facts: the student's origin and results, for the card.

    Raises:
        UsageError: OpenCLIP cannot express this student, or its teacher is none of OpenCLIP's.
        AttarError: the folder, read back, does not give attar's features; then there is none.
    """
    student, place = load_student(student_folder), str(student_folder)
    checked = check_openclip(student.spec, config, place)
    if config.whole_image:
        if student.spec.crop_pct != 1:  # what was measured on the crop does not hold
            facts = replace(facts, metrics=())
        student.spec = replace(student.spec, crop_pct=1.0)
    teacher = _load_same_teacher(student.spec, checked)
    state = _state(student, teacher)
    _check_place(out, sum(tensor.nbytes for tensor in state.values()))
    if not sample_images or not sample_texts:
        raise UsageError("export needs an image and a text to prove on")
    with atomic_folder(out) as folder:
        save_file(state, folder / WEIGHTS_FILE)
        document = {
            "model_cfg": _model_config(student, teacher, checked, folder, out),
            "preprocess_cfg": _preprocess_config(student.spec),
        }
        write_json(folder / CONFIG_FILE, document)
        parity = prove(student, teacher, folder, sample_images, sample_texts)
        write_json(folder / FACTS_FILE, _facts(student.spec, facts, parity))
        write_text(folder / "README.md", _card(student.spec, facts, parity))
    return out


def check_openclip(spec: StudentSpec, config: OpenCLIPConfig, place: str) -> TeacherSpec:
    """Refuse what OpenCLIP cannot express; load nothing. Returns the checked teacher.

    Args:
        spec: the student's.
        config: settings.
        place: where the student is, for the message.

    Raises:
        UsageError: with the reason and the way out.
    """
    way_out = f'load its image tower alone: timm.create_model("local-dir:{place}/student")'
    if spec.head == "classes":
        raise UsageError(
            f"{place} is a plain classifier, which has no texts to be compared with; {way_out}"
        )
    name = config.teacher or spec.teacher
    try:
        checked = describe_teacher_spec(name)
    except UsageError as error:  # a folder that moved, say
        raise UsageError(f"{error} (--teacher says where it is now)") from error
    if checked.kind not in _KINDS:
        raise UsageError(
            f"{place} was distilled from {name}, whose text tower is none of OpenCLIP's; {way_out}"
        )
    if not timm.is_model(spec.name):
        raise UsageError(f"{place}: {spec.name} is no timm model, which OpenCLIP asks timm for")
    own: Any = timm.get_pretrained_cfg(spec.name)
    if own.fixed_input_size and spec.image_size != own.input_size[-1]:
        raise UsageError(
            f"{spec.name} at {spec.image_size} px is beyond OpenCLIP, which tells timm no image "
            f"size and so builds it for {own.input_size[-1]} px; train it at that size, or "
            f"{way_out}"
        )
    for there, what in ((spec.projector == "mlp", "projector"), (spec.gelu, "GELU")):
        if there:
            raise UsageError(
                f"{place}: OpenCLIP has no place for the {what} behind this student's projection; "
                "use attar export without --format openclip"
            )
    if spec.interpolation not in _INTERPOLATIONS:
        raise UsageError(
            f"{spec.name} sees images resized by {spec.interpolation}, and OpenCLIP knows "
            f"{' and '.join(_INTERPOLATIONS)} only; {way_out}"
        )
    if spec.crop_pct != 1 and not config.whole_image:
        raise UsageError(
            f"{spec.name} evaluates on the middle {spec.crop_pct:g} of the shorter side and "
            "OpenCLIP keeps all of it: add --whole-image to export it so (and measure it again), "
            "or train with --student.crop-pct 1"
        )
    return checked


def prove(
    student: Student, teacher: Teacher, folder: Path, images: Sequence[str], texts: Sequence[str]
) -> OpenCLIPParity:
    """Let OpenCLIP load the folder and compare pixels, image features and text features.

    Raises:
        AttarError: it cannot be loaded, or a difference is above `TOLERANCE`; the number is given.
    """
    try:
        loaded = load_openclip(
            TeacherSpec(kind="local-dir", value=str(folder), name=student.spec.name), _CPU
        )
    except UsageError as error:
        raise AttarError(f"OpenCLIP cannot read {student.spec.name} back: {error}") from error
    spec = student.spec
    transform = eval_transform(spec.image_size, spec.crop_pct, spec.interpolation)
    pixels, features = 0.0, 0.0
    for path in images:
        image = read_image(path)
        own, theirs = transform(image)[None].float() / 255, loaded.prepare(image)[None]
        pixels = max(pixels, _difference((own - student.mean) / student.std, theirs))
        with torch.no_grad():
            expected = student(own).features
        features = max(features, _unit_difference(expected, loaded.encode_images(theirs)))
    parity = OpenCLIPParity(
        images=len(images),
        texts=len(texts),
        max_pixel_difference=pixels,
        max_image_difference=features,
        max_text_difference=_unit_difference(
            teacher.encode_texts(texts), loaded.encode_texts(texts)
        ),
    )
    for what in ("pixel", "image", "text"):
        difference = getattr(parity, f"max_{what}_difference")
        if not difference <= TOLERANCE:
            raise AttarError(
                f"{spec.name} read by OpenCLIP is not the student, nothing was written: a value of "
                f"its {what}s differs by {difference:.1e} (allowed {TOLERANCE:.0e})"
            )
    return parity


def _difference(own: Tensor, theirs: Tensor) -> float:
    """Return the largest difference; NaN, which no bound allows, where one is not finite."""
    if own.shape != theirs.shape:
        return math.nan
    return float((own - theirs).abs().max())


def _unit_difference(own: Tensor, theirs: Tensor) -> float:
    return _difference(F.normalize(own, dim=-1), F.normalize(theirs, dim=-1))


def _load_same_teacher(spec: StudentSpec, checked: TeacherSpec) -> Teacher:
    teacher = as_known(load_teacher(checked.name, _CPU), spec.teacher_identity)
    if teacher.info.identity != spec.teacher_identity:
        raise UsageError(
            f"{checked.name} is not the teacher that the student was distilled from: its weights "
            "or its preprocessing differ; give the same with --teacher"
        )
    return teacher


def _check_place(out: Path, weights: int) -> None:
    """Refuse to replace anything but an older export, and a disk too small for two copies."""
    if (
        out.exists()
        and not (out / FACTS_FILE).is_file()
        and (not out.is_dir() or any(out.iterdir()))
    ):
        raise UsageError(
            f"{out} exists and is no OpenCLIP export; choose another --out or remove it"
        )
    check_writable(out, needed_bytes=2 * weights)


def _state(student: Student, teacher: Teacher) -> dict[str, Tensor]:
    """Return the weights under the names of OpenCLIP's `CustomTextCLIP`."""
    image = {f"visual.trunk.{k}": v for k, v in student.network.state_dict().items()}
    scale = torch.tensor(math.log(student.spec.logit_scale))
    state = {**image, **_text_state(_text_tower(teacher)), "logit_scale": scale}
    return {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}


def _text_tower(teacher: Teacher) -> Any:
    assert teacher.towers is not None  # OpenCLIP teachers give theirs
    return teacher.towers.text


def _text_state(tower: nn.Module) -> dict[str, Tensor]:
    if not isinstance(tower, TextTower):
        return {f"text.{k}": v for k, v in tower.state_dict().items()}
    state: Mapping[str, Tensor] = tower.model.state_dict()
    # OpenCLIP's plain CLIP class keeps the parts of its text tower in the model itself.
    plain = {f"text.{k}": v for k, v in state.items() if not k.startswith(("visual.", "logit_"))}
    return {k: v for k, v in state.items() if k.startswith("text.")} or plain


def _model_config(
    student: Student, teacher: Teacher, checked: TeacherSpec, folder: Path, out: Path
) -> dict[str, Any]:
    """Return `model_cfg`, the files of its tokenizer written to `folder`, which becomes `out`."""
    config = model_config(checked)
    text = {**config["text_cfg"], "output_tokens": False}
    tokenizer: Any = teacher.towers.tokenizer if teacher.towers else None
    # A folder's tokenizer is read from the folder whatever the name says, but its text tower's
    # configuration from where the name says; attar looks beside the weights first.
    if text.get("hf_tokenizer_name"):
        tokenizer.save_pretrained(folder)
        text["hf_tokenizer_name"] = str(out.resolve())
    if text.get("hf_model_name"):
        _text_tower(teacher).config.save_pretrained(folder)
        text |= {"hf_model_name": str(out.resolve()), "hf_model_pretrained": False}
    return {
        "embed_dim": student.spec.dim,
        "custom_text": True,
        "quick_gelu": bool(config.get("quick_gelu", False)),
        "vision_cfg": {
            "timm_model_name": student.spec.name,
            "timm_model_pretrained": False,
            "timm_pool": _pooling(student.network),
            # Without a projection of its own OpenCLIP takes timm's classifier for it. Asked for
            # one it removes the classifier, and with it the last layer of, say, a MobileNetV3.
            "timm_proj": None,
            "image_size": student.spec.image_size,
        },
        "text_cfg": text,
    }


def _pooling(network: nn.Module) -> str:
    """Return the name of a timm network's pooling, which OpenCLIP hands back to timm."""
    for part in (network, getattr(network, "head", None)):
        pooling = getattr(part, "global_pool", None)
        name = pooling if isinstance(pooling, str) else getattr(pooling, "pool_type", None)
        if isinstance(name, str):
            return name
    return "avg"


def _preprocess_config(spec: StudentSpec) -> dict[str, Any]:
    return {
        "size": [spec.image_size, spec.image_size],
        "mode": "RGB",
        "mean": list(spec.mean),
        "std": list(spec.std),
        "interpolation": spec.interpolation,
        "resize_mode": "shortest",
        "fill_color": 0,
    }


def _facts(spec: StudentSpec, facts: BundleFacts, parity: OpenCLIPParity) -> dict[str, Any]:
    return {
        "format": "openclip",
        "attar_version": attar.__version__,
        "student": spec.name,
        "image_size": spec.image_size,
        "dim": spec.dim,
        "logit_scale": spec.logit_scale,
        "method": facts.method,
        "teacher": facts.teacher,
        "teacher_identity": spec.teacher_identity,
        "licence": facts.licence,
        "parity": asdict(parity),
    }


def _card(spec: StudentSpec, facts: BundleFacts, parity: OpenCLIPParity) -> str:
    """Return the model card, as the Hugging Face hub shows it."""
    worst = max(parity.max_image_difference, parity.max_text_difference)
    return f"""---
library_name: open_clip
pipeline_tag: zero-shot-image-classification
license: other
license_name: see-card
---

# {spec.name} distilled from {facts.teacher}

An image tower (`{spec.name}`, {spec.image_size} px) trained with the method `{facts.method}` in \
its teacher's joint space of {spec.dim} numbers, and the teacher's own text tower.

```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")
tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")
model.eval()  # OpenCLIP hands models back in training mode
```

## Teacher and licence

{licence_text(facts)} The text tower's weights are the teacher's: passing this folder on passes \
them on.

## Data

{data_text(facts, spec)}

## Measured results

{results_table(facts.metrics)}

## Agreement

Read by OpenCLIP, {parity.images} images and {parity.texts} texts gave unit features that differ \
from attar's by at most {worst:.1e} in any value.
"""

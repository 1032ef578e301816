"""The teachers by name: every spelling a user may write, checked first and loaded on request."""

import importlib
import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from attar.device import pick_device
from attar.errors import UsageError, unknown_name
from attar.hub import cache_alone_without_hub
from attar.teachers.base import Teacher
from attar.teachers.loading import TeacherSpec

log = logging.getLogger(__name__)

SPELLINGS = (
    "ViT-B-32/openai, ViT-B-32,openai, hf-hub:ORG/NAME, local-dir:FOLDER, hf:FOLDER-or-ORG/NAME, "
    "pocket, pocket-without:DOMAIN, https://HOST/v1#MODEL"
)


class TeacherKind(NamedTuple):
    """How one kind of teacher is checked (without its weights) and loaded."""

    check: Callable[[str], TeacherSpec]
    """What follows "KIND:" -> the checked spec; raises `UsageError` for wrong use."""
    load: Callable[[TeacherSpec, torch.device], Teacher]


def _on_use(name: str) -> Callable[..., Any]:
    """Return the function "MODULE.FUNCTION" of this package, imported when it is first called.

    Importing open_clip takes seconds that the offline teacher should not cost.
    """
    module, _, function = name.partition(".")

    def call(*arguments: Any) -> Any:
        return getattr(importlib.import_module(f"attar.teachers.{module}"), function)(*arguments)

    return call


TEACHERS: dict[str, TeacherKind] = {
    "open_clip": TeacherKind(_on_use("openclip.check_builtin"), _on_use("openclip.load_openclip")),
    "hf-hub": TeacherKind(_on_use("openclip.check_hub"), _on_use("openclip.load_openclip")),
    "local-dir": TeacherKind(_on_use("openclip.check_folder"), _on_use("openclip.load_openclip")),
    "hf": TeacherKind(
        _on_use("huggingface.check_huggingface"), _on_use("huggingface.load_huggingface")
    ),
    "pocket": TeacherKind(_on_use("pocket.check_pocket"), _on_use("pocket.load_pocket")),
    "pocket-without": TeacherKind(
        _on_use("pocket.check_pocket_without"), _on_use("pocket.load_pocket")
    ),
    "remote": TeacherKind(_on_use("remote_address.check_remote"), _on_use("remote.load_remote")),
}


def load_teacher(spec: str, device: torch.device | None = None) -> Teacher:
    """Load the teacher of any spelling, frozen, on `device` (default: the best one here).

    Shows the licence line of weights that are for research only. Raises `UsageError` for a spec
    that names no teacher, or whose weights cannot be had or read.
    """
    checked = describe_teacher_spec(spec)
    if checked.licence:
        log.warning("%s", checked.licence)
    with cache_alone_without_hub() if _may_ask_a_hub(checked) else nullcontext():
        return TEACHERS[checked.kind].load(checked, device or pick_device())


def _may_ask_a_hub(spec: TeacherSpec) -> bool:
    is_folder = spec.kind == "hf" and Path(spec.value).is_dir()
    return spec.kind in ("open_clip", "hf-hub", "hf") and not is_folder


def describe_teacher_spec(spec: str) -> TeacherSpec:
    """Check a spec without loading weights or asking a hub; raises `UsageError` for wrong use."""
    kind, value = parse_teacher_spec(spec)
    return TEACHERS[kind].check(value)


def parse_teacher_spec(spec: str) -> tuple[str, str]:
    """Return the kind (a key of `TEACHERS`) and what the spec says beyond it."""
    spec = spec.strip()
    prefix, colon, value = spec.partition(":")
    if prefix in ("http", "https"):
        return "remote", spec
    if colon and prefix in TEACHERS and value:
        return prefix, value
    if spec in TEACHERS and not _on_disk(spec):
        if spec == "pocket":
            return spec, ""
        raise UsageError(f"teacher {spec!r} says only the kind; spellings: {SPELLINGS}")
    kind = _folder_kind(Path(spec).expanduser()) if _on_disk(spec) else None
    if kind:
        return kind, spec
    if spec.startswith((".", "/", "~")):
        reason = (
            "holds neither open_clip_config.json nor config.json"
            if _on_disk(spec)
            else "does not exist"
        )
        raise UsageError(f"the teacher's folder {spec} {reason}; spellings: {SPELLINGS}")
    if colon:
        raise unknown_name("kind of teacher", prefix, TEACHERS)
    if not spec:
        raise UsageError(f"the teacher's name is empty; spellings: {SPELLINGS}")
    return "open_clip", spec


def _on_disk(spec: str) -> bool:
    return bool(spec) and Path(spec).expanduser().is_dir()


def _folder_kind(folder: Path) -> str | None:
    if (folder / "open_clip_config.json").is_file():
        return "local-dir"
    return "hf" if (folder / "config.json").is_file() else None

"""The files of a saved student, read with an eye to damage: what is wrong is named, with a way out.

A copy that broke off, a full disk or another version of attar may have left them so.
"""

import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from attar.errors import AttarError


def read_fields(file: Path, kind: type[Any]) -> dict[str, Any]:
    """Return the fields of a dataclass that a JSON file holds, its lists as tuples.

    Raises:
        AttarError: the file is no such JSON, lacks a field or holds one that `kind` has not.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unusable(file, str(error)) from error
    if not isinstance(values, dict):
        raise _unusable(file, "it holds no fields")
    unset = [f.name for f in fields(kind) if f.default is f.default_factory is MISSING]
    missing = [name for name in unset if name not in values]
    if missing:
        raise _unusable(file, f"{missing[0]!r} is missing")
    unknown = sorted(values.keys() - {f.name for f in fields(kind)})
    if unknown:
        raise _unusable(file, f"{unknown[0]!r} is unknown to this version of attar")
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}


def load_weights(module: nn.Module, file: Path) -> None:
    """Load the tensors of a safetensors file into the module that they were saved of.

    Raises:
        AttarError: the file is missing, damaged, or holds the tensors of another network.
    """
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise _unusable(file, str(error)) from error
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:  # PyTorch's, which lists every tensor
        reason = f"its tensors are not those of {type(module).__name__} as attar.json tells it"
        raise _unusable(file, reason) from error


def _unusable(file: Path, reason: str) -> AttarError:
    return AttarError(
        f"{file} cannot be used ({reason}); copy {file.parent} again from where it is whole, or "
        "delete it and the file `done` of its run, and run the same attar distill again"
    )

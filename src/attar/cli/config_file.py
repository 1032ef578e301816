"""`--config FILE`: a YAML file of options, read as if they stood on the command line."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from attar.errors import UsageError

_INSTEAD_OF = {
    "--training.steps": "--training.epochs",
    "--training.epochs": "--training.steps",
}
"""An option on the command line -> the one in the file that it stands in for."""


_METHOD = "--method."
"""Section whose values are YAML on the command line too, lists in one word and no flags."""


def expand_config_file(tokens: Sequence[str]) -> list[str]:
    """Replace `--config FILE` by the options in the file; those given on the line win.

    Nested keys are dotted options (`training: {lr: 1e-3}` is `--training.lr 1e-3`); `name` inside a
    section is the option itself (`student: {name: resnet18}` is `--student resnet18`). So the
    config.yaml of a run is such a file.

    Raises:
        UsageError: no file, not YAML, or not options.
    """
    words = list(tokens)
    places = [i for i, w in enumerate(words) if w == "--config" or w.startswith("--config=")]
    if not places:
        return words
    if len(places) > 1:
        raise UsageError("--config is given twice; give one file")
    position, word = places[0], words[places[0]]
    if "=" in word:
        file, rest = word.partition("=")[2], words[position + 1 :]
    elif position + 1 < len(words):
        file, rest = words[position + 1], words[position + 2 :]
    else:
        raise UsageError("--config needs the path of a YAML file")
    words = words[:position] + rest
    given = {_positive(w.partition("=")[0]) for w in words if w.startswith("--")}
    given |= {_INSTEAD_OF[option] for option in given & _INSTEAD_OF.keys()}
    options = _options(_read(Path(file)))
    return words + [w for option, written in options if option not in given for w in written]


def _positive(option: str) -> str:
    """Return the option that a word gives: "--x.no-y" is a spelling of "--x.y"."""
    section, dot, name = option.removeprefix("--").replace("_", "-").rpartition(".")
    return f"--{section}{dot}{name.removeprefix('no-')}"


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"--config {path} cannot be read: {error.strerror or error}; give a YAML file such as "
            "the config.yaml of a run"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"--config {path} is not a YAML file: {reason}") from error
    if not isinstance(values, dict):
        raise UsageError(f"--config {path} holds no options (expected `name: value` lines)")
    return values


def _options(values: Mapping[str, Any], prefix: str = "--") -> Iterator[tuple[str, Sequence[str]]]:
    """Yield each option of the file with the words that give it on a command line."""
    for key, value in values.items():
        name = str(key).replace("_", "-")
        option = prefix.removesuffix(".") if name == "name" and prefix != "--" else prefix + name
        if prefix == _METHOD and isinstance(value, list | bool):
            written = yaml.safe_dump(value, default_flow_style=True, width=math.inf).split("\n")[0]
            yield option, [f"{option}={written}"]
        elif isinstance(value, dict):
            yield from _options(value, f"{option}.")
        elif isinstance(value, list):
            yield option, [f"{option}={item}" for item in value]
        elif isinstance(value, bool):
            yield option, [option if value else f"{prefix}no-{name}"]
        elif value is not None:
            yield option, [f"{option}={value}"]

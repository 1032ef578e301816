"""`--config FILE`: a YAML file of options, read as if they stood on the command line."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from attar.errors import UsageError


def expand_config_file(tokens: Sequence[str]) -> list[str]:
    """Replace `--config FILE` by the options in the file; those given on the line win.

    Nested keys are dotted options (`training: {lr: 1e-3}` is `--training.lr 1e-3`); `name` inside a
    section is the option itself (`student: {name: resnet18}` is `--student resnet18`).
    """
    words = list(tokens)
    places = [i for i, w in enumerate(words) if w == "--config" or w.startswith("--config=")]
    if not places:
        return words
    position, word = places[0], words[places[0]]
    if "=" in word:
        file, rest = word.partition("=")[2], words[position + 1 :]
    elif position + 1 < len(words):
        file, rest = words[position + 1], words[position + 2 :]
    else:
        raise UsageError("--config needs the path of a YAML file")
    words = words[:position] + rest
    given = {w.partition("=")[0].replace("--no-", "--") for w in words if w.startswith("--")}
    return words + [t for option, ts in _options(_read(Path(file))) if option not in given
                    for t in ts]  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"--config {path}: no such file") from error
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"--config {path} is not a YAML file: {reason}") from error
    if not isinstance(values, dict):
        raise UsageError(f"--config {path} holds no options (expected `name: value` lines)")
    return values


def _options(values: dict[str, Any], prefix: str = "--") -> Iterator[tuple[str, list[str]]]:
    for key, value in values.items():
        name = str(key).replace("_", "-")
        option = prefix.removesuffix(".") if name == "name" and prefix != "--" else prefix + name
        if isinstance(value, dict):
            yield from _options(value, f"{option}.")
        elif isinstance(value, list):
            yield option, [token for item in value for token in (option, str(item))]
        elif isinstance(value, bool):
            yield option, [option if value else f"{prefix}no-{name}"]
        elif value is not None:
            yield option, [option, str(value)]

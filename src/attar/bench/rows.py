"""The rows of a grid: methods as they come, and variants of them that a file describes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from attar.bench.cells import STRICT
from attar.bench.config import DomainsConfig, name_domain
from attar.data.classes import ClassList, read_class_list
from attar.errors import UsageError, unknown_name
from attar.methods.registry import METHODS, find_method
from attar.run import RunConfig, from_options, plain_options
from attar.stages.request import check_names
from attar.stages.white_box import is_teacher

_NAME = re.compile(r"\w[\w.+=-]*")
_PLAIN = ("method", "student", "teacher", "texts", "templates")
"""Options of a variant without a section."""
_SECTIONS = ("method", "student", "training", "embed", "evaluation")
_SINGLE = ("splits.train_share",)
"""All that a variant may change about the splits: rows are compared on the same test images."""
_OF_THE_GRID = ("training.seed",)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table: what all of its cells share, and the learning rates it is tried with."""

    name: str
    config: RunConfig
    lrs: tuple[float, ...]
    variant: str = ""
    """A variant in words; empty for a method as it comes."""


def make_rows(base: RunConfig, config: DomainsConfig) -> tuple[tuple[Row, ...], ClassList | None]:
    """Return the rows of a grid of domains, but for domain, seed and rate, and the class list.

    Raises:
        UsageError: an unknown method, teacher, student or option, or a broken file of variants.
    """
    base = replace(base, protocol="domainbed")
    rows = [*method_rows(base, config.methods, config.lrs)]
    rows += variant_rows(base, config.variants, config.lrs)
    for row in rows:
        if not names_domains(row.config):
            check_names(row.config)
    classes = read_class_list(base.data.classes) if base.data.classes else None
    return tuple(rows), classes


def method_rows(base: RunConfig, methods: Sequence[str], lrs: tuple[float, ...]) -> list[Row]:
    """Return a row for each method as it comes."""
    return [Row(name=name, config=_of_method(base, name), lrs=lrs) for name in methods]


def variant_rows(base: RunConfig, path: Path | None, lrs: tuple[float, ...]) -> list[Row]:
    """Return a row for each entry of a file of variants; no file is no row.

    Raises:
        UsageError: a broken file, or an option that no variant may set.
    """
    found = read_variants(path)
    return [_variant(base, lrs, name, options) for name, options in found.items()]


def names_domains(config: RunConfig) -> bool:
    """Say whether a row has another teacher for each held-out domain, as `teacher-{domain}`."""
    return "{" in (config.teacher or "")


def of_domain(config: RunConfig, domain: str, base: RunConfig, out: Path) -> RunConfig:
    """Return a row's configuration with a domain held out, and the teacher it has for it.

    Raises:
        UsageError: the teacher has other braces than {domain}.
    """
    config = replace(config, splits=replace(config.splits, held_out_domain=domain))
    if not names_domains(config):
        return config
    config = replace(config, teacher=name_domain(config.teacher or "", domain, "--teacher"))
    return replace(config, store=_store_of(config, base, out))


def in_grid(row: Row, base: RunConfig, out: Path) -> Row:
    """Keep references out of a row's cells and give it, when it needs a teacher, a store in `out`.

    Raises:
        UsageError: one store is given, and another teacher for each domain.
    """
    config = replace(row.config, references=False)
    if names_domains(config):
        if config.store is not None:
            raise UsageError(
                f"--store holds what one teacher said, and --teacher {config.teacher} is another "
                "one for each domain: leave --store out"
            )
    elif _asks_teacher(config):
        config = replace(config, store=config.store or _store_of(config, base, out))
    return replace(row, config=config)


def _store_of(config: RunConfig, base: RunConfig, out: Path) -> Path:
    """Return the store that is shared by rows with this teacher, shown images in this way."""
    slug = re.sub(r"[^\w.-]+", "_", config.teacher or "")
    folder = "store" if config.teacher == base.teacher else f"store-{slug}"
    if config.embed.normalisation != base.embed.normalisation:
        folder += f"-{config.embed.normalisation}"
    return out / folder


def _of_method(base: RunConfig, method: str) -> RunConfig:
    """Return what all of a method's cells share; one that needs no teacher waits for none."""
    row = replace(base, method=method)
    return row if _asks_teacher(row) else replace(row, teacher=None, store=None)


def _asks_teacher(config: RunConfig) -> bool:
    """Say whether the method learns from the teacher, or its student is the teacher's own."""
    return "teacher" in find_method(config.method).needs or is_teacher(config)


def read_variants(path: Path | None) -> dict[str, dict[str, Any]]:
    """Read {row name: {dotted option: value}}; no file is no variant.

    Raises:
        UsageError: the file cannot be read or is something else.
    """
    if path is None:
        return {}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"--variants {path} cannot be read as YAML: {reason}") from error
    if not isinstance(found, Mapping) or not all(isinstance(v, Mapping) for v in found.values()):
        raise UsageError(
            f"--variants {path}: write {{name: {{method: vl2v-adip, training.average: swad}}}}"
        )
    variants = {str(name): dict(options) for name, options in found.items()}
    for name in variants:
        if not _NAME.fullmatch(name) or name == STRICT or name in METHODS:
            raise UsageError(
                f"--variants {path}: {name!r} cannot name a row; use letters, digits and . + = - _,"
                " and no method's own name"
            )
    return variants


def _variant(base: RunConfig, lrs: tuple[float, ...], name: str, given: Mapping[str, Any]) -> Row:
    """Return the row of a variant: the base with the options of the file."""
    options = {str(key).replace("-", "_"): value for key, value in given.items()}
    if "method" not in options:
        raise UsageError(f"variant {name!r} names no method: add `method: erm`, say")
    for key, value in options.items():
        _check_option(name, key, value)
    lr = options.pop("training.lr", None)
    words = [f"{key.replace('_', '-')} {value}" for key, value in options.items()]
    student = str(options.get("student", base.student))  # the teacher's own needs the teacher
    plain = plain_options(_of_method(replace(base, student=student), str(options["method"])))
    for key, value in options.items():
        _put(plain, key, value)
    return Row(
        name=name,
        config=from_options(plain),
        lrs=lrs if lr is None else (_rate(name, lr),),
        variant=", ".join(words if lr is None else [*words, f"training.lr {lr}"]),
    )


def _check_option(variant: str, key: str, value: Any) -> None:
    section, _, option = key.partition(".")
    known = section in _SECTIONS if option else key in _PLAIN
    if not (known or key in _SINGLE) or key in _OF_THE_GRID:
        names = [*_PLAIN, *(f"{one}.*" for one in _SECTIONS), *_SINGLE]
        raise unknown_name(f"option of variant {variant!r}", key, names)
    if not option and not isinstance(value, str):
        raise UsageError(f"variant {variant!r}: {key} {value!r} must be text; put it in quotes")


def _put(plain: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted option among those that `plain_options` gives; "student" is "student.name"."""
    section, _, option = key.partition(".")
    if option:
        plain.setdefault(section, {})[option] = value
    elif section in _SECTIONS:
        plain.setdefault(section, {})["name"] = value
    else:
        plain[section] = value


def _rate(variant: str, value: Any) -> float:
    try:
        rate = float(value)
    except (TypeError, ValueError):
        rate = float("nan")
    if not 0 < rate < float("inf"):
        raise UsageError(f"variant {variant!r}: training.lr {value!r} must be a number above 0")
    return rate

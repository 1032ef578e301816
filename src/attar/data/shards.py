"""`--data` that is tars of samples, as webdataset writes them: which tars, and what is in them.

A source is one tar, a brace pattern (`data-{000..009}.tar`), a glob (`data-*.tar`), or a folder
that holds tars and no images; here or behind any URL that fsspec opens.
"""

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from attar.data.checking import Checked
from attar.data.images import is_image_name
from attar.data.manifest import Entry
from attar.data.tar_index import TarIndex
from attar.errors import UsageError
from attar.members import Member, is_url, location, read_bytes, remote

CLASS_NAMES = "classnames.txt"
"""Beside the tars, or one folder up: the names of the classes that `.cls` files give by number."""
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The images of some tars as `--data` names them, and what was found when they were read."""

    entries: list[Entry] = field(default_factory=list)
    checked: dict[str, Checked] = field(default_factory=dict)
    """By address of an image, and by path of a tar that could not be read to its end."""
    tars: int = 0


def is_tars(root: str | Path) -> bool:
    """Whether a `--data` path names tars: it ends in .tar, as a pattern, a file or a URL."""
    return is_url(root) or location(root).endswith(".tar")


def holds_tars(root: Path) -> bool:
    """Whether a `--data` path names tars, or is a folder with tars in it and no images.

    An archive that was left beside the folders it was unpacked to is no tar of samples.
    """
    if is_tars(root):
        return True
    try:
        inside = list(root.iterdir())
    except OSError:  # no folder, or one that cannot be listed, which is said where it is read
        return False
    if not any(path.suffix == ".tar" for path in inside):
        return False
    seen = (path for path in inside if not path.name.startswith(".") and path.name != "__MACOSX")
    return not any(_holds_image(path) for path in seen)


def _holds_image(path: Path) -> bool:
    """Whether a path is an image, or a folder with one in it at any depth."""
    if not path.is_dir():
        return is_image_name(path.name)
    return any(is_image_name(name) for _, _, names in os.walk(path) for name in names)


def expand(pattern: str) -> list[str]:
    """Return the tars of a pattern in their order: braces as in a shell, then globs, sorted.

    Raises:
        UsageError: a tar that braces name, or any at all, is missing.
    """
    found: list[str] = []
    missing: list[str] = []
    for one in _without_braces(pattern):
        here = _matches(one)
        found += here
        missing += [] if here else [one]
    strange = next((tar for tar in found if not tar.endswith(".tar")), None)
    if strange is not None:
        raise UsageError(f"data path {strange} is no .tar: give tars, such as s3://bucket/0.tar")
    if missing:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise UsageError(
            f"data path {missing[0]}{more} does not exist: correct the pattern {pattern!r}, or "
            "copy the tars there"
        )
    return list(dict.fromkeys(found))


def read_tars(root: Path, *, unlabelled: bool = False, index: Path | None = None) -> Samples:
    """Read every tar of a source once, or its index in the folder `index` where it is unchanged.

    A tar that ends early is named in `checked`; its samples before that are entries. An image that
    does not decode is an entry whose `checked` gives the reason.

    Raises:
        UsageError: a tar is missing, or none holds a sample.
    """
    pattern = str(root / "*.tar") if root.is_dir() else location(root)
    tars = expand(pattern)
    above = _common_folder(tars)
    entries: list[Entry] = []
    checked: dict[str, Checked] = {}
    for found in _read_all(tars, index):
        if found.trouble is not None:
            kept = f"; samples found: {len(found.samples):,}" if found.samples else ""
            checked[found.tar] = Checked("", found.trouble + kept)
        own = _entries(found, above, unlabelled)
        entries += own
        for entry, sample in zip(own, found.samples, strict=True):
            checked[entry.path] = Checked(sample.sha256, sample.reason)
    if not entries:
        why = next((f": {found.reason}" for found in checked.values()), "")
        raise UsageError(
            f"{tars[0]} holds no samples{why}; a sample is KEY.jpg, .png or .webp, and beside it "
            "KEY.cls, .txt or .json"
        )
    names = None if unlabelled else _class_names(tars[0])
    if names is not None:
        entries = name_classes(entries, names)
        _refuse_number_without_name(entries, names, tars[0])
    return Samples(entries=entries, checked=checked, tars=len(tars))


def name_classes(entries: Sequence[Entry], names: Sequence[str]) -> list[Entry]:
    """Return the entries with class numbers as names of a list, where every label is a number.

    Numbers that the list does not reach are left as they are, as other labels are.
    """
    labels = {entry.label for entry in entries} - {None}
    numbers = {label: int(label) for label in labels if label is not None and label.isdecimal()}
    if len(numbers) < len(labels) or max(numbers.values(), default=0) >= len(names):
        return list(entries)
    return [
        entry if entry.label is None else replace(entry, label=names[numbers[entry.label]])
        for entry in entries
    ]


def _refuse_number_without_name(entries: Sequence[Entry], names: Sequence[str], tar: str) -> None:
    """Refuse classes that stayed numbers beside a list that should have named them."""
    numbers = {entry.label for entry in entries if entry.label is not None}
    if numbers and all(number.isdecimal() for number in numbers) and not numbers <= set(names):
        raise UsageError(
            f"{CLASS_NAMES} beside {tar} names {len(names):,} classes and the tars have class "
            f"{max(map(int, numbers)):,}: numbers count from 0; mend the list, or give --unlabelled"
        )


def _without_braces(pattern: str) -> Iterator[str]:
    """Yield the strings that a shell makes of {a,b} and {000..009}, the leftmost braces first."""
    found = _BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    bounds = _RANGE.fullmatch(found[1])
    options = found[1].split(",")
    if bounds is not None:
        width = len(bounds[1]) if bounds[1].startswith("0") else 0
        first, last = int(bounds[1]), int(bounds[2])
        step = 1 if first <= last else -1
        options = [f"{n:0{width}}" for n in range(first, last + step, step)]
    elif len(options) == 1:
        raise UsageError(
            f"{{{found[1]}}} in {pattern!r} is no brace pattern: write {{000..009}} or {{a,b}}"
        )
    for option in options:
        yield from _without_braces(pattern[: found.start()] + option + pattern[found.end() :])


def _matches(path: str) -> list[str]:
    """Return the tars that a path without braces stands for; none when it is not there."""
    is_glob = any(sign in path for sign in "*?")
    if not is_url(path):
        above = Path(path).anchor
        found = Path(above).glob(path.removeprefix(above)) if is_glob else [Path(path)]
        return sorted(str(one) for one in found if one.is_file())
    if not is_glob:
        return [path]  # whether it is there shows when it is read: asking for each takes long
    try:
        with remote(path) as (system, place):
            chained = path.rpartition("::")[0]
            there = [str(system.unstrip_protocol(one)) for one in system.glob(place)]
    except OSError as error:
        raise UsageError(f"data path {path} cannot be listed: {error}") from error
    return sorted(f"{chained}::{one}" if chained else one for one in there)


def _read_all(tars: Sequence[str], index: Path | None) -> Iterator[TarIndex]:
    workers = min(8, max(2, os.cpu_count() or 1))  # decoding and hashing release the GIL
    columns = (TextColumn("reading tars"), BarColumn(), MofNCompleteColumn())
    progress = Progress(
        *columns,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=len(tars) == 1,
    )
    with progress, ThreadPoolExecutor(workers) as pool:
        task = progress.add_task("", total=len(tars))
        for tar in tars:
            yield TarIndex.make(tar, pool, index)
            progress.advance(task)


def _entries(found: TarIndex, above: str, unlabelled: bool) -> list[Entry]:
    """Return the samples of a tar, named by their place below the folder `above`."""
    folder = _slashes(found.tar).removeprefix(above).lstrip("/")
    return [
        Entry(
            path=str(Member(found.tar, sample.start, sample.end, sample.name)),
            name=f"{folder}/{sample.name}",
            label=None if unlabelled else sample.label,
            labels=None if unlabelled else sample.labels,
            domain=None if unlabelled else sample.domain,
            split=sample.split,
            caption=sample.caption,
        )
        for sample in found.samples
    ]


def _class_names(tar: str) -> list[str] | None:
    """Return the lines of classnames.txt beside a tar or one folder up, None without one."""
    beside = _slashes(tar).rpartition("/")[0]
    for folder in (beside, beside.rpartition("/")[0]):
        try:
            lines = read_bytes(f"{folder}/{CLASS_NAMES}").decode().splitlines()
        except (OSError, UnicodeDecodeError):
            continue
        return [line.strip() for line in lines if line.strip()]
    return None


def _common_folder(tars: Sequence[str]) -> str:
    folders = [_slashes(tar).split("/")[:-1] for tar in tars]
    pairs = zip(min(folders), max(folders), strict=False)  # what these two share, all share
    return "/".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _slashes(path: str) -> str:
    return path if is_url(path) else Path(path).as_posix()

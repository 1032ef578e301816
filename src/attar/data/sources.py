"""`--data PATH`: find out what a path holds, name it, and read it into one ImageTable."""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from attar.data.checking import Checked, check_files
from attar.data.classes import ClassList, match_labels
from attar.data.folders import count_images, read_folders
from attar.data.images import EXTENSIONS, is_image_name
from attar.data.manifest import MANIFEST_EXTENSIONS, Entry, read_manifest
from attar.data.published import find_published, warning_of
from attar.data.shards import holds_tars, name_classes, read_tars
from attar.data.splits import check_domain
from attar.data.table import ImageTable
from attar.errors import AttarError, UsageError
from attar.files import read_json, write_json
from attar.members import is_url

log = logging.getLogger(__name__)

_SHOWN = 5
_EXPECTED = (
    "give a folder of images, class/image, domain/class/image, either of them below folders train, "
    "val and test, a CSV or Parquet manifest with a path column, or tars of samples "
    "(data-{000..009}.tar); "
    f"image extensions: {', '.join(sorted(e[1:] for e in EXTENSIONS))}"
)


@dataclass(frozen=True, kw_only=True)
class _Source:
    """One `--data` path: its layout's name, and its images before any is opened."""

    root: Path
    layout: str
    entries: list[Entry] = field(default_factory=list)
    checked: dict[str, Checked] = field(default_factory=dict)
    """What is known of its files already, because naming them took reading them."""


def read_sources(
    roots: Sequence[Path],
    *,
    class_list: ClassList | None = None,
    set_aside: Path | None = None,
    strict: bool = False,
    cache: Path | None = None,
    unlabelled: bool = False,
    superset: bool = False,
    held_out_domain: str | None = None,
) -> ImageTable:
    """Read one or several data paths into one table, labelled and unlabelled side by side.

    A path is a folder of images (flat or nested: no labels), class/image, domain/class/image, any
    of these below folders that are all named like splits (train, val, test), one of the benchmarks
    of `attar.data.published` as it is published, a CSV or Parquet manifest, or tars of samples
    (`attar.data.shards`). Every file is hashed and fully decoded; those that cannot be read are set
    aside, the first five named on stderr, and the rest is returned.

    Args:
        roots: the paths; their images follow each other in this order.
        class_list: gives `class_names` and their order; labels match up to case, "_" and spaces.
        set_aside: JSON file for [{"path", "reason"}] of the files that cannot be read.
        strict: fail when a file cannot be read.
        cache: Parquet file that saves a later call from reading unchanged files again; what is in
            tars is kept in the folder "shards" beside it.
        unlabelled: take folders for mere folders, but for those named like splits, and drop a
            manifest's labels.
        superset: the class list may name classes that the data lacks, the data may have one class
            only, and a benchmark's missing parts are not worth a warning (evaluation on part of the
            classes).
        held_out_domain: a domain that the data must have.

    Raises:
        UsageError: a path is missing, given twice, or holds no readable image; a broken manifest;
            one class only; a class list that does not fit; no such domain.
        AttarError: `strict` and a file cannot be read.
    """
    index = None if cache is None else cache.with_name("shards")
    sources = [
        _find_tars(root, unlabelled, class_list, index)
        if holds_tars(root)
        else _find(root, unlabelled, superset)
        for root in _distinct(roots)
    ]
    if not superset:
        _refuse_one_class([e for s in sources for e in s.entries])
    _match(class_list, [e for s in sources for e in s.entries], superset)  # before the long read
    if held_out_domain is not None:
        check_domain(held_out_domain, [e.domain for s in sources for e in s.entries])
    _refuse_twice(sources)
    checked = {path: found for s in sources for path, found in s.checked.items()}
    files = [e.path for s in sources if not s.checked for e in s.entries]
    checked |= check_files(files, cache)
    _report_broken(checked, set_aside, strict)
    good: list[list[Entry]] = []
    for source in sources:
        entries = [e for e in source.entries if checked[e.path].reason is None]
        if not entries:
            path = source.entries[0].path
            raise UsageError(
                f"no image of {source.root} can be read, e.g. {path}: {checked[path].reason}; "
                + _EXPECTED
            )
        good.append(entries)
    layouts = [_describe(s.layout, e) for s, e in zip(sources, good, strict=True)]
    everything = [entry for entries in good for entry in entries]
    if not superset:
        _refuse_one_class(everything)
    return replace(_tabulate(everything, checked, class_list), layout="; ".join(layouts))


def _distinct(roots: Sequence[Path]) -> list[Path]:
    if not roots:
        raise UsageError(f"no data path is given: {_EXPECTED}")
    absolute = [root if is_url(root) else root.expanduser().resolve() for root in roots]
    for root in absolute:
        if absolute.count(root) > 1:
            raise UsageError(f"data path {root} is given twice: give it once")
    return absolute


def _refuse_twice(sources: Sequence[_Source]) -> None:
    """Refuse patterns that name one tar twice: its images would count twice."""
    seen: set[str] = set()
    for source in sources:
        twice = next((path for path in source.checked if path in seen), None)
        if twice is not None:
            raise UsageError(
                f"data path {source.root} gives {twice} again: give every tar by one path only"
            )
        seen |= source.checked.keys()


def _find_tars(
    root: Path, unlabelled: bool, class_list: ClassList | None, index: Path | None
) -> _Source:
    """Read tars of samples; a class list names the classes that they give by number."""
    found = read_tars(root, unlabelled=unlabelled, index=index)
    entries = found.entries
    if class_list is not None:
        entries = name_classes(entries, class_list.names)
    layout = "1 tar of samples" if found.tars == 1 else f"{found.tars:,} tars of samples"
    return _Source(root=root, layout=layout, entries=entries, checked=found.checked)


def _find(root: Path, unlabelled: bool, superset: bool) -> _Source:
    """Detect what a path holds."""
    if not root.exists():
        raise UsageError(f"data path {root} does not exist: {_EXPECTED}")
    if root.is_dir():
        return _find_folder(root, unlabelled, superset)
    if root.suffix.lower() in MANIFEST_EXTENSIONS:
        entries = read_manifest(root)
        if unlabelled:
            entries = [
                Entry(path=e.path, name=e.name, split=e.split, caption=e.caption) for e in entries
            ]
        kind = "CSV" if root.suffix.lower() == ".csv" else "Parquet"
        return _Source(root=root, layout=f"{kind} manifest", entries=entries)
    if is_image_name(root.name):
        return _Source(
            root=root,
            layout="one image, no labels",
            entries=[Entry(path=str(root), name=root.name)],
        )
    raise UsageError(
        f"data path {root} is neither a folder nor a manifest nor an image: {_EXPECTED}"
    )


def _find_folder(root: Path, unlabelled: bool, superset: bool) -> _Source:
    found = sorted(_walk(root, (), frozenset()))
    if not found:
        raise UsageError(f"data path {root} holds no images: {_EXPECTED}")
    benchmark = None if unlabelled else _find_benchmark(root, found, superset)
    if benchmark is not None:
        return benchmark
    layout, entries = read_folders(root, found, unlabelled)
    return _Source(root=root, layout=layout, entries=entries)


def _find_benchmark(root: Path, found: Sequence[tuple[str, ...]], superset: bool) -> _Source | None:
    published = find_published(found)
    if published is None:
        return None
    warning = "" if superset else warning_of(published, root)
    if warning:
        log.warning("%s", warning)
    entries = [
        Entry(
            path=str(root.joinpath(*image.parts)),
            name=image.name,
            label=image.label,
            domain=image.domain,
        )
        for image in published.images
    ]
    return _Source(root=root, layout=published.layout, entries=entries)


def _walk(
    folder: Path, parts: tuple[str, ...], above: frozenset[tuple[int, int]]
) -> list[tuple[str, ...]]:
    """Return the path parts of all images below a folder; hidden ones are skipped.

    Links are followed, except a link to a folder that it lies in.
    """
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return []
    found = []
    try:
        items = list(os.scandir(folder))
    except OSError as error:
        raise UsageError(
            f"folder {folder} cannot be listed ({error.strerror}): correct its permissions or "
            "give another data path"
        ) from error
    for item in items:
        if item.name.startswith(".") or item.name == "__MACOSX":
            continue
        if item.is_dir():
            found += _walk(Path(item.path), (*parts, item.name), above | {identity})
        elif is_image_name(item.name) and (item.is_file() or item.is_symlink()):
            # A link that leads nowhere is taken too, so that it is set aside and not forgotten.
            found.append((*parts, item.name))
    return found


def _report_broken(checked: dict[str, Checked], set_aside: Path | None, strict: bool) -> None:
    broken = [(path, c.reason) for path, c in checked.items() if c.reason is not None]
    if set_aside is not None:
        # A store's file also names what its teacher gave no answer to; that is not ours to drop.
        before = read_json(set_aside) if set_aside.is_file() else []
        others = [entry for entry in before if entry.get("by") == "teacher"]
        write_json(set_aside, others + [{"path": path, "reason": why} for path, why in broken])
    if not broken:
        return
    if strict:
        path, reason = broken[0]
        raise AttarError(
            f"{len(broken):,} of {len(checked):,} files cannot be read, the first is {path}: "
            f"{reason}; remove them, or run without --strict to set them aside"
        )
    lines = [f"set aside {len(broken):,} of {len(checked):,} files that cannot be read:"]
    lines += [f"  {path}: {reason}" for path, reason in broken[:_SHOWN]]
    if len(broken) > _SHOWN:
        where = f", see {set_aside}" if set_aside is not None else ""
        lines.append(f"  and {len(broken) - _SHOWN:,} more{where}")
    print("\n".join(lines), file=sys.stderr)


def _describe(layout: str, entries: Sequence[Entry]) -> str:
    counts = {
        "domain": len({e.domain for e in entries} - {None}),
        "class": len(_class_names(entries)),
    }
    below_splits = layout.startswith("split/")
    if not below_splits:
        counts["image"] = len(entries)
    plural = {"domain": "domains", "class": "classes", "image": "images"}
    words = [f"{n:,} {kind if n == 1 else plural[kind]}" for kind, n in counts.items() if n]
    if below_splits:
        words.insert(0, count_images(entries))
    return f"{layout}: {', '.join(words)}"


def _tabulate(
    entries: Sequence[Entry],
    checked: dict[str, Checked],
    class_list: ClassList | None,
) -> ImageTable:
    index_of = _match(class_list, entries, superset=True)
    domain_names = sorted({e.domain for e in entries if e.domain is not None})
    domain_of = {name: i for i, name in enumerate(domain_names)}
    return ImageTable(
        paths=tuple(e.path for e in entries),
        names=tuple(e.name for e in entries),
        keys=tuple(checked[e.path].key for e in entries),
        labels=tuple(-1 if e.label is None else index_of[e.label] for e in entries),
        label_sets=_label_sets(entries, index_of),
        domains=tuple(-1 if e.domain is None else domain_of[e.domain] for e in entries),
        captions=tuple(e.caption for e in entries),
        splits=tuple(e.split for e in entries),
        class_names=tuple(index_of) if class_list is None else class_list.names,
        domain_names=tuple(domain_names),
    )


def _label_sets(entries: Sequence[Entry], index_of: dict[str, int]) -> tuple[tuple[int, ...], ...]:
    """Return the classes in each image; of no image when no source says several."""
    if all(entry.labels is None for entry in entries):
        return ()
    unknown = sum(entry.labels is None and entry.label is None for entry in entries)
    if unknown:
        log.warning(
            "%s of %s images say nothing of their labels and count as showing none of the classes, "
            "since others have several",
            f"{unknown:,}",
            f"{len(entries):,}",
        )
    return tuple(tuple(sorted(index_of[name] for name in _names(entry))) for entry in entries)


def _class_names(entries: Sequence[Entry]) -> set[str]:
    return {name for entry in entries for name in _names(entry)}


def _names(entry: Entry) -> tuple[str, ...]:
    if entry.labels is not None:
        return entry.labels
    return () if entry.label is None else (entry.label,)


def _match(
    class_list: ClassList | None, entries: Sequence[Entry], superset: bool
) -> dict[str, int]:
    """Return the class index of each label; without a class list, in alphabetical order."""
    found = sorted(_class_names(entries))
    if class_list is None or not found:
        return {name: index for index, name in enumerate(found)}
    return dict(zip(found, match_labels(class_list, found, superset=superset), strict=True))


def _refuse_one_class(entries: Sequence[Entry]) -> None:
    present = _class_names(entries)
    if len(present) == 1:
        raise UsageError(
            f"one class only ({present.pop()!r}): give at least two class "
            "folders, or pass --unlabelled if the folder is not a class"
        )

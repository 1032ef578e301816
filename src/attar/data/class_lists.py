"""The official files of Li et al. (ICCV 2023): which images are of seen classes, which of unseen.

A folder of their repository's `data/` holds, for one dataset, `train_data.txt` (X_train),
`val_on_train_data.txt` (X_id) and `val_data.txt` (X_ood), one `split/CLASS/file` a line;
`label2text.txt`, one `CLASS number label` a line; and `chatgpt.txt`, whose line n describes the
class of line n of `label2text.txt`. A lone "." there is an answer that never came.
"""

import csv
import filecmp
import io
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from attar.data.classes import normalise_name
from attar.data.images import is_image_name
from attar.data.manifest import Entry
from attar.errors import UsageError
from attar.files import check_writable, sha256_text, write_json, write_text

LIST_FILES = {
    "train": "train_data.txt",
    "test_id": "val_on_train_data.txt",
    "unseen_classes": "val_data.txt",
}
"""Split -> the file that lists its images."""

NAMES_FILE = "label2text.txt"
DESCRIPTIONS_FILE = "chatgpt.txt"
DESCRIBED = "a photo of {label} . {sentence}"
"""The text that the official code encodes for a described class."""

Listed = tuple[str, str]
"""An image: its class folder and its file name."""

_SHOWN = 5
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class OfficialClasses:
    """The classes of one dataset, in the order of `label2text.txt`."""

    name: str
    """The dataset, as its folder is called."""
    class_names: Mapping[str, str]
    """Class folder -> readable label, "001.Black_footed_Albatross" -> "Black footed Albatross"."""
    descriptions: Mapping[str, str]
    """Class folder -> sentence; a class whose description is empty is left out."""

    @property
    def undescribed(self) -> tuple[str, ...]:
        """The labels without a description: the plain prompt is all that is said of them."""
        return tuple(
            label for folder, label in self.class_names.items() if folder not in self.descriptions
        )

    def labels(self) -> dict[str, str]:
        """Return class folder -> label, no two of which read the same.

        Homonyms ("crane" the bird and the machine in ImageNet) get their folder in brackets.
        """
        times = Counter(map(normalise_name, self.class_names.values()))
        return {
            folder: label if times[normalise_name(label)] == 1 else f"{label} ({folder})"
            for folder, label in self.class_names.items()
        }


@dataclass(frozen=True, kw_only=True)
class OfficialLists(OfficialClasses):
    """The images of each split of one dataset, and the classes that they are of."""

    train: tuple[Listed, ...]
    """X_train: seen classes."""
    test_id: tuple[Listed, ...]
    """X_id: other images of the same classes."""
    unseen_classes: tuple[Listed, ...]
    """X_ood: the classes that training never sees."""

    def splits(self) -> dict[str, tuple[Listed, ...]]:
        """Return the three lists by the name of their split."""
        return {split: getattr(self, split) for split in LIST_FILES}

    def describe(self) -> str:
        """Return the counts in words: "train 4,122 (100 classes), test_id ..."."""
        return ", ".join(
            f"{split} {len(listed):,} ({len(_folders(listed))} classes)"
            for split, listed in self.splits().items()
        )


def read_official_classes(folder: Path) -> OfficialClasses:
    """Read names and descriptions; without a `chatgpt.txt` no class has a description.

    Raises:
        UsageError: no `label2text.txt`, a line of it that is not `CLASS number label`, a class
            named twice, or descriptions that do not match it line by line.
    """
    path = folder / NAMES_FILE
    class_names: dict[str, str] = {}
    for number, line in enumerate(_read_lines(path), start=1):
        parts = line.split(maxsplit=2)
        if len(parts) != 3:
            raise UsageError(f"{path} line {number}: {line!r} is not `CLASS number label`")
        if parts[0] in class_names:
            raise UsageError(f"{path} line {number}: the class {parts[0]!r} is named twice")
        class_names[parts[0]] = parts[2].replace("_", " ").strip()
    path = folder / DESCRIPTIONS_FILE
    sentences = _read_lines(path) if path.is_file() else [""] * len(class_names)
    if len(sentences) != len(class_names):
        raise UsageError(
            f"{path} has {len(sentences):,} lines and {NAMES_FILE} {len(class_names):,}: they "
            "match line by line, so take both from the same place"
        )
    described = zip(class_names, (sentence.strip() for sentence in sentences), strict=True)
    return OfficialClasses(
        name=folder.resolve().name,
        class_names=class_names,
        descriptions={name: sentence for name, sentence in described if sentence.strip(".")},
    )


def read_official_lists(folder: Path) -> OfficialLists:
    """Read the lists of a dataset with its names and descriptions.

    Raises:
        UsageError: see `read_official_classes`; also a missing list, a line that is not
            `split/CLASS/file`, an image listed twice, a class without a name, a class both seen and
            unseen, or one tested as seen that training lacks.
    """
    classes = read_official_classes(folder)
    missing = [name for name in LIST_FILES.values() if not (folder / name).is_file()]
    if missing:
        raise UsageError(
            f"{folder} names the classes of {classes.name} but lacks {', '.join(missing)}: put the "
            "lists there, or divide the images yourself with --test-share 0.3"
        )
    return _lists(
        classes, {split: _read_list(folder / name) for split, name in LIST_FILES.items()}, folder
    )


def draw_lists(
    folder: Path, images_root: Path, *, test_share: float = 0.3, seed: int = 0
) -> OfficialLists:
    """Make the lists that a dataset lacks from its own folders.

    Every class folder below `images_root/train` is a seen class, every one below `images_root/val`
    an unseen one (tiered-ImageNet's 351 and 97). Of each seen class round(test_share * n) images,
    drawn by sha256 of (seed, class, file), are `test_id`; with Li et al. X_id is 30 % throughout.

    Raises:
        UsageError: see `read_official_lists`; also a share outside (0, 1) or no such folders.
    """
    if not 0 < test_share < 1:
        raise UsageError(f"--test-share {test_share}: must lie between 0 and 1, both excluded")
    classes = read_official_classes(folder)
    train: list[Listed] = []
    test_id: list[Listed] = []
    for name, files in _class_folders(images_root / "train"):
        order = sorted(files, key=lambda file: sha256_text(f"{seed}:{name}/{file}"))
        count = round(test_share * len(order))
        test_id += [(name, file) for file in sorted(order[:count])]
        train += [(name, file) for file in sorted(order[count:])]
    unseen = [(name, file) for name, files in _class_folders(images_root / "val") for file in files]
    drawn = {"train": train, "test_id": test_id, "unseen_classes": unseen}
    return _lists(classes, drawn, images_root)


def match_images(
    lists: OfficialLists, images_root: Path, *, allow_missing: bool = False
) -> tuple[Entry, ...]:
    """Find every listed image below a user's copy of the dataset, whatever its folders.

    An image is found by its file name. A folder that is called after a class (its folder or its
    label; nested ones joined, so that `a/apartment_building/outdoor` is
    `apartment_building_outdoor`) decides between files of one name and keeps another class's file
    from being taken. Of files that nothing tells apart the first is taken when their bytes agree.

    Returns:
        One entry an image in the order of the lists, with its label and its split.

    Raises:
        UsageError: no such folder, files of one name that nothing tells apart, or images that are
            missing (the first five are named), unless `allow_missing` and some are there.
    """
    root = images_root.expanduser().resolve()
    if not root.is_dir():
        raise UsageError(f"{images_root} is no folder; give the dataset's images")
    listed = [(split, *one) for split, part in lists.splits().items() for one in part]
    found = _find_files(root, {file for _, _, file in listed})
    labels = lists.labels()
    class_of = _class_finder(lists)
    entries: list[Entry] = []
    missing: list[str] = []
    for split, folder, file in listed:
        known = [(name, class_of(name)) for name in found.get(file, ())]
        places = [name for name, owner in known if owner == folder]
        places = places or [name for name, owner in known if owner is None]
        if not places:
            missing.append(f"{folder}/{file}")
            continue
        _refuse_ambiguous(root, places, f"{folder}/{file}")
        path = str(root / places[0])
        entries.append(Entry(path=path, name=places[0], label=labels[folder], split=split))
    _report_missing(missing, len(listed), lists.name, root, allow_missing)
    return tuple(entries)


def write_manifest(
    lists: OfficialLists, images_root: Path, out: Path, *, allow_missing: bool = False
) -> Path:
    """Write `manifest.csv` (path, label, split) into `out`, and class lists beside it.

    `classes.txt` holds the names alone; `descriptions.json`, where there are any, holds
    {label: [text]} with the text that the official code encodes, `DESCRIBED`, and an empty list for
    a class without one, which so gets the plain prompt.

    Returns:
        The manifest's path.

    Raises:
        UsageError: see `match_images`; or a place that cannot be written to.
    """
    check_writable(out)
    entries = match_images(lists, images_root, allow_missing=allow_missing)
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(["path", "label", "split"])
    writer.writerows([entry.path, entry.label, entry.split] for entry in entries)
    present = {entry.label for entry in entries}
    labels = {folder: name for folder, name in lists.labels().items() if name in present}
    write_text(out / "classes.txt", "".join(f"{label}\n" for label in labels.values()))
    if lists.descriptions:
        write_json(
            out / "descriptions.json",
            {label: _described(lists, folder, label) for folder, label in labels.items()},
        )
    write_text(out / "manifest.csv", rows.getvalue())
    return out / "manifest.csv"


def _described(classes: OfficialClasses, folder: str, label: str) -> list[str]:
    sentence = classes.descriptions.get(folder)
    return [] if sentence is None else [DESCRIBED.format(label=label, sentence=sentence)]


def _read_lines(path: Path) -> list[str]:
    """Return the lines of a text file; the last one may lack its end, and CRLF is an end."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read ({error}); give a folder with the files of Li et al.'s data/, "
            f"which holds {NAMES_FILE}"
        ) from error
    # Not splitlines(), which also cuts at characters that a sentence may hold.
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _read_list(path: Path) -> list[Listed]:
    listed = []
    for number, line in enumerate(_read_lines(path), start=1):
        parts = line.strip().split("/")
        if len(parts) < 3 or not all(parts):
            raise UsageError(f"{path} line {number}: {line!r} is not `split/CLASS/file`")
        listed.append(("/".join(parts[1:-1]), parts[-1]))
    return listed


def _lists(
    classes: OfficialClasses, images: Mapping[str, list[Listed]], source: Path
) -> OfficialLists:
    """Check the three lists against each other and against the names."""
    seen: set[Listed] = set()
    for split, listed in images.items():
        if not listed:
            raise UsageError(f"{source} has no image in {split}")
        twice = [f"{folder}/{file}" for folder, file in listed if (folder, file) in seen]
        seen.update(listed)
        if twice or len(set(listed)) < len(listed):
            example = twice[0] if twice else "/".join(Counter(listed).most_common(1)[0][0])
            raise UsageError(f"{source} lists an image twice: {example} (in {split})")
    train, test_id, unseen = (_folders(listed) for listed in images.values())
    problems = {
        f"is not named in {NAMES_FILE}": (train | test_id | unseen) - classes.class_names.keys(),
        "is both seen and unseen": unseen & (train | test_id),
        "is tested as a seen class and has no training image": test_id - train,
    }
    for problem, folders in problems.items():
        if folders:
            raise UsageError(f"{source}: the class {min(folders)!r} {problem}")
    used = train | unseen
    return OfficialLists(
        name=classes.name,
        class_names={k: v for k, v in classes.class_names.items() if k in used},
        descriptions={k: v for k, v in classes.descriptions.items() if k in used},
        **{split: tuple(listed) for split, listed in images.items()},
    )


def _folders(listed: Collection[Listed]) -> set[str]:
    return {folder for folder, _ in listed}


def _class_folders(parent: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the images of each class folder in `parent`, both in order."""
    if not parent.is_dir():
        raise UsageError(f"{parent} is no folder: train/ and val/ must hold a folder a class each")
    for folder in sorted(path for path in parent.iterdir() if path.is_dir()):
        files = sorted(path.name for path in folder.rglob("*") if is_image_name(path.name))
        yield folder.name, [name for name in files if not name.startswith(".")]


def _find_files(root: Path, wanted: set[str]) -> dict[str, list[str]]:
    """Return file name -> the places below `root` that have it, relative, with forward slashes."""
    found: dict[str, list[str]] = defaultdict(list)
    entered: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:  # a link to a folder that was looked through
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n != "__MACOSX")
        relative = Path(folder).relative_to(root)
        for name in wanted.intersection(files):
            found[name].append((relative / name).as_posix())
    return found


def _class_finder(classes: OfficialClasses) -> Callable[[str], str | None]:
    """Return what tells the class that a path's folders name, if any: the nearest, the longest."""
    known = {normalise_name(label): folder for folder, label in classes.labels().items()}
    known |= {normalise_name(name.replace("/", "_")): name for name in classes.class_names}

    @cache
    def of_folder(folder: str) -> str | None:
        parts = folder.split("/")
        spans = [(start, end) for end in range(len(parts), 0, -1) for start in range(end)]
        names = (normalise_name("_".join(parts[start:end])) for start, end in spans)
        return next((known[name] for name in names if name in known), None)

    return lambda name: of_folder(name.rpartition("/")[0])


def _refuse_ambiguous(root: Path, places: Sequence[str], wanted: str) -> None:
    first = root / places[0]
    other = next((p for p in places[1:] if not filecmp.cmp(first, root / p, shallow=False)), None)
    if other is not None:
        raise UsageError(
            f"{wanted} may be {places[0]} or {other} below {root}, and no folder says which: give "
            "the one folder with the listed images (of Stanford Cars, cars_train)"
        )


def _report_missing(
    missing: Sequence[str], total: int, name: str, root: Path, allow_missing: bool
) -> None:
    if not missing:
        return
    shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
    what = f"{len(missing):,} of the {total:,} images of {name} are not below {root}: {shown}"
    if not allow_missing:
        raise UsageError(f"{what}; complete the copy, or go without them with --allow-missing")
    if len(missing) == total:
        raise UsageError(f"{what}; give the folder of this dataset's images")
    _LOG.warning("left out: %s", what)

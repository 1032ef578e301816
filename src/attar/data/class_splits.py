"""Seen and unseen classes: which classes training never sees, and who is ranked among whom."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from attar.data.classes import normalise_name, read_class_list
from attar.data.table import ImageTable, label_sets_among
from attar.errors import UsageError
from attar.files import sha256_text

UNSEEN = "unseen_classes"
FURTHER_UNSEEN = "further_unseen"
_SEEN = ("train", "val", "test_id", "held_out")


def assign_unseen(
    table: ImageTable,
    assigned: list[str | None],
    share: float,
    names: Path | None,
    seed: int,
) -> None:
    """Put every image of an unseen class into the split `unseen_classes`, in place.

    The unseen classes are those in the file `names`, or `share` of all classes drawn by the seed.
    Images that a manifest gives a split, and so its own unseen classes, stay where they are.

    Raises:
        UsageError: names that no image has, fewer than two classes on either side, a class that
            would be both seen and unseen, images with several labels, which a manifest divides, or
            images that all have a split already.
    """
    if table.has_label_sets and (names is not None or share):
        raise UsageError(
            "an image with several labels may hold seen and unseen ones: name the splits in the "
            "manifest's split column, and leave --splits.unseen-share and --splits.unseen-classes "
            "out"
        )
    if names is not None:
        unseen = _named(table, names)
    elif share:
        unseen = draw_unseen(_present(table), share, seed)
    else:
        unseen = ()
    indices = {table.class_names.index(name) for name in unseen}
    for row, label in enumerate(table.labels):
        if label in indices and assigned[row] in (None, "held_out"):
            assigned[row] = UNSEEN
    if unseen and UNSEEN not in assigned:
        raise UsageError(
            "every image of the unseen classes has a split already, which its manifest or folder "
            f"names: name {UNSEEN} there, or drop the split column (of folders: give --data "
            "ROOT/train and --data ROOT/test apart) and leave the division to attar"
        )


def draw_unseen(class_names: Sequence[str], share: float, seed: int) -> tuple[str, ...]:
    """Return round(share * C) of the classes in their order, drawn by sha256 of (seed, name).

    Raises:
        UsageError: fewer than two classes would be seen, or unseen.
    """
    count = round(share * len(class_names))
    if min(count, len(class_names) - count) < 2:
        raise UsageError(
            f"unseen_share {share:g} of {len(class_names)} classes leaves fewer than two seen or "
            "unseen: give another share"
        )
    order = sorted(class_names, key=lambda name: sha256_text(f"{seed}:{normalise_name(name)}"))
    drawn = set(order[:count])
    return tuple(name for name in class_names if name in drawn)


def relabel(table: ImageTable, class_names: Sequence[str]) -> ImageTable:
    """Return the table with the labels counted in other class names, which hold all it uses.

    Of images with several labels, those that `class_names` lack are left out instead.

    Raises:
        UsageError: an image has a label that `class_names` lacks.
    """
    position = {name: index for index, name in enumerate(class_names)}
    if table.has_label_sets:
        moved = [position.get(name, -1) for name in table.class_names]
        labels = tuple(moved[label] if label >= 0 else -1 for label in table.labels)
        sets = label_sets_among(table, class_names)
        return replace(table, labels=labels, label_sets=sets, class_names=tuple(class_names))
    used = sorted({label for label in table.labels if label >= 0})
    lacking = [
        table.class_names[label] for label in used if table.class_names[label] not in position
    ]
    if lacking:
        raise UsageError(f"images are labelled {lacking[0]!r}, which is not among the classes")
    labels = tuple(position[table.class_names[i]] if i >= 0 else -1 for i in table.labels)
    return replace(table, labels=labels, class_names=tuple(class_names))


def names_in(table: ImageTable) -> frozenset[str]:
    """Return the names of all labels that some image of a table with label sets has."""
    return frozenset(table.class_names[label] for labels in table.label_sets for label in labels)


def _present(table: ImageTable) -> tuple[str, ...]:
    used = {label for label in table.labels if label >= 0}
    return tuple(name for index, name in enumerate(table.class_names) if index in used)


def _named(table: ImageTable, path: Path) -> tuple[str, ...]:
    present = _present(table)
    wanted = {normalise_name(name): name for name in read_class_list(path).names}
    unseen = tuple(name for name in present if normalise_name(name) in wanted)
    strangers = wanted.keys() - {normalise_name(name) for name in unseen}
    if strangers:
        shown = ", ".join(sorted(wanted[name] for name in strangers)[:5])
        raise UsageError(
            f"{path} names unseen classes that no image has: {shown}; correct the file or the data"
        )
    if len(present) - len(unseen) < 2:
        raise UsageError(f"{path} leaves fewer than two of {len(present)} classes seen")
    return unseen


def check_disjoint(table: ImageTable, assigned: Sequence[str | None]) -> None:
    """Refuse a class that stands on both sides; few-shot images alone may.

    Raises:
        UsageError: a class is unseen and also trained on or tested as a seen one.
    """
    unseen: set[int] = set()
    seen: set[int] = set()
    for label, name in zip(table.labels, assigned, strict=True):
        if label >= 0 and name in (UNSEEN, FURTHER_UNSEEN):
            unseen.add(label)
        elif label >= 0 and name in _SEEN:
            seen.add(label)
    both = unseen & seen
    if both:
        names = ", ".join(repr(table.class_names[label]) for label in sorted(both)[:5])
        raise UsageError(
            f"{len(both)} classes are both unseen and seen ({names}): every image of a class in "
            f"the manifest's split {UNSEEN} needs that split, or few_shot"
        )

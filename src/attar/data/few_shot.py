"""Few-shot images: some of the unseen classes' images, moved to training."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attar.data.class_splits import draw_unseen
from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.files import sha256_text


@dataclass(frozen=True, kw_only=True)
class Shots:
    """Which images are moved."""

    count: int
    """Images of each class."""
    share: float
    """Share of the unseen classes that get any."""
    class_seed: int
    """Draws these classes."""
    image_seed: int | None
    """Draws the images; None: the first ones by name."""


def move_few_shot(table: ImageTable, assigned: list[str | None], shots: Shots) -> list[str]:
    """Move a few images of each unseen class to few-shot training: the first by name, or drawn.

    Returns what a reader should know of it, one sentence each.
    """
    if table.has_label_sets:
        raise UsageError(
            f"few_shot {shots.count}: an image with several labels is no shot of one class; name "
            "the few-shot images in the manifest's split column instead"
        )
    out = "unseen_classes" if "unseen_classes" in assigned else "test_ood"
    rows = [row for row, name in enumerate(assigned) if name == out]
    if not any(table.labels[row] >= 0 for row in rows):
        raise UsageError(
            f"few_shot {shots.count} needs labelled images of unseen classes and there are "
            "none: give --splits.unseen-share, --splits.unseen-classes, or name them in a "
            "manifest's split column"
        )

    _keep_some_apart(table, assigned, rows, shots)
    rows = [row for row in rows if assigned[row] == out]

    def place(row: int) -> str:
        seed = shots.image_seed
        return table.names[row] if seed is None else sha256_text(f"{seed}:{table.keys[row]}")

    chosen: dict[int, list[str]] = defaultdict(list)
    for row in sorted(rows, key=place):
        label, key = table.labels[row], table.keys[row]
        if label >= 0 and len(chosen[label]) < shots.count and key not in chosen[label]:
            chosen[label].append(key)
    _check_shots(table, rows, chosen, shots.count)
    return _move(table, assigned, rows, chosen)


def _move(
    table: ImageTable,
    assigned: list[str | None],
    rows: Sequence[int],
    chosen: Mapping[int, Sequence[str]],
) -> list[str]:
    """Move one row of each chosen image; other rows with its bytes are left out of everything."""
    wanted = {(label, key) for label, keys in chosen.items() for key in keys}
    shown = {key for _, key in wanted}
    copies = 0
    for row in rows:
        if (table.labels[row], table.keys[row]) in wanted:
            wanted.remove((table.labels[row], table.keys[row]))
            assigned[row] = "few_shot"
        elif table.keys[row] in shown:
            assigned[row] = None
            copies += 1
    return [f"{copies:,} copies of few-shot images left out."] if copies else []


def _check_shots(
    table: ImageTable, rows: Sequence[int], chosen: Mapping[int, Sequence[str]], shots: int
) -> None:
    """Refuse a class of which no image would be left to measure."""
    of_label: dict[int, set[str]] = defaultdict(set)
    for row in rows:
        of_label[table.labels[row]].add(table.keys[row])
    for label in chosen:
        if len(of_label[label]) <= shots:
            raise UsageError(
                f"the class {table.class_names[label]!r} has {len(of_label[label])} images: too "
                f"few for {shots} shots and one to measure; give more images or fewer shots"
            )


def _keep_some_apart(
    table: ImageTable, assigned: list[str | None], rows: Sequence[int], shots: Shots
) -> None:
    """Move the classes that get no few-shot images to `further_unseen`."""
    if shots.share == 1:
        return
    labels = {table.labels[row] for row in rows} - {-1}
    names = [table.class_names[label] for label in sorted(labels)]
    apart = draw_unseen(names, 1 - shots.share, shots.class_seed)
    for row in rows:
        if table.labels[row] >= 0 and table.class_names[table.labels[row]] in apart:
            assigned[row] = "further_unseen"

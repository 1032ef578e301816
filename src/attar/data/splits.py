"""Splits as a value: what training may see, and what only evaluation may."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from attar.data.class_splits import assign_unseen, check_disjoint, names_in, relabel
from attar.data.few_shot import Shots, move_few_shot
from attar.data.share import keep_share
from attar.data.split_names import SPLIT_NAMES, TRAINVAL
from attar.data.table import ImageTable
from attar.errors import UsageError, unknown_name
from attar.files import sha256_text

SOURCE = ("train", "few_shot", "val")
"""The splits that training and selection may see."""
_APART = ("unseen_classes", "further_unseen", "held_out")
_TEST = ("test_id", "test_ood", "unseen_classes", "further_unseen", "held_out")


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How the images are divided."""

    seed: int = 0
    """Seed of the division; the same seed and images give the same splits."""
    val_fraction: float = 0.1
    """Share of the source images that validates while training."""
    test_fraction: float = 0.2
    """Share of the source images kept for the in-distribution test."""
    train_share: float = 1.0
    """Share of the training images of each domain and class that is used, drawn by the seed."""
    held_out_domain: str | None = None
    """Domain kept out of training, selection and early stopping."""
    held_out_part: Literal["all", "in"] = "all"
    """What of it DomainBed's protocol measures: all, or the 80 % that published tables report."""
    unseen_share: float = 0.0
    """Share of the classes, drawn by the seed, of which training sees no image (unseen classes)."""
    unseen_classes: Path | None = None
    """File that names the unseen classes instead, one a line."""
    few_shot: int = 0
    """Images of each class moved from the unseen ones (or a manifest's test_ood) to training."""
    few_shot_share: float = 1.0
    """Share of the unseen classes, drawn by the seed, that get few-shot images; the others are kept
    apart as `further_unseen` (Li et al., Table 11)."""
    few_shot_seed: int | None = None
    """Draws the few-shot images; by default the first ones by file name, as Li et al. take them."""


@dataclass(frozen=True, kw_only=True)
class SourceSplits:
    """All that training and selection may see."""

    train: ImageTable
    val: ImageTable
    few_shot: ImageTable


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The images of a run by purpose; no file's bytes stand on both sides of train and test."""

    source: SourceSplits
    test_id: ImageTable
    """Same domains and classes as training."""
    test_ood: ImageTable
    """Out of distribution, named by a manifest."""
    unseen_classes: ImageTable
    """Classes of which training sees no image; with few-shot learning, all but those few."""
    further_unseen: ImageTable
    """Unseen classes without few-shot images, where the others have some."""
    held_out: ImageTable
    """The held-out domain."""
    notes: tuple[str, ...] = ()
    """What was done to the data that a reader should know, one sentence each."""

    def tables(self) -> dict[str, ImageTable]:
        """Return all eight tables by name."""
        return {
            "train": self.source.train,
            "val": self.source.val,
            "few_shot": self.source.few_shot,
            "test_id": self.test_id,
            "test_ood": self.test_ood,
            "unseen_classes": self.unseen_classes,
            "further_unseen": self.further_unseen,
            "held_out": self.held_out,
        }

    def seen_labels(self) -> frozenset[str]:
        """Return the labels of training and validation images with several each, few-shot aside."""
        return names_in(self.source.train) | names_in(self.source.val)

    def describe(self) -> str:
        """Return the counts in words: "train 700, val 100, test_id 200"."""
        parts = [f"{name} {len(table):,}" for name, table in self.tables().items() if len(table)]
        return ", ".join(parts)


def make_splits(table: ImageTable, config: SplitConfig) -> Splits:
    """Divide the images; a pure function of the table and the config.

    The held-out domain goes to `held_out` whole, every image of an unseen class in any domain to
    `unseen_classes`. Images whose manifest, or whose folder, names a split go there. The others are
    divided by `test_fraction` and `val_fraction`, those named `trainval` by `val_fraction` alone,
    within each (domain, class), files with the same bytes together; each class keeps at least one
    training image. Copies in source splits of images that are tested elsewhere are left out and
    counted in `notes`.

    Raises:
        UsageError: fractions that leave nothing to train on, an unknown held-out domain or split
            name, unseen classes asked of images that all have a split, or no training images left.
    """
    _check_config(config)
    assigned: list[str | None] = [_split_of(name) for name in table.splits]
    if config.held_out_domain is not None:
        held_out = domain_index(table, config.held_out_domain)
        for row, domain in enumerate(table.domains):
            if domain == held_out and assigned[row] not in ("unseen_classes", "further_unseen"):
                assigned[row] = "held_out"
    assign_unseen(table, assigned, config.unseen_share, config.unseen_classes, config.seed)
    _follow_copies(table, assigned)
    _divide(table, assigned, config)
    _divide(table, assigned, replace(config, test_fraction=0.0), TRAINVAL)
    check_disjoint(table, assigned)
    notes: list[str] = []
    if config.few_shot:
        shots = Shots(
            count=config.few_shot,
            share=config.few_shot_share,
            class_seed=config.seed,
            image_seed=config.few_shot_seed,
        )
        notes += move_few_shot(table, assigned, shots)
    dropped, left_out_notes = _drop_straddling(table, assigned)
    notes += left_out_notes
    rows: dict[str, list[int]] = {name: [] for name in (*SOURCE, *_TEST)}
    for row, name in enumerate(assigned):
        if row not in dropped and name is not None:
            rows[name].append(row)
    if not rows["train"] and not rows["few_shot"]:
        raise UsageError(
            f"no images are left to train on of {len(table):,} ({_counts(rows)}): give more "
            "images, or lower the test and validation fractions"
        )
    if not rows["val"] and config.val_fraction > 0:
        notes.append("No image is left for validation.")
    return with_train_share(split_class_names(build(table, rows, notes)), config)


def with_train_share(splits: Splits, config: SplitConfig) -> Splits:
    """Leave out all training images but `train_share` of them; nothing else changes."""
    train = keep_share(splits.source.train, config.train_share, config.seed)
    return replace(splits, source=replace(splits.source, train=train))


def _check_config(config: SplitConfig) -> None:
    for name in ("val_fraction", "test_fraction"):
        value = getattr(config, name)
        if not 0 <= value < 1:
            raise UsageError(f"{name} {value} is not a share: give 0 <= {name} < 1")
    if config.val_fraction + config.test_fraction >= 1:
        raise UsageError(
            f"val_fraction {config.val_fraction} and test_fraction {config.test_fraction} leave "
            "nothing to train on: their sum must be below 1"
        )
    if not 0 <= config.unseen_share < 1:
        raise UsageError(f"unseen_share {config.unseen_share} is not a share: give 0 <= share < 1")
    if config.unseen_share and config.unseen_classes is not None:
        raise UsageError("give --splits.unseen-share or --splits.unseen-classes, not both")
    if not 0 < config.few_shot_share <= 1:
        raise UsageError(f"few_shot_share {config.few_shot_share}: give 0 < share <= 1")
    if config.held_out_part != "all":
        raise UsageError(
            f"--splits.held-out-part {config.held_out_part} is DomainBed's split: give --protocol "
            "domainbed, or leave it out"
        )
    if config.few_shot < 0:
        raise UsageError(f"few_shot {config.few_shot} is negative: give images per class")


def _split_of(name: str | None) -> str | None:
    if name is None:
        return None
    if name not in SPLIT_NAMES:
        raise unknown_name("split", name, SPLIT_NAMES)
    return SPLIT_NAMES[name]


def domain_index(table: ImageTable, name: str) -> int:
    """Return the index of a domain that some image has; any other is refused."""
    check_domain(name, [table.domain_names[index] for index in table.domains if index >= 0])
    return table.domain_names.index(name)


def check_domain(name: str, domains: Iterable[str | None]) -> None:
    """Refuse a domain to hold out that none of the images' `domains` is (None: no domain)."""
    present = {domain for domain in domains if domain is not None}
    if not present:
        raise UsageError(
            f"domain {name!r} cannot be held out: the data has no domains; give it as "
            "domain/class/image or as a manifest with a domain column (folders that are all named "
            "like splits, such as train and val, are no domains)"
        )
    if name not in present:
        raise unknown_name("domain", name, present)


def _follow_copies(table: ImageTable, assigned: list[str | None]) -> None:
    """Put files without a split where a manifest puts a copy of them; tests have precedence.

    Copies of the held-out domain's images, and of unseen classes', go to training, from where they
    are dropped: a test must not hold images that were found in another domain or class.
    """
    order = {name: place for place, name in enumerate(("train", TRAINVAL, *SOURCE[1:], *_TEST))}
    named: dict[str, str] = {}
    for key, split in zip(table.keys, assigned, strict=True):
        if split is not None and order[split] >= order[named.get(key, "train")]:
            named[key] = split
    for row, key in enumerate(table.keys):
        if assigned[row] is None and key in named:
            assigned[row] = "train" if named[key] in _APART else named[key]


def _divide(
    table: ImageTable, assigned: list[str | None], config: SplitConfig, part: str | None = None
) -> None:
    """Divide the rows assigned to `part`, stratified by (domain, class), copies kept together.

    The order is that of sha256(seed, key), so it depends neither on names nor on other files.
    Shares are rounded with the remainder carried on to the next stratum: many small classes
    together still give the asked share.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for row, key in enumerate(table.keys):
        if assigned[row] == part:
            groups[key].append(row)
    strata: dict[str, list[str]] = defaultdict(list)
    for key, members in groups.items():
        strata[_stratum(table, members[0])].append(key)

    def seeded(text: str) -> str:
        return sha256_text(f"{config.seed}:{text}")

    left: dict[str, int] = defaultdict(int)  # of each class, in all domains together
    for members in groups.values():
        left[_class_of(table, members[0])] += len(members)
    carried = {"test_id": 0.5, "val": 0.5}
    fractions = {"test_id": config.test_fraction, "val": config.val_fraction}
    for stratum in sorted(strata, key=seeded):
        keys = sorted(strata[stratum], key=seeded)
        size = sum(len(groups[key]) for key in keys)
        label = _class_of(table, groups[keys[0]][0])
        room = min(size, left[label] - 1)
        quota = {}
        for name, fraction in fractions.items():
            wanted = carried[name] + size * fraction + 1e-9
            quota[name] = min(int(wanted), room)
            carried[name] = min(wanted - 1e-9 - quota[name], 1.0)
            room -= quota[name]
        for key in keys:
            members = groups[key]
            split = next((name for name in quota if quota[name] >= len(members)), "train")
            if split != "train":
                quota[split] -= len(members)
                left[label] -= len(members)
            for row in members:
                assigned[row] = split


def _stratum(table: ImageTable, row: int) -> str:
    domain = table.domains[row]
    return f"{table.domain_names[domain] if domain >= 0 else ''}/{_class_of(table, row)}"


def _class_of(table: ImageTable, row: int) -> str:
    return table.class_names[table.labels[row]] if table.labels[row] >= 0 else ""


def _drop_straddling(
    table: ImageTable, assigned: Sequence[str | None]
) -> tuple[set[int], list[str]]:
    """Return the source rows whose bytes are also tested (or, for training, validated)."""
    keys_of: dict[str, set[str]] = defaultdict(set)
    for key, name in zip(table.keys, assigned, strict=True):
        if name is not None:
            keys_of[name].add(key)
    tested = set().union(*(keys_of[name] for name in _TEST if name != "held_out"))
    dropped: dict[str, set[int]] = defaultdict(set)
    for row, (key, name) in enumerate(zip(table.keys, assigned, strict=True)):
        if name not in SOURCE:
            continue
        if key in keys_of["held_out"]:
            dropped["the held-out domain"].add(row)
        elif key in tested:
            dropped["the test"].add(row)
        elif name != "val" and key in keys_of["val"]:
            dropped["validation"].add(row)
    notes = [left_out(len(rows), place) for place, rows in dropped.items()]
    return set().union(*dropped.values()), notes


def left_out(count: int, place: str) -> str:
    """Return the note about source images that are copies of images elsewhere."""
    images = "image" if count == 1 else "images"
    return f"{count:,} source {images} left out: identical to images of {place}."


def _counts(rows: dict[str, list[int]]) -> str:
    return ", ".join(f"{name} {len(value):,}" for name, value in rows.items() if value) or "none"


def split_class_names(splits: Splits) -> Splits:
    """Count labels in seen classes on one side and in unseen ones on the other.

    Training then has no place for an unseen class, and unseen images are ranked among unseen
    classes alone. With few-shot images the source knows all classes: they are learnt together.
    Without unseen classes nothing changes. Classes without any image count as seen.

    Images of unseen classes with several labels show seen ones too: those keep all names.
    """
    if splits.unseen_classes.has_label_sets:
        return _split_label_names(splits)
    every = splits.unseen_classes.class_names
    apart = {label for label in splits.unseen_classes.labels if label >= 0}
    further = {label for label in splits.further_unseen.labels if label >= 0}
    if not apart and not further:
        return splits
    unseen = [name for index, name in enumerate(every) if index in apart]
    beyond = [name for index, name in enumerate(every) if index in further]
    seen = [name for index, name in enumerate(every) if index not in apart | further]
    learnt = [name for index, name in enumerate(every) if index not in further]
    trained = learnt if len(splits.source.few_shot) else seen
    source = SourceSplits(
        **{
            name: relabel(getattr(splits.source, name), trained)
            for name in ("train", "val", "few_shot")
        }
    )
    return replace(
        splits,
        source=source,
        test_id=relabel(splits.test_id, seen),
        held_out=relabel(splits.held_out, seen),
        unseen_classes=relabel(splits.unseen_classes, unseen),
        further_unseen=relabel(splits.further_unseen, beyond),
    )


def _split_label_names(splits: Splits) -> Splits:
    """Count in the labels that training images have, wherever unseen ones have no place."""
    every, seen = splits.unseen_classes.class_names, splits.seen_labels()
    names = [name for name in every if name in seen]
    trained = every if len(splits.source.few_shot) else names
    source = SourceSplits(
        train=relabel(splits.source.train, trained),
        val=relabel(splits.source.val, trained),
        few_shot=relabel(splits.source.few_shot, trained),
    )
    return replace(
        splits,
        source=source,
        test_id=relabel(splits.test_id, names),
        held_out=relabel(splits.held_out, names),
    )


def build(table: ImageTable, rows: dict[str, list[int]], notes: Iterable[str]) -> Splits:
    """Gather the rows of each split, by its name."""

    def part(name: str) -> ImageTable:
        return table.select(rows.get(name, []))

    return Splits(
        source=SourceSplits(train=part("train"), val=part("val"), few_shot=part("few_shot")),
        test_id=part("test_id"),
        test_ood=part("test_ood"),
        unseen_classes=part("unseen_classes"),
        further_unseen=part("further_unseen"),
        held_out=part("held_out"),
        notes=tuple(notes),
    )

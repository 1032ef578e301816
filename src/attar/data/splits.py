"""Splits as a value: what training may see, and what only evaluation may."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from attar.data.table import ImageTable
from attar.errors import UsageError, unknown_name
from attar.files import sha256_text

SPLIT_NAMES: dict[str, str] = {
    "train": "train",
    "val": "val",
    "few_shot": "few_shot",
    "test": "test_id",
    "test_id": "test_id",
    "test_ood": "test_ood",
    "held_out": "held_out",
}
"""Split names that a manifest may use -> the split they mean."""

_SOURCE = ("train", "few_shot", "val")
_TEST = ("test_id", "test_ood", "held_out")


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How the images are divided."""

    seed: int = 0
    """Seed of the division; the same seed and images give the same splits."""
    val_fraction: float = 0.1
    """Share of the source images that validates while training."""
    test_fraction: float = 0.2
    """Share of the source images kept for the in-distribution test."""
    held_out_domain: str | None = None
    """Domain kept out of training, selection and early stopping."""
    few_shot: int = 0
    """Images of each class moved from the out-of-distribution test to few-shot training."""


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
    held_out: ImageTable
    """The held-out domain."""
    notes: tuple[str, ...] = ()
    """What was done to the data that a reader should know, one sentence each."""

    def tables(self) -> dict[str, ImageTable]:
        """Return all six tables by name."""
        return {
            "train": self.source.train,
            "val": self.source.val,
            "few_shot": self.source.few_shot,
            "test_id": self.test_id,
            "test_ood": self.test_ood,
            "held_out": self.held_out,
        }

    def describe(self) -> str:
        """Return the counts in words: "train 700, val 100, test_id 200"."""
        parts = [f"{name} {len(table):,}" for name, table in self.tables().items() if len(table)]
        return ", ".join(parts)


def make_splits(table: ImageTable, config: SplitConfig) -> Splits:
    """Divide the images; a pure function of the table and the config.

    The held-out domain goes to `held_out` whole. Images with a split in their manifest go there.
    The others are divided by `test_fraction` and `val_fraction` within each (domain, class), files
    with the same bytes together; each class keeps at least one training image. Copies
    in source splits of images that are tested elsewhere are left out and counted in `notes`.

    Raises:
        UsageError: fractions that leave nothing to train on, an unknown held-out domain or split
            name, or no training images left.
    """
    _check_config(config)
    assigned: list[str | None] = [_split_of(name) for name in table.splits]
    if config.held_out_domain is not None:
        held_out = _domain_index(table, config.held_out_domain)
        for row, domain in enumerate(table.domains):
            assigned[row] = "held_out" if domain == held_out else assigned[row]
    _follow_copies(table, assigned)
    _divide(table, assigned, config)
    if config.few_shot:
        _move_few_shot(table, assigned, config.few_shot)
    dropped, notes = _drop_straddling(table, assigned)
    rows: dict[str, list[int]] = {name: [] for name in (*_SOURCE, *_TEST)}
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
    return _build(table, rows, notes)


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
    if config.few_shot < 0:
        raise UsageError(f"few_shot {config.few_shot} is negative: give images per class")


def _split_of(name: str | None) -> str | None:
    if name is None:
        return None
    if name not in SPLIT_NAMES:
        raise unknown_name("split", name, SPLIT_NAMES)
    return SPLIT_NAMES[name]


def _domain_index(table: ImageTable, name: str) -> int:
    check_domain(name, [table.domain_names[index] for index in table.domains if index >= 0])
    return table.domain_names.index(name)


def check_domain(name: str, domains: Iterable[str | None]) -> None:
    """Refuse a domain to hold out that none of the images' `domains` is (None: no domain)."""
    present = {domain for domain in domains if domain is not None}
    if not present:
        raise UsageError(
            f"domain {name!r} cannot be held out: the data has no domains; give it as "
            "domain/class/image or as a manifest with a domain column"
        )
    if name not in present:
        raise unknown_name("domain", name, present)


def _follow_copies(table: ImageTable, assigned: list[str | None]) -> None:
    """Put files without a split where a manifest puts a copy of them; tests have precedence.

    Copies of the held-out domain's images go to training, from where they are dropped: a test of
    a domain must not hold images that were found in another.
    """
    order = {name: place for place, name in enumerate((*_SOURCE, *_TEST))}
    named: dict[str, str] = {}
    for key, split in zip(table.keys, assigned, strict=True):
        if split is not None and order[split] >= order[named.get(key, "train")]:
            named[key] = split
    for row, key in enumerate(table.keys):
        if assigned[row] is None and key in named:
            assigned[row] = "train" if named[key] == "held_out" else named[key]


def _divide(table: ImageTable, assigned: list[str | None], config: SplitConfig) -> None:
    """Divide the rows without a split, stratified by (domain, class), copies kept together.

    The order is that of sha256(seed, key), so it depends neither on names nor on other files.
    Shares are rounded with the remainder carried on to the next stratum: many small classes
    together still give the asked share.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for row, key in enumerate(table.keys):
        if assigned[row] is None:
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


def _move_few_shot(table: ImageTable, assigned: list[str | None], shots: int) -> None:
    """Move the first `shots` images by name of each class from test_ood to few_shot (Li et al.)."""
    rows = [row for row, name in enumerate(assigned) if name == "test_ood"]
    if not any(table.labels[row] >= 0 for row in rows):
        raise UsageError(
            f"few_shot {shots} needs labelled images in the split test_ood and there are none: "
            "name them in a manifest's split column"
        )
    chosen: dict[int, list[str]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: table.names[row]):
        label, key = table.labels[row], table.keys[row]
        if label >= 0 and len(chosen[label]) < shots and key not in chosen[label]:
            chosen[label].append(key)
    moved = {key for keys in chosen.values() for key in keys}
    for row in rows:
        if table.keys[row] in moved:
            assigned[row] = "few_shot"


def _drop_straddling(
    table: ImageTable, assigned: Sequence[str | None]
) -> tuple[set[int], list[str]]:
    """Return the source rows whose bytes are also tested (or, for training, validated)."""
    keys_of: dict[str, set[str]] = defaultdict(set)
    for key, name in zip(table.keys, assigned, strict=True):
        if name is not None:
            keys_of[name].add(key)
    tested = keys_of["test_id"] | keys_of["test_ood"]
    dropped: dict[str, set[int]] = defaultdict(set)
    for row, (key, name) in enumerate(zip(table.keys, assigned, strict=True)):
        if name not in _SOURCE:
            continue
        if key in keys_of["held_out"]:
            dropped["the held-out domain"].add(row)
        elif key in tested:
            dropped["the test"].add(row)
        elif name != "val" and key in keys_of["val"]:
            dropped["validation"].add(row)
    notes = [_left_out(len(rows), place) for place, rows in dropped.items()]
    return set().union(*dropped.values()), notes


def _left_out(count: int, place: str) -> str:
    images = "image" if count == 1 else "images"
    return f"{count:,} source {images} left out: identical to images of {place}."


def _counts(rows: dict[str, list[int]]) -> str:
    return ", ".join(f"{name} {len(value):,}" for name, value in rows.items() if value) or "none"


def _build(table: ImageTable, rows: dict[str, list[int]], notes: Iterable[str]) -> Splits:
    def part(name: str) -> ImageTable:
        return table.select(rows.get(name, []))

    return Splits(
        source=SourceSplits(train=part("train"), val=part("val"), few_shot=part("few_shot")),
        test_id=part("test_id"),
        test_ood=part("test_ood"),
        held_out=part("held_out"),
        notes=tuple(notes),
    )


def seed_hash(*values: object) -> int:
    """Return DomainBed's seed of some values: md5 of their tuple's text, modulo 2^31."""
    return int(hashlib.md5(str(values).encode(), usedforsecurity=False).hexdigest(), 16) % 2**31


def domainbed_split(
    num_images: int, trial_seed: int, env_index: int, holdout: float = 0.2
) -> tuple[list[int], list[int]]:
    """Return (train, validation) indices of one domain, exactly as DomainBed draws them.

    keys = 0 ... n-1 shuffled by RandomState(seed_hash(trial_seed, env_index)); the first
    int(n * holdout) are validation. Index i is the i-th image in ImageFolder order; env_index is
    the domain's place in alphabetical order.
    """
    keys = list(range(num_images))
    np.random.RandomState(seed_hash(trial_seed, env_index)).shuffle(keys)
    count = int(num_images * holdout)
    return keys[count:], keys[:count]


def make_domainbed_splits(
    table: ImageTable,
    held_out_domain: str,
    trial_seed: int = 0,
    *,
    held_out_part: Literal["all", "in"] = "all",
) -> Splits:
    """Divide domain/class/image data as DomainBed does for one held-out domain.

    Training is DomainBed's 80 % of every source domain and validation the other 20 %; `test_id`
    is empty. `held_out` is every image of the held-out domain, or with `held_out_part="in"` its
    80 % part, which DomainBed calls test_in and published tables report. Source copies of
    held-out images are left out after the draw, the one departure; copies within the source stay
    where the formula puts them.

    Raises:
        UsageError: an unknown held-out domain, fewer than two domains, or images without a domain.
    """
    held_out = _domain_index(table, held_out_domain)
    present = {index for index in table.domains if index >= 0}
    missing = sum(domain < 0 for domain in table.domains)
    if missing or len(present) < 2:
        raise UsageError(
            f"DomainBed's splits need at least two domains and a domain for every image; there "
            f"are {len(present)} domain(s) and {missing:,} images without one"
        )
    assigned: list[str | None] = [None] * len(table)
    for env_index, name in enumerate(sorted(table.domain_names)):
        domain = table.domain_names.index(name)
        rows = [row for row, value in enumerate(table.domains) if value == domain]
        rows.sort(key=lambda row: table.names[row].split("/"))
        train, val = domainbed_split(len(rows), trial_seed, env_index)
        if domain != held_out:
            for split, indices in (("train", train), ("val", val)):
                for index in indices:
                    assigned[rows[index]] = split
        else:
            for index in train if held_out_part == "in" else range(len(rows)):
                assigned[rows[index]] = "held_out"
    return _domainbed_result(table, assigned)


def _domainbed_result(table: ImageTable, assigned: Sequence[str | None]) -> Splits:
    tested = {k for k, name in zip(table.keys, assigned, strict=True) if name == "held_out"}
    rows: dict[str, list[int]] = defaultdict(list)
    dropped = 0
    for row, (key, name) in enumerate(zip(table.keys, assigned, strict=True)):
        if name in _SOURCE and key in tested:
            dropped += 1
        elif name is not None:
            rows[name].append(row)
    return _build(table, rows, [_left_out(dropped, "the held-out domain")] if dropped else [])


def filter_parity(table: ImageTable, parity: Literal["odd", "even"]) -> ImageTable:
    """Return the images whose name has that parity: the last bit of the sha256 of the UTF-8 name.

    The name is the path relative to the data root, "domain/class/file".

    Raises:
        UsageError: a parity other than "odd" or "even".
    """
    if parity not in ("odd", "even"):
        raise unknown_name("parity", parity, ("odd", "even"))
    bit = int(parity == "odd")
    return table.select(
        [row for row, name in enumerate(table.names) if int(sha256_text(name), 16) % 2 == bit]
    )

"""Which images a probe learns from and which test it."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from attar.data.split_names import TRAINVAL, split_of_folder
from attar.data.splits import SplitConfig, Splits, domain_index, make_splits
from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.evaluation.evidence import evaluation_data
from attar.evaluation.linear_probe_config import LinearProbeConfig
from attar.evaluation.probe_labels import known_rows, labels_of
from attar.evaluation.probing import ProbeData

log = logging.getLogger(__name__)

_TESTS = ("test_id", "test_ood", "held_out")
_UNTESTED = (None, "train", TRAINVAL, "val")


def probe_data(
    images: ImageTable,
    roots: Sequence[Path],
    seen: frozenset[str],
    config: LinearProbeConfig,
) -> ProbeData:
    """Divide labelled images into those to learn from, to choose by, and to test.

    A manifest's split column decides, else folders named train, val and test, else the held-out
    domain and a part of the others drawn by the seed. Images that a model was trained on are
    never tested: its features may know their labels.

    Raises:
        UsageError: nothing left to learn from or to test.
    """
    labelled = images.select(known_rows(labels_of(images)).tolist())
    if not len(labelled):
        raise UsageError(f"a linear probe needs labelled images; these have none ({images.layout})")
    table = _with_seen_aside(_with_named_splits(labelled, roots), seen, config)
    tested = any(split not in _UNTESTED for split in table.splits)
    split_config = SplitConfig(
        seed=config.split_seed,
        val_fraction=0.0,
        test_fraction=0.0 if tested else config.test_fraction,
        held_out_domain=config.held_out_domain,
    )
    splits = make_splits(table, split_config)
    for note in splits.notes:
        log.warning("%s", note)
    return _checked(splits, dataset_name(roots))


def dataset_name(roots: Sequence[Path]) -> str:
    """Return what to call images from these paths: "pets" for pets/train and pets/test/0.tar."""
    absolute = [root.resolve() for root in roots]
    named = [split_folder(root) for root in absolute]
    names = [
        root.name if folder is None else folder.parent.name
        for root, folder in zip(absolute, named, strict=True)
    ]
    return "+".join(dict.fromkeys(names))


def split_folder(root: Path) -> Path | None:
    """Return the folder train, val or test that a data path is, or that its tars lie in."""
    for folder in (root, root.parent) if root.suffix else (root,):
        if split_of_folder(folder.name) is not None:
            return folder
    return None


def _with_named_splits(images: ImageTable, roots: Sequence[Path]) -> ImageTable:
    """Write the splits that the paths' own names give into the table; those it has come first."""
    if any(split is not None for split in images.splits):
        return images
    folders = [split_folder(root.expanduser().resolve()) for root in roots]
    of_folder = {f"{folder}/": split_of_folder(folder.name) for folder in folders if folder}
    if of_folder:
        given = tuple(
            next((split for start, split in of_folder.items() if path.startswith(start)), None)
            for path in images.paths
        )
        return replace(images, splits=given)
    return images


def _with_seen_aside(
    images: ImageTable, seen: frozenset[str], config: LinearProbeConfig
) -> ImageTable:
    """Let images that a model was trained on be learnt from, and take them out of the tests."""
    apart = config.held_out_domain
    held_out = None if apart is None else domain_index(images, apart)
    kept: list[int] = []
    splits: list[str | None] = []
    for row, (key, split) in enumerate(zip(images.keys, images.splits, strict=True)):
        is_test = images.domains[row] == held_out or split not in _UNTESTED
        if key not in seen or not is_test:
            kept.append(row)
            splits.append("train" if key in seen and split is None else split)
    if len(kept) < len(images):
        log.warning(
            "left out %s of %s images: to be tested, but a model was trained or selected on them",
            f"{len(images) - len(kept):,}",
            f"{len(images):,}",
        )
    return replace(images.select(kept), splits=tuple(splits))


def _checked(splits: Splits, dataset: str) -> ProbeData:
    tables = splits.tables()
    if len(splits.unseen_classes) or len(splits.further_unseen):
        raise UsageError(
            "a linear probe knows no unseen classes: name other splits in the manifest"
        )
    tests = {name: tables[name] for name in _TESTS if len(tables[name])}
    if not tests:
        raise UsageError(
            f"no image is left to test ({splits.describe()}): the models were trained on all that "
            "could be, or only images to train and choose on are given; give others to --data, or "
            "rename a folder val that is to be tested to test"
        )
    log.info("linear probe: %s", splits.describe())
    return ProbeData(
        train=splits.source.train,
        val=splits.source.val,
        tests={name: evaluation_data(table, name, None, dataset) for name, table in tests.items()},
    )

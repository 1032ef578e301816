"""What the folders around images say: class, domain and split."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from attar.data.manifest import Entry
from attar.data.split_names import SPLIT_NAMES, TRAINVAL, split_of_folder

Parts = tuple[str, ...]
"""A file's path below the data root, folder by folder."""


def read_folders(
    root: Path, found: Sequence[Parts], unlabelled: bool = False
) -> tuple[str, list[Entry]]:
    """Return the layout's name and what it says of each image.

    class/image, domain/class/image or neither, and the same below folders that are all named like
    splits. With `unlabelled`, folders are no classes and no domains, but splits still.
    """
    splits = _splits(found)
    inner = [parts[1:] for parts in found] if splits else list(found)
    layout = _layout(inner, unlabelled, bool(splits))
    labelled, has_domains = "class" in layout, "domain" in layout
    return layout, [
        Entry(
            path=str(root.joinpath(*parts)),
            name="/".join(parts),
            label=parts[-2] if labelled else None,
            domain=parts[-3] if has_domains else None,
            split=splits.get(parts[0]),
        )
        for parts in found
    ]


def count_images(entries: Sequence[Entry]) -> str:
    """Return the images of folders named like splits in words: "train 30, val 12 images"."""
    counts = Counter("train" if e.split == TRAINVAL else e.split or "" for e in entries)
    parts = [f"{name} {counts[name]:,}" for name in SPLIT_NAMES if counts[name]]
    return f"{', '.join(parts)} {'image' if len(entries) == 1 else 'images'}"


def _splits(found: Sequence[Parts]) -> dict[str, str]:
    """Return the split of each first-level folder; nothing unless all of them are named so.

    Without a folder for validation, that for training holds its images too.
    """
    named = {parts[0]: split_of_folder(parts[0]) for parts in found}
    splits = {folder: split for folder, split in named.items() if split is not None}
    flat = any(len(parts) == 2 for parts in found)
    if len(splits) < len(named) or (flat and len(splits) < 2):
        return {}  # a file beside the folders; or a lone class that is called train
    if "val" not in splits.values():
        return {folder: TRAINVAL if s == "train" else s for folder, s in splits.items()}
    return splits


def _layout(inner: Sequence[Parts], unlabelled: bool, below_splits: bool) -> str:
    """Name the layout of paths, which lie below folders of splits or not."""
    depths = {len(parts) for parts in inner}
    if depths == {2} and not unlabelled:
        layout = "class/image"
    elif depths == {3} and not unlabelled and _classes_repeat(inner):
        layout = "domain/class/image"
    elif below_splits:
        return f"split/{'image' if depths == {1} else 'nested folders of images'}, no labels"
    else:
        return f"{'folder' if depths == {1} else 'nested folder'} of images, no labels"
    return f"split/{layout}" if below_splits else layout


def _classes_repeat(found: Sequence[Parts]) -> bool:
    """Whether at least half of the second-level folder names stand in several first-level ones."""
    domains: dict[str, set[str]] = defaultdict(set)
    for domain, label, _ in found:
        domains[label].add(domain)
    repeated = sum(len(names) > 1 for names in domains.values())
    return repeated * 2 >= len(domains)

"""Names of splits: those that a manifest may use, and those that folders bear."""

TRAINVAL = "trainval"
"""Images to train on, out of which validation is still to be drawn."""

SPLIT_NAMES: dict[str, str] = {
    "train": "train",
    TRAINVAL: TRAINVAL,
    "val": "val",
    "few_shot": "few_shot",
    "test": "test_id",
    "test_id": "test_id",
    "test_ood": "test_ood",
    "unseen_classes": "unseen_classes",
    "further_unseen": "further_unseen",
    "held_out": "held_out",
}
"""Split names that a manifest may use -> the split they mean."""

_SPELLINGS = {
    "training": "train",
    **dict.fromkeys(("valid", "validation", "dev"), "val"),
    "testing": "test",
}


def split_of_folder(name: str) -> str | None:
    """Return the split name that a folder's name, in any case, stands for; None for no split.

    These are the names that a manifest may use, and training, valid, validation, dev and testing.
    """
    plain = name.lower()
    plain = _SPELLINGS.get(plain, plain)
    return plain if plain in SPLIT_NAMES else None

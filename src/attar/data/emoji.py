"""The shipped emoji set: 849 concepts, each drawn by four families in their own style.

Three families (`TRAINING_FAMILIES`) are for training; the fourth, `HELD_OUT_FAMILY`, is the domain
that nothing trained with the set has seen.
"""

import json
import random
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from attar.errors import UsageError, unknown_name
from attar.files import atomic_path, check_writable

EMOJI_FAMILIES = ("twemoji", "fluent", "openmoji", "noto")
HELD_OUT_FAMILY = "noto"
TRAINING_FAMILIES = tuple(family for family in EMOJI_FAMILIES if family != HELD_OUT_FAMILY)
BLOCK_BYTES = 4096
"""What a small file takes on a usual disk, more than the picture itself."""


@dataclass(frozen=True, kw_only=True)
class EmojiConcept:
    """One thing that every family has drawn."""

    id: str
    """Its Unicode code points in hexadecimal, such as `1f436`."""
    name: str
    """Its English short name in ASCII, unique whatever the case: the class name."""
    keywords: tuple[str, ...]
    group: str
    """Its group in the Unicode charts, such as `Animals & Nature`."""


def _assets() -> Path:
    return Path(str(resources.files("attar"))) / "assets" / "emoji"


@cache
def emoji_concepts() -> tuple[EmojiConcept, ...]:
    """Return the 849 concepts in the order of the Unicode charts."""
    entries = json.loads((_assets() / "concepts.json").read_text(encoding="utf-8"))
    return tuple(
        EmojiConcept(
            id=entry["id"],
            name=entry["name"],
            keywords=tuple(entry["keywords"]),
            group=entry["group"],
        )
        for entry in entries
    )


def extract_emoji(
    out: Path,
    families: Sequence[str] = EMOJI_FAMILIES,
    concepts: int | None = None,
    seed: int = 0,
) -> Path:
    """Write the pictures as a `domain/class/image` tree: `out/<family>/<name>/<id>.webp`.

    With `concepts`, that many are drawn at random by `seed`, the same for every family.  What is
    there already is kept, so a second call writes nothing; returns `out`.

    Raises `UsageError` for an unknown family, a number of concepts below two or above the set's,
    and a family folder that holds something else than this call would write.
    """
    for family in families:
        if family not in EMOJI_FAMILIES:
            raise unknown_name("emoji family", family, EMOJI_FAMILIES)
    chosen = _choose(concepts, seed)
    check_writable(out, BLOCK_BYTES * len(chosen) * len(families))
    for family in families:
        _refuse_strangers(out / family, chosen)
        with zipfile.ZipFile(_assets() / f"{family}.zip") as archive:
            for concept in chosen:
                target = _target(out / family, concept)
                entry = archive.getinfo(f"{concept.name}.webp")
                if target.is_file() and target.stat().st_size == entry.file_size:
                    continue
                with atomic_path(target) as temporary:
                    temporary.write_bytes(archive.read(entry))
    return out


def _choose(number: int | None, seed: int) -> tuple[EmojiConcept, ...]:
    every = emoji_concepts()
    if number is None:
        return every
    if not 2 <= number <= len(every):
        raise UsageError(f"{number} emoji concepts: give a number from 2 to {len(every)}")
    positions = sorted(random.Random(seed).sample(range(len(every)), number))
    return tuple(every[position] for position in positions)


def _target(folder: Path, concept: EmojiConcept) -> Path:
    return folder / concept.name / f"{concept.id}.webp"


def _refuse_strangers(folder: Path, chosen: Sequence[EmojiConcept]) -> None:
    """Refuse a folder with other files: they would silently become part of the data."""
    expected = {_target(folder, concept) for concept in chosen}
    for path in folder.rglob("*"):
        if path.is_file() and path not in expected and not path.name.startswith("."):
            raise UsageError(
                f"{folder} holds files that are not of this emoji set, such as "
                f"{path.relative_to(folder)}; delete the folder or choose another place"
            )

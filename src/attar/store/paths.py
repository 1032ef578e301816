"""Match files by path when two people keep the same files under different folders."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Which published path each of our names is."""

    found: Mapping[int, int]
    """Position of our name -> position of the published path."""
    unmatched: tuple[int, ...]
    ambiguous: tuple[int, ...]


def match_paths(names: Sequence[str], published: Sequence[str]) -> Matches:
    """Match each name to a published path: exactly, else by a unique path suffix.

    A suffix match means that one of the two paths ends with the whole of the other, folder by
    folder: `dog/1.jpg` is `/data/pets/dog/1.jpg`, but never `cat/1.jpg` (a bare `1.jpg` matches
    both and is ambiguous). A path published twice, or claimed by several names, is ambiguous.
    """
    ours = [_parts(name) for name in names]
    theirs = [_parts(path) for path in published]
    exact: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for position, parts in enumerate(theirs):
        exact[parts].append(position)
    endings = _endings(theirs, {len(parts) for parts in ours if parts not in exact})
    candidates = [
        exact[parts]
        if parts in exact
        else [
            *endings.get(parts, ()),
            *(at for cut in range(1, len(parts)) for at in exact.get(parts[cut:], ())),
        ]
        for parts in ours
    ]
    is_exact = [parts in exact for parts in ours]
    exactly_taken = {found[0] for found, whole in zip(candidates, is_exact, strict=True) if whole}
    claims = Counter(
        found[0]
        for found, whole in zip(candidates, is_exact, strict=True)
        if not whole and len(found) == 1
    )
    matched: dict[int, int] = {}
    unmatched, ambiguous = [], []
    for position, found in enumerate(candidates):
        if not found:
            unmatched.append(position)
        elif len(found) == 1 and (
            is_exact[position] or (claims[found[0]] == 1 and found[0] not in exactly_taken)
        ):
            matched[position] = found[0]
        else:
            ambiguous.append(position)
    return Matches(found=matched, unmatched=tuple(unmatched), ambiguous=tuple(ambiguous))


def _parts(path: str) -> tuple[str, ...]:
    """Return the folders and the file name, without roots, drive letters' slashes and dots."""
    parts = tuple(part for part in path.replace("\\", "/").split("/") if part not in ("", "."))
    return parts or ("",)


def _endings(
    paths: Sequence[tuple[str, ...]], lengths: set[int]
) -> dict[tuple[str, ...], list[int]]:
    """Index the paths by their last n parts, for each n that some shorter name has."""
    index: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for position, parts in enumerate(paths):
        for length in lengths:
            if length < len(parts):
                index[parts[-length:]].append(position)
    return index

"""Parts of the images: a share of them, drawn evenly, or the half that a name falls into."""

from collections import defaultdict
from typing import Literal

from attar.data.table import ImageTable
from attar.errors import UsageError, unknown_name
from attar.files import sha256_text


def keep_share(images: ImageTable, share: float, seed: int) -> ImageTable:
    """Return `share` of the images of each (domain, class), rounded, at least one.

    The order is that of sha256(seed, file), so with one seed a smaller share lies within a larger
    one. Rows keep their order; with a share of 1 the table is returned as it is.

    Raises:
        UsageError: not 0 < share <= 1.
    """
    if not 0 < share <= 1:
        raise UsageError(f"train_share {share}: give 0 < share <= 1")
    if share == 1:
        return images
    strata: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, place in enumerate(zip(images.domains, images.labels, strict=True)):
        strata[place].append(row)
    kept: list[int] = []
    for rows in strata.values():
        rows.sort(key=lambda row: (sha256_text(f"{seed}:share:{images.keys[row]}"), row))
        kept += rows[: max(1, int(len(rows) * share + 0.5))]
    return images.select(sorted(kept))


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

"""Fewer training images, drawn evenly: how a method fares with a tenth of the labels."""

from collections import defaultdict

from attar.data.table import ImageTable
from attar.errors import UsageError
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

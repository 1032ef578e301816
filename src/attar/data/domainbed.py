"""DomainBed's splits, exactly: its seeds, its shares, one domain held out."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np

from attar.data.splits import SOURCE, Splits, build, domain_index, left_out
from attar.data.table import ImageTable
from attar.errors import UsageError


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
    held_out = domain_index(table, held_out_domain)
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
        if name in SOURCE and key in tested:
            dropped += 1
        elif name is not None:
            rows[name].append(row)
    return build(table, rows, [left_out(dropped, "the held-out domain")] if dropped else [])

"""The nearest images of sentences: exactly, or with faiss."""

import importlib
import importlib.util
import logging
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from attar.device import pick_device
from attar.errors import UsageError

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]
Kind = Literal["exact", "faiss"]
Search = Callable[[Floats], tuple[Floats, NDArray[np.int32]]]
"""From unit texts [n, D] to values [n, m], descending, and images [n, m]; -inf: none was found."""

APPROXIMATE_FROM = 1_000_000
"""Sentences from which `auto` looks for faiss."""
_COSINES = 1 << 24
"""Held at once: 64 MB."""
_IMAGES_A_LIST, _SHARE_OF_LISTS, _LEAST_LISTS = 100, 10, 8


def search_kind(wanted: str, count: int) -> Kind:
    """Return the search that `wanted` (exact, faiss or auto) means for `count` sentences here.

    Raises:
        UsageError: faiss is asked for and not installed.
    """
    if wanted == "exact":
        return "exact"
    has_faiss = importlib.util.find_spec("faiss") is not None
    if wanted == "faiss" and not has_faiss:
        raise UsageError("--search faiss needs the package faiss: pip install 'attar[faiss]'")
    if wanted == "faiss" or (count >= APPROXIMATE_FROM and has_faiss):
        return "faiss"
    if count >= APPROXIMATE_FROM:
        log.info("faiss is not installed (attar[faiss]): %s sentences exactly", f"{count:,}")
    return "exact"


def make_search(images: Floats, offsets: Floats, neighbours: int, kind: Kind) -> Search:
    """Return the search for the images with the greatest cosine less their offset.

    Args:
        images: [A, D] unit rows.
        offsets: [A] what is taken from each image's cosines.
        neighbours: m, at most A.
        kind: how, see `search_kind`.
    """
    return (_approximate if kind == "faiss" else _exact)(images, offsets, neighbours)


def _exact(images: Floats, offsets: Floats, neighbours: int) -> Search:
    device = pick_device()
    columns = torch.from_numpy(images).to(device).T.contiguous()
    taken = torch.from_numpy(offsets).to(device)
    rows = max(1, _COSINES // len(images))

    def search(texts: Floats) -> tuple[Floats, NDArray[np.int32]]:
        values, found = [], []
        for start in range(0, len(texts), rows):
            block = torch.from_numpy(texts[start : start + rows]).to(device) @ columns
            best, at = block.sub_(taken).topk(neighbours, dim=1)
            values.append(best.cpu().numpy())
            found.append(at.to(torch.int32).cpu().numpy())
        return np.concatenate(values), np.concatenate(found)

    return search


def _approximate(images: Floats, offsets: Floats, neighbours: int) -> Search:
    """Search an inverted file; the offset is one more dimension, against a constant 1."""
    faiss: Any = importlib.import_module("faiss")
    rows = np.hstack([images, -offsets[:, None]]).astype(np.float32)
    lists = max(1, len(rows) // _IMAGES_A_LIST)
    quantizer = faiss.IndexFlatIP(rows.shape[1])
    index = faiss.IndexIVFFlat(quantizer, rows.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)
    index.nprobe = min(lists, max(_LEAST_LISTS, lists // _SHARE_OF_LISTS))

    def search(texts: Floats) -> tuple[Floats, NDArray[np.int32]]:
        asked = np.hstack([texts, np.ones((len(texts), 1), np.float32)])
        values, found = index.search(asked, neighbours)
        nothing = found < 0
        values[nothing], found[nothing] = -np.inf, 0
        return values, found.astype(np.int32)

    return search


def nearest_cosines(images: Floats, texts: Floats) -> Floats:
    """Return [A] each image's greatest cosine with any of the texts [n, D]."""
    device = pick_device()
    columns = torch.from_numpy(texts).to(device).T.contiguous()
    rows = max(1, _COSINES // len(texts))
    found = [
        (torch.from_numpy(images[start : start + rows]).to(device) @ columns).amax(dim=1)
        for start in range(0, len(images), rows)
    ]
    return torch.cat(found).cpu().numpy()

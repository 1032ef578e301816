"""The request shapes of embedding services, and the one answer that they all give."""

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Questions = Sequence[str]
"""Texts, or images as base64."""
Document = dict[str, Any]


class Shape(NamedTuple):
    """How one kind of service wants to be asked at `/embeddings`."""

    images: Callable[[str, Questions, str], Document] | None
    """(model, images in base64, media type) -> request; None when it takes no images."""
    texts: Callable[[str, Questions], Document]
    """(model, texts) -> request."""
    charges_once: bool = False
    """Whether a request sent again with its `Idempotency-Key` is not billed again."""


def _data_uris(images: Questions, media: str) -> list[str]:
    return [f"data:{media};base64,{image}" for image in images]


def _infinity_images(model: str, images: Questions, media: str) -> Document:
    return {"model": model, "modality": "image", "input": _data_uris(images, media)}


def _infinity_texts(model: str, texts: Questions) -> Document:
    return {"model": model, "modality": "text", "input": list(texts)}


def _jina_images(model: str, images: Questions, media: str) -> Document:
    return {"model": model, "input": [{"image": image} for image in images]}


def _jina_texts(model: str, texts: Questions) -> Document:
    return {"model": model, "input": [{"text": text} for text in texts]}


def _attar_images(model: str, images: Questions, media: str) -> Document:
    return {**_infinity_images(model, images, media), "encoding_format": "base64"}


def _attar_texts(model: str, texts: Questions) -> Document:
    return {**_infinity_texts(model, texts), "encoding_format": "base64"}


def _openai_texts(model: str, texts: Questions) -> Document:
    return {"model": model, "input": list(texts)}


SHAPES: dict[str, Shape] = {
    "attar": Shape(_attar_images, _attar_texts, charges_once=True),
    "infinity": Shape(_infinity_images, _infinity_texts),
    "jina": Shape(_jina_images, _jina_texts),
    "openai": Shape(None, _openai_texts),
}


class BadAnswer(ValueError):
    """An answer that cannot be used; the message is the reason."""


def read_embeddings(body: bytes, count: int, dim: int | None) -> NDArray[np.float32]:
    """Return [count, D] from `{"data": [{"index", "embedding": numbers or base64}]}`.

    Raises:
        BadAnswer: broken JSON, another form or number of rows, a wrong dimension, a row that is
            zero or not finite.
    """
    try:
        document = json.loads(body)
    except ValueError:
        raise BadAnswer("broken JSON") from None
    try:
        data = document["data"]
        places = [int(one.get("index", place)) for place, one in enumerate(data)]
        rows = [_row(one["embedding"]) for one in data]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise BadAnswer("an answer of another form than embeddings") from None
    if sorted(places) != list(range(count)):
        raise BadAnswer(f"{len(rows)} embeddings for {count} questions")
    for row in rows:
        if row.ndim != 1 or not row.size or len(row) != (dim or len(rows[0])):
            wanted = dim or len(rows[0])
            raise BadAnswer(f"an embedding of {row.size} numbers, {wanted} expected")
    ordered = np.stack([rows[places.index(place)] for place in range(count)])
    norms = np.linalg.norm(ordered.astype(np.float64), axis=1)
    if not (np.isfinite(norms).all() and (norms > 0).all()):
        raise BadAnswer("an embedding that is zero or not finite")
    return ordered


def _row(value: object) -> NDArray[np.float32]:
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value, validate=True), dtype="<f4")
    return np.asarray(value, dtype=np.float32)

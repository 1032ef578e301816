"""Read a request from a stranger: what is not plainly an image or a text is refused."""

import base64
import binascii
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, UnidentifiedImageError

from attar.data.images import decode_image
from attar.errors import AttarError
from attar.serving.config import ServeConfig

FORMATS = ("PNG", "JPEG", "WEBP")
_DATA_URI = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)
_ADDRESS = re.compile(r"\s*([a-z][a-z0-9+.-]*:|[/~.\\]|[a-z]:\\)", re.IGNORECASE)


class Refusal(Exception):
    """A request that is answered with an error status and one line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What a request asks, images decoded, in its order."""

    images: dict[int, Image.Image]
    """Place in the input -> image."""
    texts: dict[int, str]
    as_base64: bool
    """Whether embeddings are wanted as base64 of little-endian float32."""

    def __len__(self) -> int:
        return len(self.images) + len(self.texts)


def read_questions(body: bytes, model: str, config: ServeConfig) -> Questions:
    """Read any of the shapes that `attar.teachers.remote_shapes` writes.

    Raises:
        Refusal: 400 for another form, 404 for another model, 413 for too much.
    """
    document = _document(body)
    if document.get("model") not in (None, model):
        raise Refusal(404, f"the model served here is {model!r}")
    encoding = document.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise Refusal(400, "encoding_format should be float or base64")
    modality = document.get("modality") or "text"
    if modality not in ("text", "image"):
        raise Refusal(400, "modality should be text or image")
    images, texts = {}, {}
    for place, (kind, value) in enumerate(_items(document.get("input"), modality, config)):
        if kind == "image":
            images[place] = _image(value, place, config)
        else:
            texts[place] = _text(value, place, config)
    return Questions(images=images, texts=texts, as_base64=encoding == "base64")


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal(400, "the body is not JSON") from None
    if not isinstance(document, dict):
        raise Refusal(400, "the body should be a JSON object")
    return document


def _items(given: object, modality: str, config: ServeConfig) -> Sequence[tuple[str, object]]:
    """Return (image or text, what was sent) for each input."""
    inputs = given if isinstance(given, list) else [given]
    if not inputs or given is None:
        raise Refusal(400, "input should be a list of texts or of images in base64")
    if len(inputs) > config.max_items:
        raise Refusal(413, f"{len(inputs)} inputs, {config.max_items} at most in one request")
    items = []
    for place, one in enumerate(inputs):
        if isinstance(one, dict):
            if len(one) != 1 or next(iter(one)) not in ("image", "text"):
                raise Refusal(400, f'input {place} should be {{"image": …}} or {{"text": …}}')
            items += list(one.items())
        else:
            items.append((modality, one))
    return items


def _text(value: object, place: int, config: ServeConfig) -> str:
    if not isinstance(value, str) or not value:
        raise Refusal(400, f"input {place} should be a text")
    if len(value) > config.max_text:
        raise Refusal(413, f"input {place} has more than {config.max_text} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refusal(400, f"input {place} is not valid Unicode") from None
    return value


def _image(value: object, place: int, config: ServeConfig) -> Image.Image:
    if not isinstance(value, str):
        raise Refusal(400, f"input {place} should be an image in base64")
    uri = _DATA_URI.match(value)
    encoded = value[uri.end() :] if uri else value
    data = _decoded(encoded)
    if data is None or not data:
        if _ADDRESS.match(encoded):
            raise Refusal(
                400, f"input {place} is a path or an address; send the image itself in base64"
            )
        raise Refusal(400, f"input {place} is not base64")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:
            pixels = header.size[0] * header.size[1]
    except UnidentifiedImageError:
        raise Refusal(400, f"input {place} is no image ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        pixels = config.max_pixels + 1
    except Exception:  # each Pillow plugin raises what it likes on broken bytes
        raise Refusal(400, f"input {place} is a broken image") from None
    if pixels > config.max_pixels:
        raise Refusal(413, f"input {place} has more than {config.max_pixels:,} pixels")
    try:
        return decode_image(data)
    except AttarError as error:
        raise Refusal(400, f"input {place} cannot be decoded: {error}") from None


def _decoded(encoded: str) -> bytes | None:
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None

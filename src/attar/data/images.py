"""One way to read an image file: whatever it holds comes out as an upright RGB picture."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from attar.errors import AttarError
from attar.members import read_bytes

_ALWAYS = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}
_WHEN_SUPPORTED = {".heic", ".heif"} & set(Image.registered_extensions())
_AVIF = {".avif"} if features.check("avif") else set()

EXTENSIONS: frozenset[str] = frozenset(_ALWAYS | _WHEN_SUPPORTED | _AVIF)
"""Lower-case extensions, with the dot, of the files that are taken as images."""

# Pillow reads EXIF through its TIFF reader, which warns of broken metadata on every such file; what
# counts here is whether the pixels decode.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")

_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def is_image_name(name: str) -> bool:
    """Whether a file name has a supported extension, in upper or lower case."""
    return Path(name).suffix.lower() in EXTENSIONS


def read_image(path: str | Path) -> Image.Image:
    """Return the picture in a file, or in a tar's member, as an 8-bit RGB image.

    EXIF rotation is applied, CMYK converted, alpha laid on white, 16-bit values scaled to 8 bits,
    and of an animation the first frame is taken. Every pixel is decoded here.

    Raises:
        AttarError: the file is missing, empty, truncated, no image, or too large to be safe; the
            message names the file and the reason.
    """
    try:
        data = read_bytes(path)
    except OSError as error:
        raise AttarError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return decode_image(data)
    except AttarError as error:
        raise AttarError(f"{path} cannot be read: {error}") from error


def decode_image(data: bytes) -> Image.Image:
    """Return the picture in a file's bytes as RGB, see `read_image`.

    Raises:
        AttarError: the bytes are no whole image; the message is the reason alone.
    """
    if not data:
        raise AttarError("the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            upright = _upright(image)
            return _to_rgb(upright)
    except UnidentifiedImageError as error:
        raise AttarError("not an image of a known format") from error
    except Image.DecompressionBombError as error:
        raise AttarError(
            f"it holds more pixels than is safe to decode ({error}); make it smaller"
        ) from error
    except Exception as error:  # each Pillow plugin raises what it likes on broken bytes
        raise AttarError(str(error) or type(error).__name__) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # a broken EXIF block does not make the pixels unreadable
        return image
    method = _ORIENTATIONS.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _scale_to_bytes(image).convert("RGB")
    if image.mode in ("La", "RGBa"):  # premultiplied alpha has one way out only
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    if image.mode == "RGB":
        return image.copy()
    return image.convert("RGB")


def _scale_to_bytes(image: Image.Image) -> Image.Image:
    """Scale an image of 16-bit, 32-bit or float values to 8 bits.

    Pillow's own conversion clips at 255, which turns a 16-bit photo white. 16-bit values, also
    those Pillow keeps in 32 bits, are divided by 257; floats in [0, 1] are multiplied by 255;
    values of an unknown range are stretched from their least to their greatest.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    low, high = float(values.min()), float(values.max())
    if image.mode == "F" and low >= 0 and high <= 255:
        scaled = values * 255 if high <= 1 else values
    elif image.mode != "F" and low >= 0 and high <= 65535:
        scaled = values / 257
    else:
        scaled = (values - low) * (255 / max(high - low, 1e-12))
    return Image.fromarray(np.rint(np.clip(scaled, 0, 255)).astype(np.uint8))

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

from attar.data.images import EXTENSIONS, decode_image, is_image_name, read_image
from attar.errors import AttarError


def pixel(image, x, y):
    return np.array(image.getpixel((x, y)), dtype=int)


def two_halves(left, right, size=(32, 16)):
    image = Image.new("RGB", size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "bmp", "tif", "ppm", "gif", "JPEG"])
def test_each_format_comes_back_with_its_colours(tmp_path, extension):
    path = tmp_path / f"picture.{extension}"
    two_halves((200, 30, 30), (30, 30, 200)).save(path)
    image = read_image(path)
    assert image.mode == "RGB"
    assert image.size == (32, 16)
    np.testing.assert_allclose(pixel(image, 4, 8), (200, 30, 30), atol=8)
    np.testing.assert_allclose(pixel(image, 28, 8), (30, 30, 200), atol=8)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_read_where_pillow_can(tmp_path):
    Image.new("RGB", (32, 32), (10, 200, 10)).save(tmp_path / "a.avif")
    assert ".avif" in EXTENSIONS
    np.testing.assert_allclose(pixel(read_image(tmp_path / "a.avif"), 9, 9), (10, 200, 10), atol=8)


def test_extensions_are_known_in_any_case():
    assert all(is_image_name(name) for name in ("a.JPG", "b.Jpeg", "c.PgM", "d.tiff"))
    assert not any(is_image_name(name) for name in ("a.txt", "jpg", "b.jpg.part", "classes.tsv"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif"])
def test_exif_rotation_is_applied_once(tmp_path, orientation, extension):
    upright = Image.new("RGB", (48, 32))
    for x, y, colour in ((0, 0, "red"), (24, 0, "lime"), (0, 16, "blue"), (24, 16, "white")):
        upright.paste(colour, (x, y, x + 24, y + 16))
    # What a camera held at that orientation stores: the inverse of the correction.
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{extension}"
    stored.save(path, exif=exif, quality=95)
    image = read_image(path)
    assert image.size == (48, 32)
    for x, y in ((8, 6), (40, 6), (8, 26), (40, 26)):
        np.testing.assert_allclose(pixel(image, x, y), pixel(upright, x, y), atol=40)


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("RGB", (16, 16), (255, 128, 0)).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    image = read_image(tmp_path / "a.jpg")
    assert image.mode == "RGB"
    np.testing.assert_allclose(pixel(image, 8, 8), (255, 128, 0), atol=8)


def test_alpha_is_laid_on_white(tmp_path):
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.putpixel((1, 1), (0, 0, 255, 255))
    image.putpixel((2, 2), (0, 0, 0, 128))
    image.save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert tuple(pixel(read, 0, 0)) == (255, 255, 255)
    assert tuple(pixel(read, 1, 1)) == (0, 0, 255)
    np.testing.assert_allclose(pixel(read, 2, 2), (127, 127, 127), atol=1)


def test_grey_with_alpha_and_transparent_palettes_are_laid_on_white(tmp_path):
    Image.new("LA", (8, 8), (0, 0)).save(tmp_path / "grey.png")
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 0, 0, 0, 255, 0])
    palette.putpixel((3, 3), 1)
    palette.save(tmp_path / "palette.png", transparency=0)
    Image.new("L", (8, 8), 7).save(tmp_path / "key.png", transparency=7)
    for name in ("grey.png", "palette.png", "key.png"):
        assert tuple(pixel(read_image(tmp_path / name), 0, 0)) == (255, 255, 255), name
    assert tuple(pixel(read_image(tmp_path / "palette.png"), 3, 3)) == (0, 255, 0)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, name):
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16).repeat(4, axis=0)
    if name.endswith("pgm"):
        (tmp_path / name).write_bytes(b"P5\n4 4\n65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(tmp_path / name)
    image = np.asarray(read_image(tmp_path / name))
    assert image.shape == (4, 4, 3)
    assert image[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
    ],
)
def test_float_images_are_scaled_to_bytes(tmp_path, values, expected):
    Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / "a.tif")
    assert np.asarray(read_image(tmp_path / "a.tif"))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("extension", ["gif", "webp", "png"])
def test_the_first_frame_of_an_animation_is_taken(tmp_path, extension):
    frames = [Image.new("RGB", (16, 16), c) for c in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    path = tmp_path / f"a.{extension}"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50)
    with Image.open(path) as stored:
        assert stored.n_frames == 3
    np.testing.assert_allclose(pixel(read_image(path), 8, 8), (250, 0, 0), atol=8)


def test_a_truncated_jpeg_is_found(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(AttarError, match=r"a\.jpg cannot be read: .*truncated"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "the file is empty"), (b"hello, this is text\n", "not an image of a known format")],
)
def test_broken_files_say_why(tmp_path, content, reason):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(AttarError, match=rf"a\.jpg cannot be read: {reason}"):
        read_image(tmp_path / "a.jpg")


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(AttarError, match=r"none\.png cannot be read: No such file"):
        read_image(tmp_path / "none.png")


def png_chunk(kind, data):
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def test_a_decompression_bomb_is_refused_with_the_way_out():
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"")
    with pytest.raises(AttarError, match=r"more pixels than is safe .*make it smaller"):
        decode_image(data)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_broken_exif_does_not_cost_the_image(tmp_path):
    Image.new("RGB", (16, 16), (9, 99, 199)).save(
        tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff", quality=95
    )
    np.testing.assert_allclose(pixel(read_image(tmp_path / "a.jpg"), 8, 8), (9, 99, 199), atol=8)

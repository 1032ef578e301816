import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attar.data.classes import make_class_list
from attar.data.sources import read_sources
from attar.errors import AttarError, UsageError


def picture(path, seed=None):
    """Write a small PNG whose bytes differ from seed to seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = int.from_bytes(hashlib.sha256(str(path).encode()).digest()[:4]) if seed is None else seed
    noise = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def tree(root, *names):
    for name in names:
        picture(root / name)
    return root


def domains(root):
    return tree(
        root,
        *(f"{d}/{c}/{i}.png" for d in ("art", "photo") for c in ("cat", "dog") for i in range(2)),
    )


def test_a_flat_folder_has_no_labels(tmp_path):
    table = read_sources([tree(tmp_path / "d", "b.png", "a.PNG", "c.bmp")])
    assert table.layout == "folder of images, no labels: 3 images"
    assert table.names == ("a.PNG", "b.png", "c.bmp")
    assert table.labels == table.domains == (-1, -1, -1)
    assert table.class_names == table.domain_names == ()
    assert table.paths[0] == str((tmp_path / "d" / "a.PNG").resolve())


def test_keys_are_the_sha256_of_the_bytes(tmp_path):
    root = tree(tmp_path / "d", "a.png", "b.png")
    picture(root / "a.png", seed=1)
    picture(root / "b.png", seed=1)
    expected = hashlib.sha256((root / "a.png").read_bytes()).hexdigest()
    assert read_sources([root]).keys == (expected, expected)


def test_class_folders_are_labels(tmp_path):
    table = read_sources([tree(tmp_path / "d", "dog/1.png", "Cat_x/2.png", "dog/0.png")])
    assert table.layout == "class/image: 2 classes, 3 images"
    assert table.class_names == ("Cat_x", "dog")
    assert table.names == ("Cat_x/2.png", "dog/0.png", "dog/1.png")
    assert table.labels == (0, 1, 1)
    assert table.domains == (-1, -1, -1)


def test_domain_folders_are_domains(tmp_path):
    table = read_sources([domains(tmp_path / "d")])
    assert table.layout == "domain/class/image: 2 domains, 2 classes, 8 images"
    assert table.domain_names == ("art", "photo")
    assert table.class_names == ("cat", "dog")
    assert table.labels == (0, 0, 1, 1, 0, 0, 1, 1)
    assert table.domains == (0, 0, 0, 0, 1, 1, 1, 1)


@pytest.mark.parametrize(
    "names",
    [
        ("a.png", "x/b.png"),
        ("x/y/1.png", "z/w/2.png"),
        ("x/y/z/1.png", "x/y/z/2.png"),
    ],
)
def test_other_nestings_have_no_labels(tmp_path, names):
    table = read_sources([tree(tmp_path / "d", *names)])
    assert table.layout == "nested folder of images, no labels: 2 images"
    assert table.labels == (-1, -1)


def test_unlabelled_forces_no_labels(tmp_path):
    for root in (domains(tmp_path / "d"), tree(tmp_path / "c", "only/1.png", "only/2.png")):
        table = read_sources([root], unlabelled=True)
        assert not table.has_labels
        assert not table.has_domains
        assert "nested folder of images, no labels" in table.layout


def test_hidden_and_foreign_files_are_skipped(tmp_path):
    root = tree(
        tmp_path / "d", "a.png", ".b.png", ".cache/c.png", "__MACOSX/d.png", "__MACOSX/e/f.png"
    )
    (root / "notes.txt").write_text("no image")
    assert read_sources([root]).names == ("a.png",)


def test_links_are_followed_but_not_in_circles(tmp_path):
    tree(tmp_path / "elsewhere", "1.png")
    root = tree(tmp_path / "d", "cat/0.png")
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "up").symlink_to(root)
    (root / "cat" / "gone.png").symlink_to(tmp_path / "gone.png")
    table = read_sources([root], set_aside=tmp_path / "aside.json")
    assert table.names == ("cat/0.png", "dog/1.png")
    assert [e["path"] for e in json.loads((tmp_path / "aside.json").read_text())] == [
        str(root.resolve() / "cat" / "gone.png")
    ]


def test_several_roots_are_unioned_side_by_side(tmp_path):
    first = domains(tmp_path / "first")
    second = tree(tmp_path / "second", "dog/x.png", "emu/y.png")
    third = tree(tmp_path / "third", "z.png")
    table = read_sources([first, second, third])
    assert table.class_names == ("cat", "dog", "emu")
    assert table.labels[-3:] == (1, 2, -1)
    assert table.domains[-3:] == (-1, -1, -1)
    assert table.layout == (
        "domain/class/image: 2 domains, 2 classes, 8 images; class/image: 2 classes, 2 images; "
        "folder of images, no labels: 1 image"
    )


def test_a_class_list_gives_names_and_order(tmp_path):
    root = tree(tmp_path / "d", "Sea_Lion/1.png", "cat/2.png")
    table = read_sources([root], class_list=make_class_list(["sea lion", "Cat"]))
    assert table.class_names == ("sea lion", "Cat")
    assert table.labels == (0, 1)
    with pytest.raises(UsageError, match="no label has: 'emu'"):
        read_sources([root], class_list=make_class_list(["sea lion", "cat", "emu"]))
    wider = make_class_list(["emu", "cat", "sea lion"])
    assert read_sources([root], class_list=wider, superset=True).labels == (2, 1)


def test_a_class_list_beside_unlabelled_images_is_kept(tmp_path):
    root = tree(tmp_path / "d", "1.png")
    table = read_sources([root], class_list=make_class_list(["cat", "dog"]))
    assert table.class_names == ("cat", "dog")
    assert table.labels == (-1,)


def test_one_class_only_is_refused_unless_a_part_is_meant(tmp_path):
    root = tree(tmp_path / "d", "cat/1.png", "cat/2.png")
    with pytest.raises(UsageError, match=r"one class only \('cat'\).*--unlabelled"):
        read_sources([root])
    classes = make_class_list(["cat", "dog"])
    assert read_sources([root], class_list=classes, superset=True).labels == (0, 0)


def test_one_class_left_after_broken_files_is_refused(tmp_path, capsys):
    root = tree(tmp_path / "d", "cat/1.png")
    (root / "dog").mkdir()
    (root / "dog" / "2.png").write_bytes(b"")
    with pytest.raises(UsageError, match="one class only"):
        read_sources([root])
    assert "2.png: the file is empty" in capsys.readouterr().err


def test_roots_without_images_are_refused_by_name(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("a")
    (tmp_path / "data.zip").write_bytes(b"PK")
    (tmp_path / "broken.png").write_bytes(b"PK")
    good = tree(tmp_path / "good", "a.png")
    for name, reason in (
        ("none", "does not exist"),
        ("empty", "holds no images"),
        ("text", "holds no images"),
        ("data.zip", "is neither a folder nor a manifest"),
        ("broken.png", "not an image of a known format"),
    ):
        with pytest.raises(UsageError, match=reason) as caught:
            read_sources([good, tmp_path / name])
        message = str(caught.value)
        assert str(tmp_path / name) in message
        assert "domain/class/image" in message
        assert "webp" in message
        assert "\n" not in message
    with pytest.raises(UsageError, match="no data path"):
        read_sources([])
    with pytest.raises(UsageError, match="given twice"):
        read_sources([good, tmp_path / "empty" / ".." / "good"])


def test_a_single_image_is_a_source(tmp_path):
    path = picture(tmp_path / "a.png")
    table = read_sources([path])
    assert table.names == ("a.png",)
    assert table.layout == "one image, no labels: 1 image"


def with_broken(root, count):
    tree(root, "good0.png", "good1.png")
    for i in range(count):
        (root / f"zero{i}.jpg").write_bytes(b"")
    return root


def test_broken_files_are_set_aside_and_the_first_five_named(tmp_path, capsys):
    root = with_broken(tmp_path / "d", 5)
    (root / "text.jpg").write_text("hello")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "cut.jpg")
    (root / "cut.jpg").write_bytes((root / "cut.jpg").read_bytes()[:2000])
    table = read_sources([root], set_aside=tmp_path / "run" / "set_aside.json")
    assert table.names == ("good0.png", "good1.png")
    assert table.layout == "folder of images, no labels: 2 images"
    listed = json.loads((tmp_path / "run" / "set_aside.json").read_text())
    assert len(listed) == 7
    reasons = {Path(e["path"]).name: e["reason"] for e in listed}
    assert reasons["zero0.jpg"] == "the file is empty"
    assert "truncated" in reasons["cut.jpg"]
    assert "not an image" in reasons["text.jpg"]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "set aside 7 of 9 files that cannot be read:"
    assert len(lines) == 7
    assert lines[-1] == f"  and 2 more, see {tmp_path / 'run' / 'set_aside.json'}"


def test_nothing_broken_writes_an_empty_list_and_says_nothing(tmp_path, capsys):
    aside = tmp_path / "aside.json"
    aside.write_text('[{"path": "old", "reason": "old"}]')
    read_sources([tree(tmp_path / "d", "a.png")], set_aside=aside)
    assert json.loads(aside.read_text()) == []
    assert capsys.readouterr().err == ""


def test_strict_fails_on_a_broken_file_and_still_lists_it(tmp_path):
    root = with_broken(tmp_path / "d", 2)
    with pytest.raises(AttarError, match=r"2 of 4 files cannot be read.*zero0\.jpg") as caught:
        read_sources([root], strict=True, set_aside=tmp_path / "aside.json")
    assert caught.value.exit_status == 1
    assert len(json.loads((tmp_path / "aside.json").read_text())) == 2


def test_the_cache_saves_reading_unchanged_files_again(tmp_path):
    root = tree(tmp_path / "d", "a.png", "b.png")
    cache = tmp_path / "cache" / "files.parquet"
    first = read_sources([root], cache=cache)
    # Same size and time, other bytes: only a file that is read again would be noticed.
    path, status = root / "a.png", (root / "a.png").stat()
    path.write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert read_sources([root], cache=cache) == first
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert read_sources([root], cache=cache).names == ("b.png",)


def test_a_mended_file_comes_back_and_a_broken_cache_is_made_again(tmp_path):
    root = with_broken(tmp_path / "d", 1)
    cache = tmp_path / "files.parquet"
    assert len(read_sources([root], cache=cache)) == 2
    Image.new("RGB", (8, 8)).save(root / "zero0.jpg")
    assert len(read_sources([root], cache=cache)) == 3
    cache.write_bytes(b"garbage")
    assert len(read_sources([root], cache=cache)) == 3
    cache.unlink()
    assert len(read_sources([root], cache=cache)) == 3


def test_many_files_are_read_in_order(tmp_path):
    root = tmp_path / "d"
    picture(root / "0000.png", seed=0)
    data = (root / "0000.png").read_bytes()
    for i in range(1, 1100):
        (root / f"{i:04}.png").write_bytes(data)
    table = read_sources([root])
    assert table.names == tuple(f"{i:04}.png" for i in range(1100))
    assert set(table.keys) == {hashlib.sha256(data).hexdigest()}


def test_reading_data_loads_no_torch():
    code = (
        "import sys, attar.data.sources, attar.data.splits, attar.data.samplers, attar.data.views;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

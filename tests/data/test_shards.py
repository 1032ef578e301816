"""Tars of samples become the same table that a folder of their files would."""

import gzip
import json
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
from tests.data.tars import picture, sample, write_tar, write_tars

from attar.data.classes import ClassList
from attar.data.images import read_image
from attar.data.manifest import read_manifest
from attar.data.shards import expand
from attar.data.sources import read_sources
from attar.data.table import ImageTable
from attar.errors import AttarError, UsageError
from attar.files import sha256_file
from attar.members import Member, location, read_bytes


def read(*roots: Path | str, **options) -> ImageTable:
    return read_sources([Path(root) for root in roots], **options)


def set_aside(path: Path) -> dict[str, str]:
    return {one["path"]: one["reason"] for one in json.loads(path.read_text())}


def test_every_sample_of_every_tar_is_an_image(tmp_path: Path) -> None:
    write_tars(tmp_path, tars=3, each=4)
    table = read(tmp_path / "data-{000..002}.tar")
    assert len(table) == 12
    assert table.layout == "3 tars of samples: 2 classes, 12 images"
    assert table.names[5] == "data-001.tar/001001.png"
    assert table.labels == (0, 1) * 6
    assert table.class_names == ("0", "1")
    assert table.captions[5] == "text 1 1"
    for row, address in enumerate(table.paths):
        file = tmp_path / f"{row}.png"
        file.write_bytes(picture(row))
        assert read_bytes(address) == file.read_bytes()
        assert table.keys[row] == sha256_file(file)
        assert np.array_equal(np.asarray(read_image(address)), np.asarray(read_image(file)))


def test_patterns_globs_and_folders_name_the_same_tars(tmp_path: Path) -> None:
    write_tars(tmp_path)
    tables = [
        read(tmp_path / name)
        for name in ("data-{000..002}.tar", "data-{000,001,002}.tar", "data-*.tar", "")
    ]
    assert all(table == tables[0] for table in tables)
    assert read(tmp_path / "data-001.tar").names[0] == "data-001.tar/001000.png"


def test_braces_count_as_in_a_shell(tmp_path: Path) -> None:
    for name in ("a-8", "a-9", "a-10", "b-8", "b-9", "b-10"):
        write_tar(tmp_path / f"{name}.tar", sample("x", 0))
    found = expand(str(tmp_path / "{a,b}-{8..10}.tar"))
    assert [Path(tar).stem for tar in found] == ["a-8", "a-9", "a-10", "b-8", "b-9", "b-10"]
    backwards = expand(str(tmp_path / "a-{10..8}.tar"))
    assert [Path(tar).stem for tar in backwards] == ["a-10", "a-9", "a-8"]
    with pytest.raises(UsageError, match="no brace pattern"):
        expand(str(tmp_path / "a-{8}.tar"))


def test_a_tar_that_two_patterns_name_is_refused(tmp_path: Path) -> None:
    write_tars(tmp_path)
    with pytest.raises(UsageError, match=r"data-\*\.tar gives .*data-001\.tar.* again"):
        read(tmp_path / "data-001.tar", tmp_path / "data-*.tar")


def test_a_missing_tar_is_named(tmp_path: Path) -> None:
    write_tars(tmp_path)
    with pytest.raises(UsageError, match=r"data-003\.tar and 1 more does not exist"):
        read(tmp_path / "data-{000..004}.tar")
    with pytest.raises(UsageError, match=r"other-\*\.tar does not exist"):
        read(tmp_path / "other-*.tar")


def test_what_stands_beside_an_image_is_known_of_it(tmp_path: Path) -> None:
    files = [
        *sample("a/0", 0, "cat", "one cat", extension="jpg"),
        *sample("a/1", 1, extension="webp", label="dog", domain="photo", caption="one dog"),
        *sample("./b/2", 2, "cat", "stands", caption="does not", split="test", width=20),
        ("b/2.mask.png", b"not an image of a sample"),
        ("b/._2.png", b"what a Mac adds"),
        ("notes.txt", b"a sample without an image"),
    ]
    write_tar(tmp_path / "x.tar", files)
    table = read(tmp_path / "x.tar")
    assert table.names == ("x.tar/a/0.jpg", "x.tar/a/1.webp", "x.tar/b/2.png")
    assert [table.class_names[i] for i in table.labels] == ["cat", "dog", "cat"]
    assert table.captions == ("one cat", "one dog", "stands")
    assert table.domains == (-1, 0, -1)
    assert table.splits == (None, None, "test")
    plain = read(tmp_path / "x.tar", unlabelled=True)
    assert plain.labels == (-1,) * 3
    assert plain.captions == table.captions


def test_several_labels_come_from_json(tmp_path: Path) -> None:
    files = [*sample("0", 0, labels=["cat", "dog"]), *sample("1", 1, labels=["dog"])]
    table = read(write_tar(tmp_path / "x.tar", files))
    assert table.label_sets == ((0, 1), (1,))


def test_numbers_of_classes_become_names(tmp_path: Path) -> None:
    write_tars(tmp_path / "set" / "test")
    listed = ClassList(("ape", "bee"), ((), ()))
    table = read(tmp_path / "set" / "test", class_list=listed)
    assert table.class_names == ("ape", "bee")
    assert table.labels == (0, 1) * 6
    (tmp_path / "set" / "classnames.txt").write_text("zebra\ncat\n")  # as CLIP_benchmark has it
    table = read(tmp_path / "set" / "test")
    assert [table.class_names[i] for i in table.labels[:2]] == ["zebra", "cat"]
    with pytest.raises(UsageError, match="does not fit the labels"):
        read(tmp_path / "set" / "test", class_list=listed)
    (tmp_path / "set" / "classnames.txt").write_text("zebra\n")
    with pytest.raises(UsageError, match=r"classnames\.txt .* names 1 .* class 1: .* from 0"):
        read(tmp_path / "set" / "test")
    assert read(tmp_path / "set" / "test", unlabelled=True).labels == (-1,) * 12


def test_an_unchanged_tar_is_not_read_again(tmp_path: Path) -> None:
    first, second, _ = write_tars(tmp_path / "data")
    cache = tmp_path / "run" / "files.parquet"
    before = read(tmp_path / "data", cache=cache)
    indices = sorted((tmp_path / "run" / "shards").iterdir())
    made = {path: path.stat().st_mtime_ns for path in indices}
    assert len(indices) == 3
    write_tar(second, sample("new", 99, 0, "new"))
    after = read(tmp_path / "data", cache=cache)
    assert len(after) == 4 + 1 + 4
    assert after.keys[:4] == before.keys[:4]
    changed = [path for path in indices if path.stat().st_mtime_ns != made[path]]
    assert len(changed) == 1
    indices[0].write_bytes(b"broken")
    assert read(tmp_path / "data", cache=cache) == after
    assert first.is_file()


@pytest.mark.parametrize("where", ["in an image", "in what stands beside it", "between samples"])
def test_a_truncated_tar_gives_its_whole_samples_and_is_named(tmp_path: Path, where: str) -> None:
    whole, cut, _ = write_tars(tmp_path / "data", each=4)
    members = [Member.parse(path) for path in read(cut).paths]
    end = {
        "in an image": members[2].start + 10,
        "in what stands beside it": members[2].end + 600,
        "between samples": members[3].start - 512,
    }[where]
    cut.write_bytes(cut.read_bytes()[:end])
    aside = tmp_path / "set_aside.json"
    table = read(tmp_path / "data", set_aside=aside)
    assert table.names[4:6] == ("data-001.tar/001000.png", "data-001.tar/001001.png")
    assert len(table) == 4 + 2 + 4
    assert table.captions[5] == "text 1 1"
    (reason,) = set_aside(aside).values()
    assert set_aside(aside).keys() == {str(cut)}
    assert reason.startswith("it ends early")
    assert reason.endswith("; samples found: 2")
    with pytest.raises(AttarError, match=r"data-001\.tar: it ends early"):
        read(tmp_path / "data", strict=True)
    assert whole.is_file()


def test_a_truncated_tar_is_read_anew_when_it_is_whole(tmp_path: Path) -> None:
    tars = write_tars(tmp_path / "data")
    data = tars[1].read_bytes()
    tars[1].write_bytes(data[:3000])
    cache = tmp_path / "files.parquet"
    assert len(read(tmp_path / "data", cache=cache)) < 12
    tars[1].write_bytes(data)
    assert len(read(tmp_path / "data", cache=cache)) == 12


def test_a_corrupt_image_or_text_is_set_aside_by_its_address(tmp_path: Path) -> None:
    files = [
        *sample("0", 0, "cat"),
        ("1.png", picture(1)[:60]),
        ("1.cls", b"cat"),
        *sample("2", 2, "dog"),
        ("3.png", picture(3)),
        ("3.txt", b"\xff\xfe"),
        ("4.png", picture(4)),
        ("4.json", b"[1]"),
        ("\udce9.png", picture(5)),
        *sample("6", 6, caption="half of \ud83d"),
        *sample("7", 7, labels=["\ud83d"]),
    ]
    write_tar(tmp_path / "x.tar", files)
    aside = tmp_path / "set_aside.json"
    table = read(tmp_path / "x.tar", set_aside=aside)
    assert table.names == ("x.tar/0.png", "x.tar/2.png")
    reasons = set_aside(aside)
    assert [Member.parse(path).name for path in reasons] == [
        "1.png", "3.png", "4.png", "?.png", "6.png", "7.png",
    ]  # fmt: skip
    shown = list(reasons.values())
    assert "truncated" in shown[0] or "Truncated" in shown[0]
    assert shown[1].startswith("3.txt beside it cannot be read")
    assert shown[3] == "its name is not UTF-8"
    assert shown[2] == "4.json beside it cannot be read: it is no JSON object"
    assert shown[4].startswith("6.json beside it cannot be read: 'utf-8' codec")
    assert shown[5].startswith("7.json beside it cannot be read: 'utf-8' codec")


def test_a_tar_overwritten_in_the_middle_is_named(tmp_path: Path) -> None:
    (tar,) = write_tars(tmp_path / "data", tars=1, each=4)
    start = Member.parse(read(tar).paths[2]).start - 512
    data = bytearray(tar.read_bytes())
    data[start : start + 512] = b"x" * 512
    tar.write_bytes(data)
    aside = tmp_path / "set_aside.json"
    assert len(read(tar, set_aside=aside, unlabelled=True)) == 1
    assert "it is damaged at byte" in set_aside(aside)[str(tar)]


def test_what_lies_behind_a_hole_or_an_end_mark_is_not_lost_in_silence(tmp_path: Path) -> None:
    (tar,) = write_tars(tmp_path / "data", tars=1, each=4)
    start = Member.parse(read(tar).paths[2]).start - 512
    whole, aside = tar.read_bytes(), tmp_path / "set_aside.json"
    # A download that was written at several places at once, and broke off.
    tar.write_bytes(whole[:start] + bytes(len(whole) - start) + bytes(1 << 17))
    assert len(read(tar, set_aside=aside, unlabelled=True)) == 1
    assert f"nothing but zeros from byte {start:,} on" in set_aside(aside)[str(tar)]
    tar.write_bytes(whole[:start] + bytes(1024) + whole[start + 1024 :])
    assert len(read(tar, set_aside=aside, unlabelled=True)) == 1
    assert f"more behind its end mark, at byte {start + 1024:,}" in set_aside(aside)[str(tar)]
    tar.write_bytes(whole + whole)
    assert len(read(tar, set_aside=aside)) == 3
    assert f"at byte {len(whole):,}" in set_aside(aside)[str(tar)]


@pytest.mark.parametrize("first", ["png", "cls"])
def test_a_label_apart_from_its_image_is_named(tmp_path: Path, first: str) -> None:
    files = [file for i in range(3) for file in sample(f"{i}", i, "cat")]
    # One of them is there twice, but whole.
    one, other = sample("3", 3, "dog"), sample("4", 4, "cat")
    whole = [*one, *other, *one] if first == "png" else [*one[::-1], *other[::-1], *one[::-1]]
    apart = sorted(files, key=lambda file: not file[0].endswith(first))
    tar, aside = write_tar(tmp_path / "a.tar", [*apart, *whole]), tmp_path / "set_aside.json"
    assert read(tar, set_aside=aside).labels == (-1, -1, -1, 1, 0, 1)
    (reason,) = set_aside(aside).values()
    second = "cls" if first == "png" else "png"
    assert reason.startswith(f"0.{second} (and 2 more) stands apart from the other files")
    assert reason.endswith("samples found: 6")


def test_an_archive_beside_its_class_folders_is_no_tar_of_samples(tmp_path: Path) -> None:
    files = []
    for number, label in enumerate(("cat", "dog")):
        (tmp_path / "pets" / label).mkdir(parents=True)
        (tmp_path / "pets" / label / "0.png").write_bytes(picture(number))
        files.append((f"pets/{label}/0.png", picture(number)))
    write_tar(tmp_path / "pets" / "pets.tar", files)
    table = read(tmp_path / "pets")
    assert table.layout == "class/image: 2 classes, 2 images"
    assert table.class_names == ("cat", "dog")
    (tmp_path / "other").mkdir()
    write_tars(tmp_path / "other" / "train")
    shutil.copytree(tmp_path / "other" / "train", tmp_path / "other", dirs_exist_ok=True)
    assert read(tmp_path / "other").layout.startswith("3 tars of samples")


def test_what_is_no_tar_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tar,) = write_tars(tmp_path, tars=1)
    packed = tmp_path / "packed.tar"
    packed.write_bytes(gzip.compress(tar.read_bytes()))
    with pytest.raises(UsageError, match=r"it is compressed, .* uncompress it"):
        read(packed)
    packed.write_bytes(b"this is no tar" * 100)
    with pytest.raises(UsageError, match="it is not a tar"):
        read(packed)
    packed.write_bytes(b"")
    with pytest.raises(UsageError, match="it is empty"):
        read(packed)
    write_tar(packed, [("readme.txt", b"no image")])
    with pytest.raises(UsageError, match="holds no samples"):
        read(packed)


def test_a_tar_cut_after_it_was_listed_is_named_when_it_is_read(tmp_path: Path) -> None:
    (tar,) = write_tars(tmp_path, tars=1)
    last = read(tar).paths[-1]
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(AttarError, match=r"003\.png cannot be read: the tar ends before byte"):
        read_image(last)


def test_a_url_is_read_like_a_path(tmp_path: Path) -> None:
    write_tars(tmp_path)
    system = fsspec.filesystem("memory")
    for tar in sorted(tmp_path.glob("*.tar")):
        system.pipe_file(f"/test-shards/{tar.name}", tar.read_bytes())
    try:
        cache = tmp_path / "files.parquet"
        here, away = (
            read(tmp_path),
            read("memory://test-shards/data-{000..002}.tar", cache=cache),
        )
        assert away.keys == here.keys
        assert away.names == here.names
        assert away.captions == here.captions
        assert away.paths[0].startswith("memory://test-shards/data-000.tar[")
        assert read_bytes(away.paths[7]) == read_bytes(here.paths[7])
        assert read("memory://test-shards/data-*.tar").keys == here.keys
        assert read("memory://test-shards/data-{000..002}.tar", cache=cache) == away
        with pytest.raises(AttarError, match=r"data-9\.tar cannot be read .* run the same command"):
            read("memory://test-shards/data-9.tar")
    finally:
        system.rm("/test-shards", recursive=True)


def test_an_address_survives_paths_and_manifests(tmp_path: Path) -> None:
    assert location(Path("s3://bucket/x.tar")) == "s3://bucket/x.tar"
    assert location(Path("simplecache::s3://b/x.tar")) == "simplecache::s3://b/x.tar"
    assert location(Path("file:///data/x.tar")) == "file:///data/x.tar"
    write_tars(tmp_path)
    table = read(tmp_path)
    assert str(Member.parse(table.paths[3])) == table.paths[3]
    manifest = tmp_path / "images.csv"
    manifest.write_text(
        "path\n" + "".join(f"{Path(p).relative_to(tmp_path)}\n" for p in table.paths)
    )
    assert [entry.path for entry in read_manifest(manifest)] == list(table.paths)
    assert read(manifest, cache=tmp_path / "files.parquet").keys == table.keys


def test_a_protocol_that_is_not_installed_is_named() -> None:
    with pytest.raises(UsageError, match="Protocol not known: nonsense"):
        read("nonsense://bucket/x.tar")
    with pytest.raises(UsageError, match=r"memory://bucket/photos is no \.tar"):
        read("memory://bucket/photos")


def test_tars_and_folders_stand_side_by_side(tmp_path: Path) -> None:
    write_tars(tmp_path / "tars")
    folder = tmp_path / "folder"
    for label in ("0", "1"):
        (folder / label).mkdir(parents=True)
        (folder / label / "x.png").write_bytes(picture(100 + int(label)))
    table = read(tmp_path / "tars", folder, cache=tmp_path / "files.parquet")
    assert len(table) == 14
    assert table.layout == (
        "3 tars of samples: 2 classes, 12 images; class/image: 2 classes, 2 images"
    )
    shutil.rmtree(folder)

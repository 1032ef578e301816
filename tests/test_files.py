"""Files and folders that are whole or absent, whatever happens while they are written."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from threading import Barrier, Thread
from time import sleep

import pytest

from attar.errors import AttarError, UsageError
from attar.files import (
    atomic_folder,
    atomic_path,
    check_writable,
    read_json,
    recover_folder,
    sha256_file,
    sha256_text,
    write_json,
    write_text,
)

SHA256_OF_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_and_makes_its_folders(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "file.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        assert temporary.parent == target.parent  # or the rename could not be atomic
        assert not target.exists()
        temporary.write_text("whole")
    assert target.read_text() == "whole"
    assert names(target.parent) == ["file.txt"]


def test_a_failing_block_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("new")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]
    target.unlink()
    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert names(tmp_path) == []


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for content in ("first", "second"):
        with atomic_folder(target) as temporary:
            assert temporary.is_dir()
            assert names(temporary) == []
            (temporary / content).write_text(content)
        assert names(target) == [content]
        assert names(tmp_path) == ["folder"]


def test_a_failing_block_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").write_text("old")

    def fail() -> None:
        with atomic_folder(target) as temporary:
            (temporary / "new").write_text("new")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert names(tmp_path) == ["folder"]
    assert (target / "old").read_text() == "old"
    shutil.rmtree(target)
    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert names(tmp_path) == []


def test_who_writes_the_same_folder_waits(tmp_path: Path) -> None:
    target, inside = tmp_path / "folder", Barrier(2)

    def write(name: str) -> None:
        with atomic_folder(target) as temporary:
            if name == "first":
                inside.wait()
                sleep(0.2)  # long enough for the second to come in, were it let in
            for part in ("a", "b"):
                (temporary / f"{name} {part}").write_text("")

    first = Thread(target=write, args=("first",))
    first.start()
    inside.wait()
    write("second")
    first.join()
    assert names(target) == ["second a", "second b"]
    assert names(tmp_path) == ["folder"]


def test_what_an_earlier_kill_left_is_not_taken_over(tmp_path: Path) -> None:
    stale = tmp_path / ".folder.partial"
    stale.mkdir()
    (stale / "half").write_text("half")
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "whole").write_text("whole")
    assert names(tmp_path / "folder") == ["whole"]
    assert names(tmp_path) == ["folder"]


KILLED_AT_RENAME = """
import os, sys
from pathlib import Path
from attar.files import atomic_folder
target, kill_at = Path(sys.argv[1]), int(sys.argv[2])
rename, count = Path.rename, 0
def counting(self, other):
    global count
    count += 1
    if count == kill_at:
        os.kill(os.getpid(), 9)
    return rename(self, other)
Path.rename = counting
with atomic_folder(target) as temporary:
    (temporary / "new").write_text("new")
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(
    ("kill_at", "left", "content"),
    [(1, True, "old"), (2, False, "old"), (3, True, "new")],
    ids=["before the old is moved", "between the renames", "after them"],
)
def test_a_folder_comes_back_after_a_kill(
    tmp_path: Path, kill_at: int, left: bool, content: str
) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").write_text("old")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AT_RENAME, str(target), str(kill_at)],
        env=environment,
        check=False,
    )
    assert killed.returncode == -9
    assert target.exists() == left
    recover_folder(target)
    assert names(target) == [content]
    with atomic_folder(target) as temporary:
        (temporary / "next").write_text("next")
    assert names(target) == ["next"]
    assert names(tmp_path) == ["folder"]


def test_the_next_write_recovers_by_itself(tmp_path: Path) -> None:
    old = tmp_path / ".folder.old"
    old.mkdir()
    (old / "old").write_text("old")

    def fail() -> None:
        with atomic_folder(tmp_path / "folder") as temporary:
            # The old content is not lost while the new is made.
            assert names(old) == ["old"]
            (temporary / "new").write_text("new")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    recover_folder(tmp_path / "folder")
    assert names(tmp_path / "folder") == ["old"]


def test_recovery_drops_the_old_folder_when_the_new_one_is_there(tmp_path: Path) -> None:
    for name in ("folder", ".folder.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
    recover_folder(tmp_path / "folder")
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["folder"]
    recover_folder(tmp_path / "never made")
    assert names(tmp_path) == ["folder"]


def test_files_written_for_their_owner_alone_are_opened_to_readers(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "sub").mkdir(mode=0o700)
        (temporary / "sub" / "private").touch(mode=0o600)
    (tmp_path / "plain").touch()
    (tmp_path / "plain-folder").mkdir()
    for made, plain in (("folder/sub/private", "plain"), ("folder/sub", "plain-folder")):
        modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in (made, plain)]
        assert modes[0] == modes[1], made


def test_text_and_json_read_back(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "Straße\n")
    assert (tmp_path / "a.txt").read_bytes() == "Straße\n".encode()
    value = {"b": [1, 2.5, None], "a": "Straße"}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text.index('"b"') < text.index('"a"')
    assert "Straße" in text


def test_what_json_cannot_hold_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert read_json(tmp_path / "a.json") == 1
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("content", [b'{"a": 1', b"", b'{"a": "\xff"}'])
def test_broken_json_is_named_with_the_way_out(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(AttarError, match="delete it and run again") as failed:
        read_json(path)
    assert str(path) in str(failed.value)
    assert len(str(failed.value).splitlines()) == 1


def test_checksums_are_those_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == SHA256_OF_ABC
    assert sha256_text("abc") == SHA256_OF_ABC
    (tmp_path / "utf8").write_bytes("ß".encode())
    assert sha256_text("ß") == sha256_file(tmp_path / "utf8")


def test_a_place_that_can_be_written_to_passes_and_is_not_made(tmp_path: Path) -> None:
    check_writable(tmp_path, needed_bytes=1)
    check_writable(tmp_path / "not" / "yet" / "there", needed_bytes=1)
    assert names(tmp_path) == []


def test_a_relative_place_is_looked_for_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_writable(Path("runs/a"))
    Path("runs").write_text("")
    with pytest.raises(UsageError, match="runs is a file, not a folder"):
        check_writable(Path("runs/a"))


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below" / "it"):
        with pytest.raises(UsageError) as refused:
            check_writable(place)
        assert str(refused.value).startswith(f"{tmp_path / 'file'} is a file, not a folder")
        assert f"another place for {place}" in str(refused.value)


def test_too_little_space_is_said_in_numbers(tmp_path: Path) -> None:
    needed = shutil.disk_usage(tmp_path).total * 2
    with pytest.raises(UsageError) as refused:
        check_writable(tmp_path / "out", needed)
    message = str(refused.value)
    assert message.startswith(f"{tmp_path / 'out'} needs {needed / 1e6:,.0f} MB but {tmp_path} has")
    assert "free some space or choose another place" in message


ASK_AS_SOMEBODY = """
import os, sys
from pathlib import Path
from attar.errors import UsageError
from attar.files import check_writable
if os.geteuid() == 0:  # who may write everywhere
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    check_writable(Path(sys.argv[1]))
except UsageError as error:
    print(error)
"""


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that other users may enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp(prefix="attar-test-"))
    folder.chmod(0o755)
    yield folder
    for path in folder.iterdir():
        path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("mode", [0o555, 0o444, 0o644], ids=oct)
@pytest.mark.parametrize("below", ["", "out/run"])
def test_no_permission_is_said_of_the_folder_that_lacks_it(
    public: Path, mode: int, below: str
) -> None:
    closed = public / "closed"
    (closed / "out").mkdir(parents=True)
    closed.chmod(mode)
    if mode & 0o111:  # it may be entered, so that what is inside is what counts
        (closed / "out").rmdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", ASK_AS_SOMEBODY, str(closed / below)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout == (
        f"no permission to write in {closed}; choose another place for {closed / below}\n"
    )

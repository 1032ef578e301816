"""A file inside a tar has an address like any other file, and is read without unpacking.

    /data/pets-000.tar[1536:22016]/0001.jpg        bytes 1536 up to 22016 of the tar
    s3://bucket/pets-000.tar[1536:22016]/0001.jpg  the same of a tar behind an fsspec URL

So a column of addresses is all that a reader in any process needs: no tar stays open, and an image
in the middle of a tar is as near as the first one.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from attar.errors import AttarError, UsageError

_ADDRESS = re.compile(r"(?P<tar>.+\.tar)\[(?P<start>\d+):(?P<end>\d+)\]/(?P<name>.+)", re.DOTALL)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/+")
_URL = re.compile(r"[a-z][a-z0-9+.-]+(::|:/)")


@dataclass(frozen=True)
class Member:
    """A file inside a tar: bytes `start` up to `end` of it."""

    tar: str
    """Path or URL of the tar."""
    start: int
    end: int
    name: str
    """Path inside the tar."""

    def __str__(self) -> str:
        return f"{self.tar}[{self.start}:{self.end}]/{self.name}"

    @classmethod
    def parse(cls, address: str) -> Self | None:
        """Return the member of an address, None for the path of a plain file."""
        found = _ADDRESS.fullmatch(address)
        if found is None:
            return None
        return cls(found["tar"], int(found["start"]), int(found["end"]), found["name"])


def is_url(path: str | Path) -> bool:
    """Whether a path is an fsspec URL, such as s3://bucket/x.tar or simplecache::s3://bucket/x."""
    return _URL.match(str(path)) is not None


def location(path: str | Path) -> str:
    """Return a path as text; in a URL that went through `Path`, the second slash is put back."""
    if not is_url(path):
        return str(path)
    return _SCHEME.sub(lambda s: f"{s[1]}:///" if s[1] == "file" else f"{s[1]}://", str(path))


def read_bytes(path: str | Path) -> bytes:
    """Return the bytes of a file, here or behind a URL, or of a member of a tar by its address.

    Raises:
        OSError: it cannot be read, or the tar now ends before the member does.
    """
    address = location(path)
    member = Member.parse(address)
    if is_url(address):
        where = {} if member is None else {"start": member.start, "end": member.end}
        with remote(address if member is None else member.tar) as (system, place):
            data = bytes(system.cat_file(place, **where))
    elif member is None:
        data = Path(address).read_bytes()
    else:
        with Path(member.tar).open("rb") as file:
            file.seek(member.start)
            data = file.read(member.end - member.start)
    if member is not None and len(data) != member.end - member.start:
        raise OSError(f"the tar ends before byte {member.end:,}; it was longer when it was listed")
    return data


@contextmanager
def open_tar(tar: str) -> Iterator[BinaryIO]:
    """Open a tar, here or behind a URL, for reading from its beginning on."""
    if not is_url(tar):
        with Path(tar).open("rb") as file:
            yield file
        return
    with remote(tar) as (system, place), system.open(place, "rb") as distant:
        yield distant


def fingerprint(tar: str) -> str:
    """Return what changes when the bytes of a tar do; OSError when it is not there."""
    if not is_url(tar):
        status = Path(tar).stat()
        return f"{status.st_size} {status.st_mtime_ns}"
    with remote(tar) as (system, place):
        return str(system.ukey(place))


@contextmanager
def remote(url: str) -> Iterator[tuple[Any, str]]:
    """Yield (fsspec file system, path in it) of a URL; whatever a backend raises is an OSError.

    Raises:
        UsageError: fsspec does not know the URL's protocol, or its package is not installed.
    """
    from fsspec.core import url_to_fs

    try:
        # Not kept by us: fsspec keeps one for each process, which a forked worker could not share.
        system, place = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UsageError(
            f"{url} cannot be opened ({error}); install what its protocol needs, e.g. "
            "pip install 'attar[scale]', or copy the tars to this machine"
        ) from error
    try:
        yield system, place
    except (OSError, AttarError):
        raise
    except Exception as error:  # each backend raises what it likes
        raise OSError(f"{type(error).__name__}: {error}") from error

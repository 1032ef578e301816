"""One pass over the files of a tar, which notices where a tar is damaged or ends early.

Readers of tars stop at the first thing that looks like an end. What a broken download lost would
be lost in silence, so a walk says afterwards what was wrong.
"""

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

_BLOCK = tarfile.BLOCKSIZE
_PADDING = 1 << 16
"""More zeros than programs write behind the last file of a tar: Python, GNU and BSD tar 10 kB."""


@dataclass(frozen=True)
class TarPart:
    """One file in a tar: bytes `start` up to `end` of it."""

    name: str
    key: str
    """The name up to the first dot of its last part: what the files of one sample share."""
    extension: str
    """The rest of the name, in lower case, without the dot."""
    start: int
    end: int
    data: bytes
    """What is in it; empty if nobody asked for that."""


class TarWalk:
    """One pass over a tar's files; afterwards `trouble` says why it ended early, if it did."""

    def __init__(self, file: BinaryIO) -> None:
        self.trouble: str | None = None
        self._file = file
        self._end = 0

    def parts(self, wanted: Callable[[str], bool]) -> Iterator[TarPart]:
        """Yield every visible file, in stored order; `wanted(extension)` says whether to read it.

        The last one may be cut: `trouble` is set then.
        """
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # else it keeps them all
                    # A member that is no file (a folder, a link) has no bytes of its own.
                    size = member.size if member.isreg() else 0
                    self._end = member.offset_data + -(-size // _BLOCK) * _BLOCK
                    if not member.isreg() or _is_hidden(member.name):
                        continue
                    key, extension = _split(member.name)
                    data = b""
                    if wanted(extension):
                        self._file.seek(member.offset_data)
                        data = self._file.read(size)
                        if len(data) != size:
                            self.trouble = f"it ends early, inside {member.name}"
                    name, start = member.name.removeprefix("./"), member.offset_data
                    yield TarPart(name, key, extension, start, start + size, data)
                    if self.trouble is not None:
                        return
        except tarfile.TarError as error:
            self.trouble = self._not_a_tar() if not self._end else f"it ends early ({error})"
            return
        self.trouble = _trouble_behind(self._file, self._end)

    def _not_a_tar(self) -> str:
        self._file.seek(0)
        head = self._file.read(6)
        if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
            return "it is compressed, and images are read at any place of a tar: uncompress it"
        return "it is not a tar" if head else "it is empty"


def _trouble_behind(file: BinaryIO, end: int) -> str | None:
    """Say what is wrong behind the last file of a tar, which ends at byte `end`; None for a whole.

    A whole tar ends in some blocks of zeros. Readers stop at the first of them, so a hole that a
    broken download left, or a second tar written behind the first, would be lost in silence.
    """
    file.seek(end)
    block = file.read(_BLOCK)
    if len(block) < _BLOCK:
        return f"it ends early, at byte {end + len(block):,}"
    if block.strip(b"\0"):
        return f"it is damaged at byte {end:,}"
    padding = file.read(_PADDING)
    more = padding.lstrip(b"\0")
    if more:
        place = end + _BLOCK + len(padding) - len(more)
        return (
            f"there is more behind its end mark, at byte {place:,}: damage, or several tars in one"
        )
    if len(padding) == _PADDING:
        return f"there is nothing but zeros from byte {end:,} on, as in half a download"
    return None


def _split(name: str) -> tuple[str, str]:
    """Return (key, extension) of a member: the name up to the first dot of its last part."""
    folder, slash, last = name.removeprefix("./").rpartition("/")
    stem, _, extension = last.partition(".")
    return folder + slash + stem, extension.lower()


def _is_hidden(name: str) -> bool:
    """Whether a member is what some systems add to a tar, such as ._0001.jpg."""
    parts = name.removeprefix("./").split("/")
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)

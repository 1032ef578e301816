"""Answers that were paid for, in an append-only file that survives a kill at any moment."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from attar.errors import UsageError


def answers_path(out: Path) -> Path:
    """Return where the answers behind an output are kept: beside it."""
    return out.with_name(f"{out.name}.answers.jsonl")


class AnswerLog:
    """One answer a line (JSON); each is on the disk when `append` returns.

    Used as a context manager; one process at a time, any number of threads. A line that a kill cut
    short is skipped and takes no other with it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._threads = Lock()
        self._processes = FileLock(path.with_name(f".{path.name}.lock"), blocking=False)

    def __enter__(self) -> Self:
        """Open the file; UsageError when another process writes to it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._processes.acquire()
        except Timeout as error:
            raise UsageError(
                f"{self.path} is being written by another process; wait for it or stop it"
            ) from error
        self._file = self.path.open("ab+")
        if self._file.tell() and not self._ends_a_line():
            self._file.write(b"\n")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        self._processes.release()

    def _ends_a_line(self) -> bool:
        self._file.seek(-1, os.SEEK_END)
        return self._file.read(1) == b"\n"

    def append(self, answers: list[dict[str, Any]]) -> None:
        """Add one line each; they are on the disk when this returns."""
        lines = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
        with self._threads:
            self._file.write(lines.encode())
            self._file.flush()
            os.fsync(self._file.fileno())

    def matching(self, request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the answers, oldest first, whose fields include those of `request`."""
        with self.path.open("rb") as file:  # not as text: a cut may go through a character
            for line in file:
                try:
                    answer = json.loads(line)
                except ValueError:
                    continue
                if isinstance(answer, dict) and request.items() <= answer.items():
                    yield answer

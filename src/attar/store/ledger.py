"""What a store paid a remote teacher: every query, written down before it is sent.

Three files in the store, none of which ever holds a key::

    ledger.jsonl    one line an event, appended and synced: a request is "asked" before it is sent,
                    "paid" when its answer is kept, "released" when the server did nothing for it
    answers/ID.npz  answers that are in no shard yet; deleted once they are
    probes.json     the first answers to the probe image and text, by which a model is known

A request that is neither paid nor released (a kill, a lost connection) counts against the budget:
the server may have billed it.
"""

import json
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock

from attar.errors import AttarError
from attar.files import atomic_path, read_json, sync_folder, write_json
from attar.store.layout import StoreInfo
from attar.teachers.base import TeacherInfo
from attar.teachers.remote_asking import LAST_PROBE, BudgetSpent, Reservation, Row

LEDGER = "ledger.jsonl"
ANSWERS = "answers"
PROBES = "probes.json"
KEPT_BACK = 1
"""Queries of a budget that only a last probe may use: no answer is committed without one."""


class Ledger:
    """The account of one store (the `Account` protocol); several processes may share it.

    Args:
        store: the folder, made with the first request.
        limit: queries in the whole life of the store, None for no limit.
    """

    def __init__(self, store: Path, limit: int | None = None) -> None:
        self.asked = 0
        """Queries that may have been billed, the paid ones among them."""
        self.paid_queries = 0
        self._store, self._limit = store, limit
        self._mutex = threading.RLock()
        self._offset = 0
        self._open: dict[str, tuple[Reservation, float]] = {}
        self._seconds: list[float] = []
        self._answers: dict[str, tuple[Row, str]] = {}
        """Digest -> answer and the id of its request."""
        self._files: dict[str, set[str]] = {}
        """Request -> its digests that are still needed."""
        self._catch_up()
        self._load_answers()
        self._unsettled = [held for held, _ in self._open.values()]

    @property
    def place(self) -> str:
        """The store that pays."""
        return str(self._store)

    @property
    def unsure(self) -> int:
        """Queries whose answers never came: the server may have billed them or not."""
        return self.asked - self.paid_queries

    @property
    def request_seconds(self) -> float | None:
        """The mean duration of the last 200 answered requests, None before the first."""
        return float(np.mean(self._seconds[-200:])) if self._seconds else None

    def known_info(self) -> TeacherInfo | None:
        """Return the teacher that the store belongs to, None for a new store."""
        if not (self._store / "store.json").is_file():
            return None
        return StoreInfo.read(self._store).teacher

    def reserve(self, kind: str, items: Sequence[str]) -> Reservation:
        """Record a request, of fewer items where the budget ends.

        Raises:
            BudgetSpent: not one item is left in the budget.
        """
        with self._changing():
            room = len(items)
            if self._limit is not None:
                kept_back = 0 if kind.endswith(LAST_PROBE) else KEPT_BACK
                room = min(room, self._limit - self.asked - kept_back)
            if room <= 0:
                raise BudgetSpent(self._spent())
            held = Reservation(id=uuid.uuid4().hex, kind=kind, items=tuple(items[:room]))
            self._append("asked", held, items=held.items)
            return held

    def paid(self, reservation: Reservation, rows: Mapping[str, Row]) -> None:
        """Keep the answers by digest, then record that they were paid; both survive a crash."""
        if rows:
            file = self._answers_file(reservation.id)
            with atomic_path(file) as temporary, temporary.open("wb") as opened:
                np.savez(opened, items=np.array(list(rows)), rows=np.stack(list(rows.values())))
            sync_folder(file.parent)
        with self._changing():
            self._append("paid", reservation)
            self._keep(reservation.id, rows)

    def released(self, reservation: Reservation) -> None:
        """Record that the server did nothing for a request."""
        with self._changing():
            self._append("released", reservation)

    def answer(self, digest: str) -> Row | None:
        """Return an answer that was paid and is not yet in a shard."""
        found = self._answers.get(digest)
        return None if found is None else found[0]

    def unsettled(self, kind: str, items: Sequence[str]) -> list[Reservation]:
        """Take requests of an earlier run, all of whose items are asked for, to be sent again."""
        with self._mutex:
            wanted, taken = set(items), []
            for held in list(self._unsettled):
                if held.kind == kind and wanted.issuperset(held.items):
                    self._unsettled.remove(held)
                    taken.append(held)
                    wanted.difference_update(held.items)
            return taken

    def forget(self, digests: Sequence[str]) -> None:
        """Drop kept answers: they are committed, or they are another model's."""
        with self._mutex:
            done = set[str]()
            for digest in digests:
                _, request = self._answers.pop(digest, (None, None))
                if request is None:
                    continue
                left = self._files[request]
                left.discard(digest)
                if not left:
                    del self._files[request]
                    done.add(request)
            if done:
                self._delete_answers(done)

    def probes(self) -> dict[str, Row]:
        """Return the answers to the probes that the store began with."""
        file = self._store / PROBES
        if not file.is_file():
            return {}
        try:
            return {kind: np.array(row, np.float32) for kind, row in read_json(file).items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise AttarError(f"{file} is broken ({error}); restore it from a copy") from error

    def keep_probe(self, kind: str, row: Row) -> None:
        """Keep the first answer to a probe."""
        with self._changing():
            write_json(self._store / PROBES, {**_plain(self.probes()), kind: row.tolist()})

    def _spent(self) -> str:
        return (
            f"the budget of {self._limit:,} queries is spent: {self.paid_queries:,} paid, "
            f"{self.unsure:,} perhaps paid without an answer; what was answered is kept: raise "
            "--budget (--embed.budget) and run the same command again"
        )

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the ledger for this thread of this process, knowing all that stands in it."""
        self._store.mkdir(parents=True, exist_ok=True)
        with self._mutex, FileLock(self._store / ".ledger.lock"):
            self._catch_up()
            yield

    def _append(self, event: str, held: Reservation, **more: Any) -> None:
        line: dict[str, Any] = {
            "time": round(time.time(), 3),
            "event": event,
            "id": held.id,
            "kind": held.kind,
            "queries": len(held.items),
            **more,
        }
        descriptor = os.open(self._store / LEDGER, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            # A line that a crash cut short is ended, so that this one stands by itself.
            torn = b"\n" if os.fstat(descriptor).st_size > self._offset else b""
            os.write(descriptor, torn + json.dumps(line).encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._catch_up()

    def _catch_up(self) -> None:
        """Read the whole lines that were appended since, by whatever process."""
        file = self._store / LEDGER
        if not file.is_file():
            return
        with file.open("rb") as opened:
            opened.seek(self._offset)
            new = opened.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        for raw in whole.splitlines():
            try:
                line = json.loads(raw)
            except ValueError:
                continue  # cut short by a crash, before what it announces was done
            self._apply(line)

    def _apply(self, line: Mapping[str, Any]) -> None:
        request, queries = line["id"], line["queries"]
        if line["event"] == "asked":
            held = Reservation(id=request, kind=line["kind"], items=tuple(line["items"]))
            self._open[request] = (held, line["time"])
            self.asked += queries
        elif request in self._open:  # a request is settled once
            _, since = self._open.pop(request)
            if line["event"] == "released":
                self.asked -= queries
            else:
                self.paid_queries += queries
                self._seconds.append(max(0.0, line["time"] - since))

    def _load_answers(self) -> None:
        """Read the answers in no shard yet; settle those whose line a crash prevented."""
        for file in sorted((self._store / ANSWERS).glob("[!.]*.npz")):
            try:
                with np.load(file) as kept:
                    rows = dict(zip(kept["items"].tolist(), kept["rows"], strict=True))
            except FileNotFoundError:
                continue  # whoever asked has just committed it
            except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
                raise AttarError(
                    f"{file} is broken ({error}); delete it, its {file.stat().st_size} bytes of "
                    "answers are then asked again"
                ) from error
            self._keep(file.stem, rows)
            if file.stem in self._open:
                with self._changing():
                    if file.stem in self._open:  # whoever asked may have just settled it
                        self._append("paid", self._open[file.stem][0])

    def _keep(self, request: str, rows: Mapping[str, Row]) -> None:
        if rows:
            self._files[request] = set(rows)
        for digest, row in rows.items():
            self._answers[digest] = (row, request)

    def _delete_answers(self, requests: Set[str]) -> None:
        """Delete the files of requests, and what a killed process had written of them."""
        for request in requests:
            self._answers_file(request).unlink(missing_ok=True)
        for torn in (self._store / ANSWERS).glob(".*.partial"):
            if torn.name.split(".")[1] in requests:
                torn.unlink(missing_ok=True)

    def _answers_file(self, request: str) -> Path:
        return self._store / ANSWERS / f"{request}.npz"


def _plain(probes: Mapping[str, Row]) -> dict[str, list[float]]:
    return {kind: row.tolist() for kind, row in probes.items()}

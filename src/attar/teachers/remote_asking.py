"""Ask a remote teacher: every request is written down, sent, tried again, and settled."""

import base64
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from attar.errors import AttarError, UsageError
from attar.http import Again, HttpClient, NoAnswer, Refused, Stopped
from attar.teachers.base import TeacherInfo
from attar.teachers.remote_address import KEY_VARIABLES, REDIRECT, WAY_OUT, Address
from attar.teachers.remote_images import MEDIA
from attar.teachers.remote_shapes import BadAnswer, Shape, read_embeddings

Kind = Literal["image", "text"]
Row = NDArray[np.float32]

PATIENCE = 5
"""Requests in a row without an answer after which the server is given up."""
PROBE, LAST_PROBE = "probe", "last probe"
"""Ends of the label of a request with a probe: when a run begins, and before a commit."""


class BudgetSpent(AttarError):
    """The next question would cost more than the budget allows."""


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """A request that is counted as paid unless the server did nothing for it."""

    id: str
    kind: str
    items: tuple[str, ...]
    """Digests of the questions."""


class Account(Protocol):
    """Where queries are recorded and answers kept; all methods may be called by any thread."""

    @property
    def place(self) -> str:
        """The store that pays."""

    def known_info(self) -> TeacherInfo | None:
        """Return the teacher that the store belongs to, None for a new store."""

    def reserve(self, kind: str, items: Sequence[str]) -> Reservation:
        """Record a request, of fewer items where the budget ends; `BudgetSpent` for none."""

    def paid(self, reservation: Reservation, rows: Mapping[str, Row]) -> None:
        """Keep the answers [D] by digest, then record that they were paid."""

    def released(self, reservation: Reservation) -> None:
        """Record that the server did nothing for a request."""

    def answer(self, digest: str) -> Row | None:
        """Return an answer that was paid and is not yet in a shard."""

    def unsettled(self, kind: str, items: Sequence[str]) -> list[Reservation]:
        """Take requests of an earlier run, all of whose items are asked for, to be sent again."""

    def forget(self, digests: Sequence[str]) -> None:
        """Drop kept answers: they are committed, or they are another model's."""

    def probes(self) -> dict[str, Row]:
        """Return the answers to the probes that the store began with."""

    def keep_probe(self, kind: str, row: Row) -> None:
        """Keep the first answer to a probe."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast and how stubbornly a remote teacher is asked."""

    request_size: int = 16
    parallel: int = 4
    rate: float | None = None
    attempts: int = 6
    backoff: float = 1.0
    timeout: float = 60.0


def request_document(
    address: Address, shape: Shape, kind: Kind, questions: Sequence[bytes]
) -> dict[str, object]:
    """Return the document that asks a batch of encoded images, or of texts in UTF-8."""
    if kind == "text":
        return shape.texts(address.model, [one.decode() for one in questions])
    assert shape.images is not None
    encoded = [base64.b64encode(one).decode() for one in questions]
    return shape.images(address.model, encoded, MEDIA[address.format])


class Asker:
    """Asks at the cost of one account. `dim` is checked in every answer, once it is known."""

    def __init__(self, address: Address, shape: Shape, account: Account, pace: Pace) -> None:
        self.account = account
        self.dim: int | None = None
        self._address, self._shape, self._pace = address, shape, pace
        self._http = self._new_client()
        self._failed_in_a_row = 0
        self._lock = threading.Lock()

    def _new_client(self) -> HttpClient:
        return HttpClient(
            key_variables=KEY_VARIABLES,
            way_out=WAY_OUT,
            redirect=REDIRECT,
            attempts=self._pace.attempts,
            backoff=self._pace.backoff,
            timeout=self._pace.timeout,
            rate=self._pace.rate,
        )

    def ask_all(
        self, kind: Kind, questions: Mapping[str, bytes]
    ) -> tuple[dict[str, Row], dict[str, str], AttarError | None]:
        """Ask in parallel; return answers by digest, reasons for none, and what stops the run."""
        answers: dict[str, Row] = {}
        reasons: dict[str, str] = {}
        cause: AttarError | None = None
        try:
            with ThreadPoolExecutor(self._pace.parallel) as pool:
                futures = [
                    pool.submit(self._ask, kind, {d: questions[d] for d in batch}, reservation)
                    for batch, reservation in self._batches(kind, list(questions))
                ]
                try:
                    for future in futures:
                        try:
                            good, bad = future.result()
                        except Stopped:
                            continue
                        except AttarError as error:
                            cause = cause or error
                            self._http.stop()
                            continue
                        answers.update(good)
                        reasons.update(bad)
                except BaseException:  # Ctrl-C: ask no more, keep what is being answered
                    self._http.stop()
                    raise
        finally:
            if self._http.is_stopped:
                self._http, self._failed_in_a_row = self._new_client(), 0
        for digest in questions:  # what a request got before it was stopped
            kept = self.account.answer(digest)
            if kept is not None:
                answers[digest] = kept
        return answers, reasons, cause

    def ask_one(self, kind: Kind, label: str, question: bytes) -> Row:
        """Ask one question whose answer is not kept, and is recorded as `label`.

        Raises:
            NoAnswer, BudgetSpent, UsageError: as in `HttpClient.patiently` and `Account.reserve`.
        """
        old = self.account.unsettled(label, [""]) if self._shape.charges_once else []
        return self._exchange(kind, {"": question}, label, old[0] if old else None)[""]

    def _batches(
        self, kind: Kind, digests: Sequence[str]
    ) -> list[tuple[Sequence[str], Reservation | None]]:
        """Return the requests to make, those of a killed run first and unchanged."""
        old = self.account.unsettled(kind, digests) if self._shape.charges_once else []
        taken = {digest for reservation in old for digest in reservation.items}
        new, size = [d for d in digests if d not in taken], self._pace.request_size
        return [
            *((reservation.items, reservation) for reservation in old),
            *((new[at : at + size], None) for at in range(0, len(new), size)),
        ]

    def _ask(
        self, kind: Kind, questions: Mapping[str, bytes], reservation: Reservation | None
    ) -> tuple[dict[str, Row], dict[str, str]]:
        """Ask one request, halved where the server refuses it; return answers and reasons."""
        answers: dict[str, Row] = {}
        reasons: dict[str, str] = {}
        waiting = [list(questions)]
        while waiting:
            part = waiting.pop(0)
            try:
                got = self._exchange(kind, {d: questions[d] for d in part}, kind, reservation)
            except Refused as refusal:
                half = len(part) // 2
                if half:
                    waiting[:0] = [part[:half], part[half:]]
                else:
                    reasons[part[0]] = str(refusal)
            except NoAnswer as failure:
                self._count_failure(failure)
                reasons.update(dict.fromkeys(part, str(failure)))
            else:
                self._failed_in_a_row = 0
                answers.update(got)
                rest = [digest for digest in part if digest not in got]
                waiting[:0] = [rest] if rest else []
            reservation = None
        return answers, reasons

    def _count_failure(self, failure: NoAnswer) -> None:
        with self._lock:
            self._failed_in_a_row += 1
            given_up = self._failed_in_a_row >= PATIENCE
        if given_up:
            raise AttarError(
                f"{self._address.url} left {PATIENCE} requests in a row without an answer "
                f"({failure}); what it answered is kept: run the same command again to go on"
            )

    def _exchange(
        self,
        kind: Kind,
        questions: Mapping[str, bytes],
        label: str,
        reservation: Reservation | None = None,
    ) -> dict[str, Row]:
        """Ask one request until it is answered; return answers for what the budget allowed."""
        request = _Request(self.account, label, list(questions), self._shape, reservation)

        def once() -> dict[str, Row]:
            held = request.reserve()
            asked = [questions[item] for item in held.items]
            document = request_document(self._address, self._shape, kind, asked)
            headers = {"Idempotency-Key": held.id}
            try:
                body = self._http.send(f"{self._address.url}/embeddings", document, headers)
                rows = read_embeddings(body, len(held.items), self.dim)
            except Again as again:
                request.failed(arrived=again.arrived)
                raise
            except BadAnswer as error:
                request.failed(arrived=True)
                raise Again(str(error)) from error
            except (Refused, UsageError):
                request.refused()
                raise
            got = dict(zip(held.items, rows, strict=True))
            self.account.paid(held, got if label == kind else {})
            return got

        try:
            return self._http.patiently(once)
        except (NoAnswer, Stopped):
            request.give_up()
            raise


class _Request:
    """What is recorded of one request while it is tried again and again.

    A service that charges a repeated request once keeps its reservation; with any other each
    attempt that may have arrived is a request of its own, and stays counted.
    """

    def __init__(
        self,
        account: Account,
        label: str,
        items: Sequence[str],
        shape: Shape,
        held: Reservation | None,
    ) -> None:
        self._account = account
        self._label = label
        self._items = items
        self._charges_once = shape.charges_once
        self._held = held
        self._arrived = held is not None

    def reserve(self) -> Reservation:
        if self._held is None:
            self._held = self._account.reserve(self._label, self._items)
        return self._held

    def failed(self, *, arrived: bool) -> None:
        if self._charges_once:
            self._arrived |= arrived
        elif arrived:
            self._held = None
        else:
            self.refused()

    def refused(self) -> None:
        """The server did nothing for this attempt; an earlier one may have arrived."""
        if self._held is not None and not self._arrived:
            self._account.released(self._held)
        self._held = None

    def give_up(self) -> None:
        if not self._arrived:
            self.refused()

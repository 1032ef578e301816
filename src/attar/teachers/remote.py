"""A teacher behind an address, paid by the query.

Every question is written down in an account (a store's ledger) before it is sent, every answer
before it is used; without an account nothing is asked. The model is known by its answers to a probe
image and a probe text: they are asked when a run begins and again before answers are committed.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from attar.errors import AttarError, UsageError
from attar.http import NoAnswer
from attar.teachers.base import TeacherInfo, Towers, Unanswered
from attar.teachers.loading import TeacherSpec
from attar.teachers.remote_address import Address, read_facts
from attar.teachers.remote_asking import (
    LAST_PROBE,
    PROBE,
    Account,
    Asker,
    Kind,
    Pace,
    Row,
    request_document,
)
from attar.teachers.remote_images import PROBE_TEXT, SendPrepare, encode_image, probe_image
from attar.teachers.remote_shapes import SHAPES

PROBE_COSINE = 0.999
"""Smallest cosine of two answers of one model to the same question."""


class TeacherChanged(AttarError):
    """The model behind the address is not the one that was asked before."""


class RemoteTeacher:
    """A teacher behind an address (the `Teacher` protocol, without towers)."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.facts = read_facts(address)
        self.shape = SHAPES[self.facts.shape]
        self.towers: Towers | None = None
        self.name = f"{address.url}#{address.model}"
        self._asker: Asker | None = None
        self._dim = self.facts.dim
        self._checked_for: set[str] = set()
        """The stores for which the model was compared with the one that they know."""
        self._unconfirmed: dict[Kind, set[str]] = {"image": set(), "text": set()}
        """Digests answered since the last commit, when the probe was asked."""

    def bind(self, account: Account, pace: Pace) -> None:
        """Let questions be asked, at the cost of an account."""
        self._asker = Asker(self.address, self.shape, account, pace)
        known = account.known_info()
        if self._dim is None and known is not None:
            self._dim = known.dim
        for row in account.probes().values():
            self._dim = self._dim or len(row)
        self._asker.dim = self._dim

    def unbind(self) -> None:
        """Let nothing be asked any more."""
        self._asker = None

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What may be asked."""
        return ("image", "text") if self.shape.images else ("text",)

    def probe_bytes(self, kind: Kind) -> int:
        """Return how many bytes the request with a probe sends."""
        return self.request_bytes(kind, [self._probe(kind)])

    @property
    def known_info(self) -> TeacherInfo | None:
        """Who the teacher is, as far as it can be said without asking it."""
        return None if self._dim is None else self.info_with(self._dim)

    @property
    def info(self) -> TeacherInfo:
        """Who the teacher is; a service that does not say its dimension is asked the probes."""
        if self._dim is None:
            self._check_model(self._open())
        return self.info_with(self._dim or 0)

    def info_with(self, dim: int) -> TeacherInfo:
        """Return who the teacher is if it answers with `dim` numbers."""
        prepared = {**asdict(self.facts.prepare), "format": self.address.format}
        what = [self.address.url, self.address.model, prepared, self.facts.identity]
        return TeacherInfo(
            name=self.name,
            identity=hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest(),
            dim=dim,
            logit_scale=self.facts.logit_scale,
            licence=self.facts.licence,
        )

    @property
    def prepare(self) -> SendPrepare:
        """Image -> uint8 [3, S, S], the pixels that are sent as PNG or JPEG; picklable."""
        if self.shape.images is None:
            raise UsageError(
                f"teacher {self.name} is asked in the shape {self.facts.shape}, which takes texts "
                "only; images need shape=infinity or jina"
            )
        return self.facts.prepare

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return float32 [N, D] for uint8 pixels [N, 3, S, S]; `Unanswered` keeps what it got."""
        return self._encode("image", [self.image_question(one) for one in pixels])

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return float32 [N, D]; `Unanswered` keeps what it got."""
        return self._encode("text", [text.encode() for text in texts])

    def digest(self, kind: Kind, question: bytes) -> str:
        """Return the name under which an account keeps the answer to a question."""
        return hashlib.sha256(kind.encode() + question).hexdigest()[:32]

    def image_question(self, pixels: Tensor) -> bytes:
        """Return the file that is sent for uint8 pixels [3, S, S]."""
        return encode_image(pixels, self.address.format)

    def request_bytes(self, kind: Kind, questions: Sequence[bytes]) -> int:
        """Return how many bytes a request with these questions sends."""
        document = request_document(self.address, self.shape, kind, questions)
        return len(json.dumps(document).encode())

    # A store's writer calls the next two, so that a shard holds only what one model said.

    def before_commit(self, kind: Kind) -> None:
        """Ask the probe again if anything was asked since; `TeacherChanged` drops the answers."""
        if not self._unconfirmed[kind]:
            return
        asker = self._open()
        try:
            self._check_probe(asker, kind, LAST_PROBE)
        except TeacherChanged:
            for digests in self._unconfirmed.values():
                asker.account.forget(list(digests))
                digests.clear()
            raise

    def after_commit(self, kind: Kind) -> None:
        """Let the account forget answers that are in a shard now."""
        self._open().account.forget(list(self._unconfirmed[kind]))
        self._unconfirmed[kind].clear()

    def _open(self) -> Asker:
        if self._asker is None:
            raise UsageError(
                f"teacher {self.name} is paid by the query: it answers into a store and nothing "
                "else may ask it; make one with attar embed, and give --store"
            )
        return self._asker

    def _encode(self, kind: Kind, questions: Sequence[bytes]) -> Tensor:
        asker = self._open()
        self._check_model(asker)
        digests = [self.digest(kind, one) for one in questions]
        todo = {
            digest: question
            for digest, question in zip(digests, questions, strict=True)
            if asker.account.answer(digest) is None
        }
        fresh, reasons, cause = asker.ask_all(kind, todo) if todo else ({}, {}, None)
        rows = np.full((len(digests), self._dim or 0), np.nan, np.float32)
        for at, digest in enumerate(digests):
            row = fresh.get(digest, asker.account.answer(digest))
            if row is not None:
                rows[at] = row
                self._unconfirmed[kind].add(digest)
        features = torch.from_numpy(rows)
        if cause is not None or reasons:
            places = {at: reasons[d] for at, d in enumerate(digests) if d in reasons}
            raise Unanswered(features, places, cause)
        return features

    def _check_model(self, asker: Asker) -> None:
        """Compare the model with the one that the store knows; the first time, meet it."""
        if asker.account.place not in self._checked_for:
            for kind in self.kinds:
                self._check_probe(asker, kind, PROBE)
            self._checked_for.add(asker.account.place)

    def _check_probe(self, asker: Asker, kind: Kind, which: str) -> None:
        known = asker.account.probes().get(kind)
        row = self._ask_probe(asker, kind, which)
        if known is None:
            again = self._ask_probe(asker, kind, which)
            if not _cosine(row, again) >= PROBE_COSINE:
                raise AttarError(
                    f"{self.name} gave two different answers to the same {kind} (cosine "
                    f"{_cosine(row, again):.4f}, {PROBE_COSINE} needed); it cannot be a teacher"
                )
            self._dim = asker.dim = self._dim or len(row)
            asker.account.keep_probe(kind, row)
        elif not _cosine(row, known) >= PROBE_COSINE:
            raise TeacherChanged(
                f"the model behind {self.name} has changed: its answer to the probe {kind} has "
                f"cosine {_cosine(row, known):.4f} with the first one ({PROBE_COSINE} needed); "
                "nothing it said since the last check was stored: embed into another store"
            )

    def _probe(self, kind: Kind) -> bytes:
        if kind == "text":
            return PROBE_TEXT.encode()
        return self.image_question(self.prepare(probe_image()))

    def _ask_probe(self, asker: Asker, kind: Kind, which: str) -> Row:
        try:
            return asker.ask_one(kind, f"{kind} {which}", self._probe(kind))
        except NoAnswer as error:
            raise AttarError(
                f"{self.name} gives no answer to the probe {kind}: {error}; run the same command "
                "again when it does"
            ) from error


def as_remote(teacher: object) -> RemoteTeacher | None:
    """Return the teacher if it is a remote one."""
    return teacher if isinstance(teacher, RemoteTeacher) else None


def _cosine(a: Row, b: Row) -> float:
    if a.shape != b.shape:
        return float("nan")
    x, y = a.astype(np.float64), b.astype(np.float64)
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


def load_remote(spec: TeacherSpec, device: torch.device) -> RemoteTeacher:
    """Meet the server; nothing that costs is asked."""
    return RemoteTeacher(Address.parse(spec.value))

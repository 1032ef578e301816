"""A teacher behind the endpoints of embedding services: keys, limits, quotas, batches, metrics."""

import asyncio
import base64
import hashlib
import logging
import socket
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.requests import ClientDisconnect
from torch import Tensor

from attar.errors import UsageError
from attar.serving.advice import find_prepare
from attar.serving.batches import Batcher, Rows
from attar.serving.config import ServeConfig
from attar.serving.keys import Client, QuotaSpent, Usage, find_client, read_keys
from attar.serving.questions import Questions, Refusal, read_questions
from attar.teachers.base import Teacher

log = logging.getLogger(__name__)

BACKLOG = 512
"""Clients that may wait to be let in."""
READERS = 2
"""Threads that decode and prepare images."""


class Server:
    """What the endpoints share: the teacher, its clients, and what they asked."""

    def __init__(
        self, teacher: Teacher, clients: Mapping[str, Client], config: ServeConfig
    ) -> None:
        self.teacher, self.clients, self.config = teacher, clients, config
        self.name = config.name or teacher.info.name
        self.usage = Usage(config.usage)
        self.advice = find_prepare(teacher.prepare)
        if self.advice is None:
            log.warning(
                "%s prepares images in a way of its own: what clients shrink before sending gives "
                "slightly other embeddings than here",
                self.name,
            )
        self.answered: Counter[int] = Counter()
        """HTTP status -> requests."""
        self.asked: Counter[str] = Counter()
        """"images" and "texts" -> queries answered, repeated ones among them."""
        self.calls: Counter[str] = Counter()
        """"calls" of the teacher and "items" in them."""
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="teacher")
        size = config.batch_size
        self._images = Batcher(self._encode_images, size, self._thread, self._count_call)
        self._texts = Batcher(self._encode_texts, size, self._thread, self._count_call)

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """Answer questions while the application runs."""
        tasks = [asyncio.create_task(one.run()) for one in (self._images, self._texts)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            self._readers.shutdown(cancel_futures=True)
            self._thread.shutdown(cancel_futures=True)
            self.usage.close()

    async def embeddings(self, request: Request) -> Response:
        """Answer images or texts with their embeddings."""
        client, body = await self._admit(request)
        loop = asyncio.get_running_loop()
        questions, prepared = await loop.run_in_executor(self._readers, self._read, body)
        # Bound to the body: another question under an old id is another request.
        given = request.headers.get("idempotency-key") or uuid.uuid4().hex
        charge = hashlib.sha256(given.encode() + b"\n" + body).hexdigest()
        try:
            is_new = self.usage.charge(client, charge, len(questions))
        except QuotaSpent as error:
            raise Refusal(402, str(error)) from error
        try:
            rows = await self._answer(questions, prepared)
        except BaseException:
            if is_new:
                self.usage.refund(client, charge, len(questions))
            raise
        self.asked.update(images=len(questions.images), texts=len(questions.texts))
        return JSONResponse(_reply(self.name, rows, questions.as_base64))

    async def models(self, request: Request) -> Response:
        """Say what is served."""
        self._client(request)
        info = self.teacher.info
        own = {
            "identity": info.identity,
            "dim": info.dim,
            "logit_scale": info.logit_scale,
            "licence": info.licence,
            "prepare": asdict(self.advice) if self.advice else None,
        }
        entry = {"id": self.name, "object": "model", "owned_by": "attar", "attar": own}
        return JSONResponse({"object": "list", "data": [entry]})

    async def usage_of(self, request: Request) -> Response:
        """Say what the key has asked."""
        client = self._client(request)
        document = {"name": client.name, "queries": self.usage.of(client), "quota": client.quota}
        return JSONResponse(document)

    async def metrics(self, request: Request) -> Response:
        """Return counters in Prometheus' text format."""
        self._client(request)
        lines = [f'attar_requests_total{{status="{s}"}} {n}' for s, n in self.answered.items()]
        lines += [f'attar_queries_total{{kind="{kind}"}} {n}' for kind, n in self.asked.items()]
        lines += [f"attar_teacher_{name}_total {n}" for name, n in self.calls.items()]
        lines += [
            f'attar_charged_queries_total{{client="{one.name}"}} {self.usage.of(one)}'
            for one in self.clients.values()
        ]
        return PlainTextResponse("\n".join(lines) + "\n")

    async def health(self, request: Request) -> Response:
        """Say that the server is up."""
        return PlainTextResponse("ok\n")

    async def _admit(self, request: Request) -> tuple[Client, bytes]:
        """Return whose request it is and its body; a refused client's body is read and dropped."""
        limit = int(self.config.max_body_mb * 1e6)
        client = find_client(self.clients, request.headers.get("authorization"))
        parts: list[bytes] = []
        length = 0
        try:
            async with asyncio.timeout(self.config.body_seconds):
                async for part in request.stream():
                    length += len(part)
                    if length > 4 * limit:
                        break
                    if client is not None and length <= limit:
                        parts.append(part)
        except ClientDisconnect:
            raise Refusal(400, "the request broke off") from None
        except TimeoutError:
            raise Refusal(408, "the request took too long to arrive") from None
        if client is None:
            raise _unknown_key()
        if length > limit:
            raise Refusal(413, f"the request has more than {limit:,} bytes")
        return client, b"".join(parts)

    def _client(self, request: Request) -> Client:
        client = find_client(self.clients, request.headers.get("authorization"))
        if client is None:
            raise _unknown_key()
        return client

    def _read(self, body: bytes) -> tuple[Questions, list[Tensor]]:
        questions = read_questions(body, self.name, self.config)
        return questions, [self.teacher.prepare(one) for one in questions.images.values()]

    async def _answer(self, questions: Questions, prepared: Sequence[Tensor]) -> Rows:
        """Return [n, D] in the order of the input."""
        rows = np.empty((len(questions), self.teacher.info.dim), np.float32)
        if questions.images:
            rows[list(questions.images)] = await self._images.ask(prepared)
        if questions.texts:
            rows[list(questions.texts)] = await self._texts.ask(list(questions.texts.values()))
        return rows

    def _encode_images(self, pixels: Sequence[Tensor]) -> Rows:
        with torch.inference_mode():
            features: Rows = self.teacher.encode_images(torch.stack(list(pixels))).cpu().numpy()
            return features

    def _encode_texts(self, texts: Sequence[str]) -> Rows:
        with torch.inference_mode():
            features: Rows = self.teacher.encode_texts(texts).cpu().numpy()
            return features

    def _count_call(self, size: int) -> None:
        self.calls.update(calls=1, items=size)


def _unknown_key() -> Refusal:
    return Refusal(401, "a key is missing or wrong: send Authorization: Bearer KEY")


def _reply(model: str, rows: Rows, as_base64: bool) -> dict[str, Any]:
    data = [
        {
            "object": "embedding",
            "index": place,
            "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode()
            if as_base64
            else row.tolist(),
        }
        for place, row in enumerate(rows)
    ]
    usage = {"prompt_tokens": 0, "total_tokens": 0, "queries": len(rows)}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def build_app(server: Server) -> FastAPI:
    """Return the application."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=server.running)

    async def refuse(request: Request, error: Refusal) -> Response:
        return JSONResponse({"error": {"message": str(error)}}, status_code=error.status)

    async def count(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        server.answered[response.status_code] += 1
        return response

    app.add_exception_handler(Refusal, refuse)
    app.middleware("http")(count)
    for path, endpoint, method in (
        ("/v1/embeddings", server.embeddings, "POST"),
        ("/v1/models", server.models, "GET"),
        ("/v1/usage", server.usage_of, "GET"),
        ("/metrics", server.metrics, "GET"),
        ("/health", server.health, "GET"),
    ):
        app.add_api_route(path, endpoint, methods=[method], response_model=None)
    return app


def serve(teacher: Teacher, config: ServeConfig) -> None:
    """Serve until interrupted."""
    server = Server(teacher, read_keys(config.keys), config)
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
        listener.listen(BACKLOG)  # what is announced next can be connected to
    except OSError as error:
        raise UsageError(
            f"cannot listen at {config.host}:{config.port} ({error.strerror}); choose another "
            "--host or --port"
        ) from error
    host = f"[{config.host}]" if ":" in config.host else config.host
    print(
        f"serving {teacher.info.name} as http://{host}:{listener.getsockname()[1]}/v1#{server.name}",
        flush=True,
    )
    options = uvicorn.Config(
        build_app(server), access_log=False, log_level="warning", backlog=BACKLOG
    )
    uvicorn.Server(options).run(sockets=[listener])

"""A proxy in front of a real server that makes everything go wrong that goes wrong on networks."""

import base64
import http.client
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import numpy as np

FAULTS = ("delay", "429", "500", "500-after", "half", "cut", "dimension", "nan", "reset", "lost")


class Proxy(ThreadingHTTPServer):
    """Passes on, unless `choose` names a fault for the next request for embeddings."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, upstream: str, choose: Callable[[], str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.choose = choose
        self.met: Counter[str] = Counter()
        self.bytes = 0
        self.poison: set[str] = set()
        """A request that holds one of these is refused with 400."""
        self.change = 0.0
        """How far the vendor's model has moved from the one behind."""
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no news."""


@contextmanager
def proxy(upstream: str, choose: Callable[[], str] = lambda: "") -> Iterator[Proxy]:
    server = Proxy(upstream, choose)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def sometimes(share: float, faults: Sequence[str] = FAULTS, seed: int = 0) -> Callable[[], str]:
    """Choose each fault once, in turn, then any of them for a share of the requests."""
    dice, first, lock = random.Random(seed), list(faults), threading.Lock()

    def choose() -> str:
        with lock:
            if dice.random() >= share:
                return ""
            return first.pop(0) if first else dice.choice(faults)

    return choose


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.send(*self.forward("GET", b""))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.bytes += len(body)
            fault = self.server.choose()
            self.server.met[fault] += 1
        if any(word in body.decode() for word in self.server.poison):
            self.send(400, b'{"error": {"message": "I do not like this picture"}}')
        elif fault == "429":
            self.send(429, b"slow down", Retry_After="0.1")
        elif fault == "500":
            self.send(500, b"oops")
        elif fault == "reset":
            self.reset()
        else:
            if fault == "delay":
                time.sleep(0.3)
            self.pass_on(fault, *self.forward("POST", body))

    def pass_on(self, fault: str, status: int, answer: bytes) -> None:
        if fault == "500-after":
            self.send(500, b"oops")
        elif fault == "lost":
            self.reset()
        elif fault == "half":
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer[: len(answer) // 2])
            self.close_connection = True
        elif fault == "cut":
            self.send(status, answer[: len(answer) // 2])
        elif status == 200:
            self.send(status, rewritten(answer, fault, self.server.change))
        else:
            self.send(status, answer)

    def forward(self, method: str, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.server.upstream, timeout=60)
        kept = ("authorization", "content-type", "idempotency-key")
        headers = {name: v for name, v in self.headers.items() if name.lower() in kept}
        connection.request(method, self.path, body or None, headers)
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        return response.status, answer

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def rewritten(answer: bytes, fault: str, change: float) -> bytes:
    """Return an answer with other numbers: one too few, a NaN, or those of another model."""
    document = json.loads(answer)
    for one in document["data"]:
        value = one["embedding"]
        if isinstance(value, str):
            row = np.frombuffer(base64.b64decode(value), "<f4").copy()
        else:
            row = np.array(value, np.float32)
        if change:
            row = (1 - change) * row + change * np.roll(row, 1)
        if fault == "nan":
            row[0] = np.nan
        if fault == "dimension":
            row = row[1:]
        if isinstance(value, str):
            one["embedding"] = base64.b64encode(row.tobytes()).decode()
        else:
            one["embedding"] = row.tolist()
    return json.dumps(document).encode()

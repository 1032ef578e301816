"""A small OpenAI-compatible chat server: real HTTP, with the mishaps that a test writes for it."""

import json
import re
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CLASS = re.compile(r"(?:shape|appearance) of (.+?)\.( |$)")
"""Finds the class in any of the paper's instructions."""


class ChatServer(ThreadingHTTPServer):
    """Counts what it is asked; per class a list of mishaps comes before the first answer."""

    daemon_threads = True

    def __init__(self, mishaps: Mapping[str, Sequence[str]], delay: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.delay = delay
        self.lock = threading.Lock()
        self.mishaps = defaultdict(list, {name: list(steps) for name, steps in mishaps.items()})
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.times: dict[str, list[float]] = defaultdict(list)
        self.keys: set[str | None] = set()
        self.prompts: set[str] = set()
        self.at_once = self.most_at_once = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no news."""


@contextmanager
def chat_server(
    mishaps: Mapping[str, Sequence[str]] | None = None, delay: float = 0.0
) -> Iterator[ChatServer]:
    server = ChatServer(mishaps or {}, delay)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def sentence(name: str) -> str:
    return f"The {name} is round."


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChatServer

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = document["messages"][-1]["content"]
        name = CLASS.search(prompt)[1]
        server = self.server
        with server.lock:
            server.asked[name] += 1
            server.times[name].append(time.monotonic())
            server.keys.add(self.headers["Authorization"])
            server.prompts.add(prompt)
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            steps = server.mishaps[name] or server.mishaps["*"]
            step = steps.pop(0) if steps else "answer"
            if steps is server.mishaps["*"]:
                steps.append(step)  # what befalls all befalls them for ever
        time.sleep(server.delay)
        with server.lock:  # before the answer, after which the client may ask again
            server.at_once -= 1
        getattr(self, f"do_{step.split(':')[0]}")(name, step.partition(":")[2])

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def say(self, content: str | None, reason: str = "stop") -> None:
        choice = {"message": {"role": "assistant", "content": content}, "finish_reason": reason}
        self.send(200, json.dumps({"object": "chat.completion", "choices": [choice]}).encode())

    def do_answer(self, name: str, content: str) -> None:
        with self.server.lock:
            self.server.answered[name] += 1
        self.say(content or sentence(name), "length" if content.endswith("…") else "stop")

    def do_empty(self, name: str, _: str) -> None:
        self.say(" . ")

    def do_status(self, name: str, status: str) -> None:
        body = json.dumps({"error": {"message": f"no luck with {name}"}}).encode()
        self.send(int(status), body)

    def do_wait(self, name: str, seconds: str) -> None:
        self.send(429, b"slow down", Retry_After=seconds)

    def do_broken(self, name: str, _: str) -> None:
        self.send(200, b'{"choices": [{"message": {"content": "The ')

    def do_other(self, name: str, _: str) -> None:
        self.send(200, b'{"answer": 42}')

    def do_drop(self, name: str, _: str) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def do_half(self, name: str, _: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b'{"choices": [')
        self.close_connection = True

    def do_sleep(self, name: str, seconds: str) -> None:
        time.sleep(float(seconds))
        self.say("too late")

    def do_redirect(self, name: str, where: str) -> None:
        self.send(302, b"", Location=where)

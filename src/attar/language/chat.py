"""Ask a language model behind an OpenAI-compatible chat endpoint, patiently and politely."""

import email.utils
import http.client
import json
import os
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from attar.errors import UsageError
from attar.language.config import DescribeConfig

KEY_VARIABLES = ("ATTAR_LLM_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the key, the first one set counts."""
LONGEST_BACKOFF = 60.0
"""Seconds."""
LONGEST_WAIT = 600.0
"""Seconds that a server may ask to wait; more is taken as a refusal."""

_STOP = {
    401: f"the key is missing or wrong: set {KEY_VARIABLES[0]} (or {KEY_VARIABLES[1]})",
    403: f"the key in {KEY_VARIABLES[0]} or {KEY_VARIABLES[1]} may not use this model",
    404: "check --endpoint (it usually ends in /v1) and --model",
}
"""HTTP status that every further request would get too -> the way out."""
_TRY_AGAIN = {408, 409, 425, 429}
"""HTTP status below 500 that passes by itself."""


class NoAnswer(Exception):
    """One question stays without an answer; the message is the reason."""


class Stopped(Exception):
    """The client was stopped before the question was asked (again)."""


class _Again(Exception):
    """This attempt failed, the next may not; `wait` is what the server asked for, in seconds."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a server sent with status 200."""

    body: Any
    """The JSON document, or the text where it is none."""
    text: str
    """The sentence without the model's thoughts, line breaks and quotes; "" when unusable."""
    problem: str = ""
    """Why it is unusable."""
    is_cut: bool = False
    """Whether the model stopped at its limit of tokens."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another address."""

    def redirect_request(self, *arguments: Any, **options: Any) -> None:
        """Follow nothing: the redirect is then an error with its status."""


class ChatClient:
    """Asks one question at a time in each of any number of threads.

    An attempt that meets status 429 or 5xx, a timeout, a dropped connection, broken JSON or an
    empty answer is made again after `backoff` · 2^n seconds (with jitter) or when the server's
    Retry-After says; all threads wait then.

    Raises:
        UsageError: the endpoint is no http(s) address, or no model is named.
    """

    def __init__(self, config: DescribeConfig) -> None:
        if not config.model:
            raise UsageError("no model is named: give --model NAME, as the endpoint knows it")
        address = urlsplit(config.endpoint)
        if address.scheme not in ("http", "https") or not address.hostname or address.username:
            raise UsageError(
                f"--endpoint {config.endpoint!r} should read http(s)://HOST:PORT/v1, without a key"
            )
        self._config = config
        self._url = config.endpoint.rstrip("/") + "/chat/completions"
        self._headers = {"Content-Type": "application/json", "User-Agent": "attar"}
        key = next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None)
        if key:
            self._headers["Authorization"] = f"Bearer {key.strip()}"
        handlers: list[Any] = [_NoRedirect()]
        if address.hostname in ("localhost", "127.0.0.1", "::1"):
            handlers.append(urllib.request.ProxyHandler({}))  # no proxy knows this machine
        self._opener = urllib.request.build_opener(*handlers)
        self._stop = threading.Event()
        self._not_before = 0.0
        self.retries = 0

    def stop(self) -> None:
        """Let no further request begin; those under way still bring their answer."""
        self._stop.set()

    def ask(self, prompt: str, keep: Callable[[Answer], None]) -> str:
        """Return the model's answer to one prompt; `keep` gets every answer that arrived at once.

        Raises:
            NoAnswer: every attempt failed, or the server refused this very question.
            UsageError: it would refuse every question (status 401, 403, 404 or a redirect).
            Stopped: `stop` was called.
        """
        attempts = self._config.attempts
        for attempt in range(attempts):
            self._wait_for_turn()
            try:
                answer = read_answer(self._post(prompt))
            except _Again as again:
                reason, wait = str(again), again.wait
            else:
                keep(answer)
                if answer.text:
                    return answer.text
                reason, wait = answer.problem, None
            if wait is not None and wait > LONGEST_WAIT:
                raise NoAnswer(f"{reason}, to be asked again in {wait:,.0f} s")
            if attempt + 1 < attempts:
                self._back_off(attempt, wait)
        raise NoAnswer(f"{reason} ({attempts} attempts)")

    def _wait_for_turn(self) -> None:
        while (left := self._not_before - time.monotonic()) > 0:
            self._sleep(left)
        if self._stop.is_set():
            raise Stopped

    def _back_off(self, attempt: int, wait: float | None) -> None:
        self.retries += 1
        delay = min(self._config.backoff * 2**attempt, LONGEST_BACKOFF)
        if wait is None:
            self._sleep(random.uniform(0.5, 1.0) * delay)
            return
        self._not_before = max(self._not_before, time.monotonic() + wait)
        # What was refused together should not come back together.
        self._sleep(wait + random.uniform(0, min(delay, self._config.backoff)))

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Stopped

    def _post(self, prompt: str) -> bytes:
        request = urllib.request.Request(
            self._url, data=json.dumps(self._payload(prompt)).encode(), headers=self._headers
        )
        deadline = time.monotonic() + self._config.timeout
        try:
            with self._opener.open(request, timeout=self._config.timeout) as response:
                return _read(response, deadline)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error) from error
        except (OSError, http.client.HTTPException) as error:
            raise _Again(_in_words(error)) from error

    def _payload(self, prompt: str) -> dict[str, Any]:
        optional = {
            "temperature": self._config.temperature,
            "max_tokens": self._config.max_tokens,
        }
        return {
            "model": self._config.model,
            "messages": [{"role": "user", "content": prompt}],
            "stream": False,
            **{name: value for name, value in optional.items() if value is not None},
        }

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        said = f"HTTP {error.code} {error.reason}".strip()
        detail = _error_message(error)
        said += f": {detail}" if detail else ""
        if error.code in _STOP:
            return UsageError(f"{self._url} answered {said}; {_STOP[error.code]}")
        if 300 <= error.code < 400:
            where = error.headers.get("Location", "elsewhere")
            return UsageError(f"{self._url} redirects to {where}; give that as --endpoint")
        if error.code in _TRY_AGAIN or error.code >= 500:
            return _Again(said, retry_after(error.headers.get("Retry-After")))
        return NoAnswer(said)


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """Read to the end; the socket's timeout alone would let a server drip for ever."""
    parts = []
    while part := response.read1():
        parts.append(part)
        if time.monotonic() > deadline:
            raise TimeoutError
    if response.length:
        raise ConnectionError(f"dropped {response.length:,} bytes before the end")
    return b"".join(parts)


def _in_words(error: Exception) -> str:
    cause = getattr(error, "reason", error)
    if isinstance(cause, TimeoutError):
        return "no answer in time"
    return f"connection failed: {cause or type(cause).__name__}"


def _error_message(error: urllib.error.HTTPError) -> str:
    """Return what the server says about an error, in one line of at most 200 characters."""
    try:
        raw = error.read(4000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return ""
    try:
        said = json.loads(raw)
        inner = said.get("error", said)
        raw = str(inner.get("message", inner) if isinstance(inner, dict) else inner)
    except (ValueError, AttributeError):
        pass
    return " ".join(raw.split())[:200]


def retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for (a number or a date), else None."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


_THOUGHT = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)


def read_answer(raw: bytes) -> Answer:
    """Read the body of a chat completion; what cannot be used says why in `problem`."""
    try:
        document = json.loads(raw)
    except ValueError:
        return Answer(body=raw.decode("utf-8", "replace"), text="", problem="broken JSON")
    try:
        choice = document["choices"][0]
        content = choice["message"]["content"]
        is_cut = choice.get("finish_reason") == "length"
    except (KeyError, IndexError, TypeError, AttributeError):
        return Answer(body=document, text="", problem="an answer of another form than chat")
    text = " ".join(_THOUGHT.sub(" ", content).split()) if isinstance(content, str) else ""
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].strip()
    if not has_words(text):
        return Answer(body=document, text="", problem="an empty answer", is_cut=is_cut)
    return Answer(body=document, text=text, is_cut=is_cut)


def has_words(text: str) -> bool:
    """Tell whether a text says anything: "." and "…" do not."""
    return any(character.isalnum() for character in text)

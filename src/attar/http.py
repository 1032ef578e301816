"""Ask a server over HTTP, patiently and politely: keys, retries, back-off and pace in one place."""

import email.utils
import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from attar.errors import UsageError

LONGEST_BACKOFF = 60.0
"""Seconds."""
LONGEST_WAIT = 600.0
"""Seconds that a server may ask to wait; more is taken as a refusal."""

_TRY_AGAIN = {408, 409, 425, 429}
"""HTTP status below 500 that passes by itself."""

Answer = TypeVar("Answer")


class NoAnswer(Exception):
    """One question stays without an answer; the message is the reason."""


class Refused(NoAnswer):
    """The server refused this very question, and did nothing for it."""


class Stopped(Exception):
    """The client was stopped before the question was asked (again)."""


class Again(Exception):
    """This attempt failed, the next may not.

    Args:
        reason: for a person.
        wait: what the server asked for, in seconds.
        arrived: whether the server may have done the work (and may bill it).
    """

    def __init__(self, reason: str, wait: float | None = None, *, arrived: bool = True) -> None:
        super().__init__(reason)
        self.wait = wait
        self.arrived = arrived


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another address."""

    def redirect_request(self, *arguments: Any, **options: Any) -> None:
        """Follow nothing: the redirect is then an error with its status."""


def check_address(url: str, option: str) -> None:
    """Refuse what is no plain http(s) address; keys do not belong into one.

    Raises:
        UsageError: names the option; the address is not repeated where it holds a password.
    """
    try:
        address = urlsplit(url)
        address.port  # noqa: B018  (raises for a port that is no number)
    except ValueError:
        raise UsageError(f"{option} {url!r} should read http(s)://HOST:PORT/v1") from None
    if address.username or address.password or address.query:
        raise UsageError(
            f"{option} should read http(s)://HOST:PORT/v1, without a key (it comes from the "
            "environment)"
        )
    if address.scheme not in ("http", "https") or not address.hostname:
        raise UsageError(f"{option} {url!r} should read http(s)://HOST:PORT/v1, without a key")


class HttpClient:
    """Asks one question at a time in each of any number of threads.

    Args:
        key_variables: environment variables that may hold the key, the first one set counts.
        way_out: HTTP status that every further request would get too -> what to do about it.
        redirect: what to do about a redirect.
        attempts: how often a question is asked at most.
        backoff: seconds before the second attempt; doubled each time, with jitter.
        timeout: seconds for one answer.
        rate: requests a second at most, None for no limit.
    """

    def __init__(
        self,
        *,
        key_variables: Sequence[str],
        way_out: Mapping[int, str],
        redirect: str,
        attempts: int,
        backoff: float,
        timeout: float,
        rate: float | None = None,
    ) -> None:
        self.retries = 0
        self.attempts, self.backoff, self.timeout, self.rate = attempts, backoff, timeout, rate
        self._way_out = way_out
        self._redirect = redirect
        self._headers = {"Content-Type": "application/json", "User-Agent": "attar"}
        key = next((os.environ[name] for name in key_variables if os.environ.get(name)), None)
        if key:
            self._headers["Authorization"] = f"Bearer {key.strip()}"
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._next_turn = 0.0

    def stop(self) -> None:
        """Let no further request begin; those under way still bring their answer."""
        self._stop.set()

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    def patiently(self, ask: Callable[[], Answer]) -> Answer:
        """Return what `ask` returns; each time it raises `Again` it is called again, later.

        Later is after `backoff` · 2^n seconds (with jitter) or when the server's Retry-After says;
        all threads wait then.

        Raises:
            NoAnswer: every attempt failed, or the server refused this very question (`Refused`).
            UsageError: it would refuse every question (a status in `way_out`, or a redirect).
            Stopped: `stop` was called.
        """
        for attempt in range(self.attempts):
            self._wait_for_turn()
            try:
                return ask()
            except Again as again:
                reason, wait = str(again), again.wait
            if wait is not None and wait > LONGEST_WAIT:
                raise NoAnswer(f"{reason}, to be asked again in {wait:,.0f} s")
            if attempt + 1 < self.attempts:
                self._back_off(attempt, wait)
        raise NoAnswer(f"{reason} ({self.attempts} attempts)")

    def send(
        self, url: str, document: Any = None, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Make one attempt (POST with a document, GET without); return the body of a 200.

        Raises:
            Again: status 429 or 5xx, a timeout, a dropped connection.
            Refused: another 4xx.
            UsageError: a status in `way_out`, or a redirect.
        """
        body = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(
            url, data=body, headers={**self._headers, **(headers or {})}
        )
        deadline = time.monotonic() + self.timeout
        try:
            with _opener(url).open(request, timeout=self.timeout) as response:
                return _read(response, deadline)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(url, error) from error
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", error)
            raise Again(_in_words(cause), arrived=not _never_left(cause)) from error

    def _wait_for_turn(self) -> None:
        while (left := self._not_before - time.monotonic()) > 0:
            self._sleep(left)
        if self.rate is not None:
            with self._lock:
                turn = max(time.monotonic(), self._next_turn)
                self._next_turn = turn + 1 / self.rate
            self._sleep(max(0.0, turn - time.monotonic()))
        if self._stop.is_set():
            raise Stopped

    def _back_off(self, attempt: int, wait: float | None) -> None:
        self.retries += 1
        delay = min(self.backoff * 2**attempt, LONGEST_BACKOFF)
        if wait is None:
            self._sleep(random.uniform(0.5, 1.0) * delay)
            return
        self._not_before = max(self._not_before, time.monotonic() + wait)
        # What was refused together should not come back together.
        self._sleep(wait + random.uniform(0, min(delay, self.backoff)))

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Stopped

    def _refusal(self, url: str, error: urllib.error.HTTPError) -> Exception:
        said = f"HTTP {error.code} {error.reason}".strip()
        detail = _error_message(error)
        said += f": {detail}" if detail else ""
        if error.code in self._way_out:
            return UsageError(f"{url} answered {said}; {self._way_out[error.code]}")
        if 300 <= error.code < 400:
            where = error.headers.get("Location", "elsewhere")
            return UsageError(f"{url} redirects to {where}; {self._redirect}")
        if error.code in _TRY_AGAIN or error.code >= 500:
            wait = retry_after(error.headers.get("Retry-After"))
            return Again(said, wait, arrived=error.code not in (425, 429))
        return Refused(said)


def _opener(url: str) -> urllib.request.OpenerDirector:
    handlers: list[Any] = [_NoRedirect()]
    if urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1"):
        handlers.append(urllib.request.ProxyHandler({}))  # no proxy knows this machine
    return urllib.request.build_opener(*handlers)


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


def _never_left(cause: object) -> bool:
    """Tell whether no connection was made at all (`gaierror`: the host's name is not known)."""
    return isinstance(cause, ConnectionRefusedError) or type(cause).__name__ == "gaierror"


def _in_words(cause: object) -> str:
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

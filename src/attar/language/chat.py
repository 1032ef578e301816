"""Ask a language model behind an OpenAI-compatible chat endpoint, patiently and politely."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from attar.errors import UsageError
from attar.http import Again, HttpClient, check_address
from attar.language.config import DescribeConfig

KEY_VARIABLES = ("ATTAR_LLM_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the key, the first one set counts."""

_WAY_OUT = {
    401: f"the key is missing or wrong: set {KEY_VARIABLES[0]} (or {KEY_VARIABLES[1]})",
    403: f"the key in {KEY_VARIABLES[0]} or {KEY_VARIABLES[1]} may not use this model",
    404: "check --endpoint (it usually ends in /v1) and --model",
}
"""HTTP status that every further request would get too -> the way out."""


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


class ChatClient:
    """Asks one question at a time in each of any number of threads (see `HttpClient`).

    Broken JSON and an empty answer are failed attempts too.

    Raises:
        UsageError: the endpoint is no http(s) address, or no model is named.
    """

    def __init__(self, config: DescribeConfig) -> None:
        if not config.model:
            raise UsageError("no model is named: give --model NAME, as the endpoint knows it")
        check_address(config.endpoint, "--endpoint")
        self._config = config
        self._url = config.endpoint.rstrip("/") + "/chat/completions"
        self._http = HttpClient(
            key_variables=KEY_VARIABLES,
            way_out=_WAY_OUT,
            redirect="give that as --endpoint",
            attempts=config.attempts,
            backoff=config.backoff,
            timeout=config.timeout,
        )

    @property
    def retries(self) -> int:
        """Attempts made again."""
        return self._http.retries

    def stop(self) -> None:
        """Let no further request begin; those under way still bring their answer."""
        self._http.stop()

    def ask(self, prompt: str, keep: Callable[[Answer], None]) -> str:
        """Return the model's answer to one prompt; `keep` gets every answer that arrived at once.

        Raises:
            NoAnswer: every attempt failed, or the server refused this very question.
            UsageError: it would refuse every question (status 401, 403, 404 or a redirect).
            Stopped: `stop` was called.
        """

        def once() -> str:
            answer = read_answer(self._http.send(self._url, self._payload(prompt)))
            keep(answer)
            if not answer.text:
                raise Again(answer.problem)
            return answer.text

        return self._http.patiently(once)

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

"""A remote teacher's address, `https://HOST/v1#MODEL?shape=…`, and what its server says of it."""

import json
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from attar.errors import UsageError, unknown_name
from attar.http import Again, HttpClient, NoAnswer, check_address
from attar.teachers.loading import TeacherSpec
from attar.teachers.remote_images import FITS, INTERPOLATIONS, MEDIA, SendPrepare
from attar.teachers.remote_shapes import SHAPES

KEY_VARIABLES = ("ATTAR_TEACHER_API_KEY",)
"""The environment variable that holds the key; there is no other place for it."""
WAY_OUT = {
    401: f"the key is missing or wrong: set {KEY_VARIABLES[0]}",
    402: "the key's quota is spent; ask those who gave it for more, then run the same command",
    403: f"the key in {KEY_VARIABLES[0]} may not use this model",
    404: "check the address (it usually ends in /v1) and the model after '#'",
}
"""HTTP status that every further request would get too -> the way out."""
REDIRECT = "give that address in --teacher"
EXAMPLE = "https://HOST/v1#MODEL, or https://HOST/v1#MODEL?shape=jina&size=336"
CLIP_SCALE = 100.0
"""The logit scale of nearly every CLIP; a service does not say its own."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """What a spec says."""

    url: str
    model: str
    shape: str | None = None
    """A key of `SHAPES`; None: asked of the server."""
    size: int | None = None
    fit: str | None = None
    interpolation: str | None = None
    format: str = "png"
    scale: float | None = None

    @classmethod
    def parse(cls, spec: str) -> "Address":
        """Read a spec; UsageError for wrong use. Nothing is asked."""
        url, _, rest = spec.partition("#")
        model, _, options = rest.partition("?")
        check_address(url, "--teacher")
        if not model:
            raise UsageError(f"teacher {spec!r} names no model; write {EXAMPLE}")
        known = [one.name for one in fields(cls) if one.name not in ("url", "model")]
        given: dict[str, Any] = {}
        for name, value in parse_qsl(options, keep_blank_values=True):
            if name not in known:
                raise unknown_name("option of a remote teacher", name, known)
            given[name] = _read_option(spec, name, value)
        return cls(url=url.rstrip("/"), model=model, **given)


def _read_option(spec: str, name: str, value: str) -> Any:
    choices: dict[str, Any] = {
        "shape": SHAPES,
        "fit": FITS,
        "interpolation": INTERPOLATIONS,
        "format": MEDIA,
    }
    if name in choices:
        if value not in choices[name]:
            raise unknown_name(f"{name} of a remote teacher", value, choices[name])
        return value
    try:
        number = int(value) if name == "size" else float(value)
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        raise UsageError(f"teacher {spec!r}: {name} {value!r} should be a number above 0")
    return number


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a remote teacher before it is asked anything that costs."""

    shape: str
    prepare: SendPrepare
    dim: int | None = None
    logit_scale: float = CLIP_SCALE
    identity: str | None = None
    """What an attar server says of its teacher's weights and preprocessing."""
    licence: str | None = None


def check_remote(spec: str) -> TeacherSpec:
    """Check the form of an address; nothing is asked."""
    Address.parse(spec)
    return TeacherSpec(kind="remote", value=spec, name=spec)


def read_facts(address: Address) -> Facts:
    """Ask the server's list of models, which costs nothing, for what the spec leaves open.

    Raises:
        UsageError: the server refuses, cannot be reached, or the shape is not known.
    """
    document = _models(address)
    entries = document.get("data", []) if isinstance(document, dict) else []
    entries = [one for one in entries if isinstance(one, dict)]
    own = next((one.get("attar") for one in entries if one.get("id") == address.model), None)
    own = own if isinstance(own, dict) else {}
    shape = address.shape or _guess_shape(address, entries)
    names = sorted(str(one.get("id")) for one in entries)
    # infinity with one model answers for any name, so a misspelt one would pass for a teacher.
    unlisted = "infinity" in _owners(entries) and address.model not in names
    if unlisted or (shape == "attar" and not own):
        raise UsageError(
            f"{address.url} serves no model {address.model!r}; it serves: "
            f"{', '.join(names) or 'none'}"
        )
    advised = own.get("prepare") or {}
    return Facts(
        shape=shape,
        prepare=SendPrepare(
            size=address.size or int(advised.get("size", SendPrepare.size)),
            fit=address.fit or str(advised.get("fit", SendPrepare.fit)),
            interpolation=address.interpolation
            or str(advised.get("interpolation", SendPrepare.interpolation)),
        ),
        dim=int(own["dim"]) if own else None,
        logit_scale=address.scale or float(own.get("logit_scale", CLIP_SCALE)),
        identity=str(own["identity"]) if own else None,
        licence=own.get("licence"),
    )


def _models(address: Address) -> Any:
    client = HttpClient(
        key_variables=KEY_VARIABLES,
        way_out={status: way for status, way in WAY_OUT.items() if status != 404},
        redirect=REDIRECT,
        attempts=4,
        backoff=0.5,
        timeout=30.0,
    )

    def once() -> Any:
        body = client.send(f"{address.url}/models")
        try:
            return json.loads(body)
        except ValueError:
            raise Again("broken JSON") from None

    try:
        return client.patiently(once)
    except NoAnswer as error:
        if address.shape not in (None, "attar"):
            return {}  # a service need not list its models
        raise UsageError(
            f"{address.url}/models gives no answer ({error}); check the address, or say how the "
            f"service is asked: #{address.model}?shape=infinity, jina or openai"
        ) from error


def _owners(entries: list[dict[str, Any]]) -> set[str]:
    return {str(one.get("owned_by")) for one in entries}


def _guess_shape(address: Address, entries: list[dict[str, Any]]) -> str:
    owners = _owners(entries)
    host = urlsplit(address.url).hostname or ""
    if "attar" in owners or "infinity" in owners:
        return "attar" if "attar" in owners else "infinity"
    if host == "jina.ai" or host.endswith(".jina.ai"):
        return "jina"
    raise UsageError(
        f"how {address.url} wants to be asked is not known; say it: "
        f"#{address.model}?shape={', '.join(sorted(SHAPES))}"
    )

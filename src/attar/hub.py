"""The Hugging Face hub, when there may be no way to it."""

import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

_SECONDS_TO_CONNECT = 4.0


@contextmanager
def cache_alone_without_hub() -> Iterator[None]:
    """Within the block hub libraries read their cache at once if the hub cannot be reached.

    Left to themselves they try for half a minute a file, whether it is in the cache or not.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = not hub_may_answer()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def hub_may_answer() -> bool:
    """Tell whether asking the hub makes sense: nobody forbade it, and something listens there."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and _can_connect(constants.ENDPOINT)


def _can_connect(endpoint: str) -> bool:
    """Tell whether something listens there; behind a proxy only a real request could tell."""
    if urllib.request.getproxies():
        return True
    parts = urlsplit(endpoint)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((parts.hostname or "", port), _SECONDS_TO_CONNECT).close()
    except OSError:
        return False
    return True

"""Without a way to the hub its libraries read their cache at once."""

import socket

import pytest
from huggingface_hub import constants

from attar.hub import cache_alone_without_hub


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_a_hub_that_answers_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        with cache_alone_without_hub():
            assert not constants.is_offline_mode()


def test_without_a_hub_the_cache_is_used_for_the_while(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    with cache_alone_without_hub():
        assert constants.is_offline_mode()
    assert not constants.is_offline_mode()


def test_behind_a_proxy_only_a_request_can_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://no-such-host.invalid")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with cache_alone_without_hub():
        assert not constants.is_offline_mode()


def test_who_is_offline_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with cache_alone_without_hub():
        assert constants.is_offline_mode()
    assert constants.is_offline_mode()

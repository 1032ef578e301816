"""A teacher on disk, the same teacher behind a real server, and keys for its clients."""

import http.client
import json
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from tests.doubles import make_openclip_folder, random_image
from tests.store.samples import table_of

from attar.data.table import ImageTable
from attar.serving.config import ServeConfig
from attar.serving.keys import read_keys
from attar.teachers.base import Teacher
from attar.teachers.openclip import check_folder, load_openclip

CLIENTS = 200
QUOTA = 10


@dataclass(frozen=True)
class Client:
    """A key, and what the server counted for it."""

    url: str
    key: str

    def get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=30)
        connection.request("GET", path, headers={"Authorization": f"Bearer {self.key}"})
        response = connection.getresponse()
        assert response.status == 200
        return response.read()

    @property
    def queries(self) -> int:
        return json.loads(self.get("/v1/usage"))["queries"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_openclip_folder(
        tmp_path_factory.mktemp("remote") / "teacher", embed_dim=32, image_size=32
    )


@pytest.fixture(scope="session")
def local(folder: Path) -> Teacher:
    return load_openclip(check_folder(str(folder)), torch.device("cpu"))


@pytest.fixture(scope="session")
def served(
    local: Teacher, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, list[str]]]:
    """The address of a server, and its unused keys; the last one has a quota."""
    pytest.importorskip("fastapi")
    uvicorn = pytest.importorskip("uvicorn")
    from attar.serving.app import Server, build_app

    place = tmp_path_factory.mktemp("server")
    keys = [secrets.token_urlsafe(24) for _ in range(CLIENTS + 1)]
    lines = [f"client-{number} {key}" for number, key in enumerate(keys[:-1])]
    (place / "keys.txt").write_text("\n".join([*lines, f"poor {keys[-1]} {QUOTA}"]))
    config = ServeConfig(
        keys=place / "keys.txt",
        name="tiny",
        usage=place / "usage.sqlite",
        max_body_mb=2,
        max_pixels=1_000_000,
        max_items=64,
    )
    app = build_app(Server(local, read_keys(config.keys), config))
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    server = uvicorn.Server(uvicorn.Config(app, access_log=False, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", keys
    server.should_exit = True
    thread.join()
    listener.close()


@pytest.fixture
def client(served: tuple[str, list], monkeypatch: pytest.MonkeyPatch) -> Client:
    """A client that nobody else is."""
    url, keys = served
    one = Client(url, keys.pop(0))
    monkeypatch.setenv("ATTAR_TEACHER_API_KEY", one.key)
    return one


@pytest.fixture
def make_images(tmp_path: Path) -> Callable[..., ImageTable]:
    def make(count: int, root: str = "images", first_seed: int = 0) -> ImageTable:
        names = [f"{number:03}.png" for number in range(count)]
        for number, name in enumerate(names):
            (tmp_path / root).mkdir(exist_ok=True)
            random_image(first_seed + number, (48 + number % 9, 40)).save(tmp_path / root / name)
        return table_of(tmp_path / root, names)

    return make

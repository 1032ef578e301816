"""infinity-emb's answers, as its version 0.0.78 gives them (`scripts/infinity_parity.py` runs it).

Only the model behind them is a stand-in: the local teacher.
"""

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from attar.data.images import read_image
from attar.errors import UsageError
from attar.store.config import EmbedConfig
from attar.store.embed import SET_ASIDE, embed_images, embed_texts
from attar.store.ledger import Ledger
from attar.store.store import Store
from attar.teachers.base import Teacher
from attar.teachers.registry import load_teacher

CONFIG = EmbedConfig(workers=0, dtype="float32", request_size=3, parallel=2, backoff=0.01)
TEXTS = ["a photo of a dog", "  two   spaces ", "naïve café 🐎"]
MODELS = {
    "data": [
        {
            "id": "tiny",
            "stats": {
                "queue_fraction": 0.0,
                "queue_absolute": 0,
                "results_pending": 0,
                "batch_size": 32,
            },
            "object": "model",
            "owned_by": "infinity",
            "created": 1795351649,
            "backend": "torch",
            "capabilities": ["embed", "image_embed"],
        }
    ],
    "object": "list",
}
NO_IMAGE = {
    "error": {
        "message": "<class 'infinity_emb.primitives.ImageCorruption'> -> error decoding data URI: "
        "cannot identify image file <_io.BytesIO object at 0x7fb9a7015530>",
        "type": None,
        "param": None,
        "code": 400,
    }
}


class Infinity(ThreadingHTTPServer):
    """Answers at the root, for any model's name, in any order of requests."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.teacher = teacher
        self.queries = 0
        self.refused: set[bytes] = set()
        """Files that it cannot open."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def embed(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        inputs = asked["input"]
        if asked["modality"] == "text":
            features = self.teacher.encode_texts([text.strip() for text in inputs])
        else:
            files = [base64.b64decode(one.split("base64,")[1]) for one in inputs]
            if self.refused.intersection(files):
                return 400, NO_IMAGE
            pixels = [self.teacher.prepare(Image.open(io.BytesIO(one))) for one in files]
            features = self.teacher.encode_images(torch.stack(pixels))
        self.queries += len(inputs)
        rows = F.normalize(features, dim=1).tolist()
        return 200, {
            "object": "list",
            "data": [
                {"object": "embedding", "embedding": row, "index": index}
                for index, row in enumerate(rows)
            ],
            "model": "tiny",
            "usage": {"prompt_tokens": 269 * len(rows), "total_tokens": 269 * len(rows)},
            "id": "infinity-ddc32177-7f21-4120-83c9-0fa0e2e59e7d",
            "created": 1795351670,
        }


class _Handler(BaseHTTPRequestHandler):
    server: Infinity

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer(*((200, MODELS) if self.path == "/models" else (404, {"detail": "Not Found"})))

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(*self.server.embed(asked))

    def _answer(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def infinity(local: Teacher) -> Iterator[Infinity]:
    server = Infinity(local)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def spec(server: Infinity) -> str:
    return f"{server.url}#tiny?size=32&interpolation=bilinear"


def test_its_address_and_the_models_name_are_enough(
    infinity: Infinity, local: Teacher, make_images: Callable, tmp_path: Path
) -> None:
    table, teacher = make_images(8), load_teacher(spec(infinity))
    embed_images(teacher, table, tmp_path / "store", CONFIG)
    embed_texts(teacher, TEXTS, tmp_path / "store", CONFIG)
    store, ledger = Store.open(tmp_path / "store"), Ledger(tmp_path / "store")
    pixels = torch.stack([local.prepare(read_image(path)) for path in table.paths])
    for got, want in (
        (store.image_features(store.image_rows(table.keys)), local.encode_images(pixels)),
        (store.text_features(TEXTS), local.encode_texts(TEXTS)),
    ):
        np.testing.assert_allclose(got, F.normalize(want, dim=1).numpy(), atol=1e-5)
    assert (ledger.paid_queries, ledger.unsure) == (infinity.queries, 0)


def test_a_name_that_it_does_not_list_is_refused_though_it_would_answer(
    infinity: Infinity,
) -> None:
    for options in ("", "?shape=infinity"):
        with pytest.raises(UsageError, match="serves no model 'tinny'; it serves: tiny"):
            load_teacher(f"{infinity.url}#tinny{options}")
    assert infinity.queries == 0


def test_what_it_refuses_is_named_in_its_words(
    infinity: Infinity, make_images: Callable, tmp_path: Path
) -> None:
    table, teacher = make_images(8), load_teacher(spec(infinity))
    pixels = teacher.prepare(read_image(table.paths[4]))
    infinity.refused.add(teacher.image_question(pixels))
    embed_images(teacher, table, tmp_path / "store", CONFIG)
    (entry,) = json.loads((tmp_path / "store" / SET_ASIDE).read_text())
    assert entry["path"] == table.paths[4]
    assert "HTTP 400" in entry["reason"]
    assert "cannot identify image file" in entry["reason"]
    assert Ledger(tmp_path / "store").paid_queries == infinity.queries == 7 + 4 + 1

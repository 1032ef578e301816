"""Starting weights from a hub: a real client asks a small server that answers as the hub does."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
from safetensors.torch import load_file, save_file

FILE = "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
BUILD = """
import logging, sys
from safetensors.torch import save_file
from attar.students.config import StudentConfig
from attar.students.student import build_student
logging.basicConfig(stream=sys.stdout, format="%(message)s")
student = build_student("test_resnet", 8, StudentConfig(weights=sys.argv[1]))
save_file(student.network.state_dict(), sys.argv[2])
print(student.spec.weights)
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("hub") / "model.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), file)
    return file


@pytest.fixture
def hub(weights: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub with one file, and the paths that were asked of it."""
    asked: list[str] = []
    content = weights.read_bytes()

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            found = self.path == FILE
            self.send_response(200 if found else 404)
            if found:
                self.send_header("ETag", '"1"')
                self.send_header("X-Repo-Commit", "c" * 40)
            else:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", str(len(content) if found else 0))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            if self.path == FILE:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def build(folder: Path, weights: str = "auto", **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment |= {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "0", **settings}
    words = [sys.executable, "-c", BUILD, weights, str(folder / "built.safetensors")]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)


def is_from(built: Path, weights: Path) -> bool:
    ours, theirs = load_file(built), load_file(weights)
    return all(bool((ours[name] == theirs[name]).all()) for name in ours if "fc" not in name)


def test_auto_fetches_once(hub: tuple[str, list[str]], weights: Path, tmp_path: Path) -> None:
    address, asked = hub
    first = build(tmp_path, HF_ENDPOINT=address)
    assert first.stdout.strip() == "hub, timm/test_resnet.r160_in1k", first.stderr
    assert is_from(tmp_path / "built.safetensors", weights)
    assert FILE in asked
    again = build(tmp_path, HF_HUB_OFFLINE="1")
    assert again.stdout.strip() == "local cache of timm/test_resnet.r160_in1k", again.stderr
    assert is_from(tmp_path / "built.safetensors", weights)


def test_without_a_hub_it_starts_from_scratch_and_says_so(weights: Path, tmp_path: Path) -> None:
    done = build(tmp_path, HF_ENDPOINT="http://127.0.0.1:9")  # where nothing listens
    warning, origin = done.stdout.splitlines()
    assert "no weights for test_resnet" in warning
    assert "give --student.weights FILE, or go online" in warning
    assert origin == "none"
    assert not is_from(tmp_path / "built.safetensors", weights)


def test_a_hub_that_answers_and_lacks_the_file_is_an_error(
    hub: tuple[str, list[str]], tmp_path: Path
) -> None:
    """One cell of a grid must not start from scratch where the others do not."""
    done = build(tmp_path, HF_ENDPOINT=f"{hub[0]}/elsewhere")
    assert done.returncode == 1
    assert "cannot fetch timm's weights of test_resnet" in done.stderr
    assert "--student.weights none" in done.stderr

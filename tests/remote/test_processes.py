"""`attar serve-teacher` in one process, `attar embed` in others, a bad network between them."""

import json
import os
import secrets
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.cli.processes import command, wait_until
from tests.remote.conftest import Client
from tests.remote.proxy import proxy, sometimes
from tests.remote.test_remote_embed import paid

from attar.cli.main import main
from attar.data.table import ImageTable
from attar.store.ledger import ANSWERS, LEDGER, Ledger
from attar.store.store import Store

IMAGES = 60


@pytest.fixture
def vendor(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    place = tmp_path / "vendor"
    place.mkdir()
    key = secrets.token_urlsafe(24)
    (place / "keys.txt").write_text(f"ann {key}\n")
    words = ["serve-teacher", "--teacher", f"local-dir:{folder}", "--name", "tiny", "--port", "0"]
    words += ["--keys", place / "keys.txt", "--usage", place / "usage.sqlite"]
    monkeypatch.setenv("ATTAR_TEACHER_API_KEY", key)
    with command(*words, folder=place) as process:
        wait_until(lambda: "serving" in (place / "out").read_text(), process)
        yield Client((place / "out").read_text().split(" as ")[1].partition("#")[0], key)
        assert process.poll() is None
        (place / "keys.txt").unlink()


def options(url: str, table: ImageTable, store: Path) -> list[str]:
    images = Path(table.paths[0]).parent
    words = ["embed", f"--data={images}", f"--teacher={url}#tiny", f"--out={store}"]
    words += ["--workers=0", "--batch-size=16", "--request-size=4", "--parallel=2"]
    return [*words, "--backoff=0.01", "--attempts=8", f"--classes={images.parent / 'classes.txt'}"]


def test_killed_between_answer_and_commit_nothing_is_paid_twice(
    vendor: Client, make_images: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, store = make_images(IMAGES), tmp_path / "store"
    (tmp_path / "classes.txt").write_text("cat\ndog\nhorse\n")
    with proxy(vendor.url, sometimes(0.3, seed=4)) as between:
        words = options(between.url, table, store)
        with pytest.raises(SystemExit) as dry:
            main([*words, "--dry-run", "--price=0.01"])
        assert dry.value.code == 0
        said = capsys.readouterr().out
        assert between.bytes == 0
        assert not store.exists()

        with command(*words, folder=tmp_path / "killed") as process:
            wait_until(lambda: len(list((store / ANSWERS).glob("[!.]*.npz"))) >= 6, process)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        assert Store.open(store).num_images == 0
        held = Ledger(store)
        assert held.paid_queries <= vendor.queries <= held.asked

        asked_before = len(paid(store, "image"))
        assert asked_before >= 24
        with pytest.raises(SystemExit) as run:
            main(words)
        assert run.value.code == 0
    assert Store.open(store).has_images(table.keys).all()
    assert Store.open(store).num_texts == 3
    ledger = Ledger(store)
    assert (ledger.paid_queries, ledger.unsure) == (vendor.queries, 0)
    images = Counter(paid(store, "image"))
    assert len(images) == IMAGES
    assert set(images.values()) == {1}
    # The first run's probes were paid before it was killed; the second asked them once more.
    assert f"{vendor.queries - 2} queries ({IMAGES} images, 3 texts" in said
    assert f", {(vendor.queries - 2) * 0.01:,.4g} at 0.01 a query" in said
    assert not list((store / ANSWERS).iterdir())
    shown = capsys.readouterr()
    assert "paid" in shown.err
    assert_nowhere(vendor.key, tmp_path, said + shown.out + shown.err)


def assert_nowhere(key: str, folder: Path, shown: str) -> None:
    assert key not in shown
    """Look for the key in all that the client wrote; the server's own folder holds its keys."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "keys.txt"]
    assert folder / "store" / LEDGER in files
    for path in files:
        assert key.encode() not in path.read_bytes(), f"the key is in {path}"


def test_two_commands_on_one_store_stay_within_the_budget(
    client: Client, make_images: Callable, tmp_path: Path
) -> None:
    table, store = make_images(40), tmp_path / "store"
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    words = [*options(client.url, table, store), "--budget=21"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "attar", *words],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate()[1] for process in both]
    assert all(process.returncode in (1, 2) for process in both), said
    assert any("budget of 21 queries is spent" in text for text in said), said
    ledger = Ledger(store)
    assert client.queries == ledger.asked <= 21
    assert json.loads((store / "store.json").read_text())["counts"]["image_rows"] > 0


def test_a_wrong_key_stops_the_command_and_is_not_shown(
    client: Client,
    make_images: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = make_images(2)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    monkeypatch.setenv("ATTAR_TEACHER_API_KEY", "a-wrong-but-secret-key")
    with pytest.raises(SystemExit) as stopped:
        main(options(client.url, table, tmp_path / "store"))
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert "the key is missing or wrong: set ATTAR_TEACHER_API_KEY" in shown
    assert "a-wrong-but-secret-key" not in shown


def test_serving_what_is_served_already_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    (tmp_path / "keys.txt").write_text("ann secretsecretsecret\n")
    with pytest.raises(SystemExit) as stopped:
        main(["serve-teacher", "--teacher=http://h/v1#m", f"--keys={tmp_path / 'keys.txt'}"])
    assert stopped.value.code == 2
    assert "is served already" in capsys.readouterr().err

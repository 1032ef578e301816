"""infinity-emb, another project's server, gives attar's client what attar's own teacher says.

    python scripts/infinity_parity.py --out DIR

DIR gets an environment with infinity-emb (several gigabytes, made once; it wants older libraries
than attar), a CLIP with random weights and emoji. One process serves that CLIP, another asks it by
`attar embed --teacher http://…`, a third asks the same folder as `hf:DIR/clip`. Prints one JSON
line: the largest differences of unit embeddings, and what the ledger and the server counted. Exit
status 1 when a difference is too large, when the counts differ, or when different inputs have
embeddings so alike that equality would say little.
"""

import argparse
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from tests.doubles import clip_tokenizer  # noqa: E402

from attar.data.emoji import extract_emoji  # noqa: E402
from attar.data.images import read_image  # noqa: E402
from attar.errors import AttarError  # noqa: E402
from attar.stages.sentences import texts_of  # noqa: E402
from attar.store.ledger import LEDGER, Ledger  # noqa: E402
from attar.store.store import Store  # noqa: E402
from attar.teachers.registry import load_teacher  # noqa: E402
from attar.teachers.remote_images import encode_image  # noqa: E402

REQUIREMENTS = (
    "infinity-emb[server,torch,vision]==0.0.78",
    "aiohttp==3.14.5",  # images need it, though no extra brings it
    "torch==2.14.1",
    "torchvision==0.29.1",
    # What pip finds for these by itself, after minutes of trying others.
    "transformers==4.47.1",
    "colpali-engine==0.3.8",
)
OFFLINE = {
    "PYTHONPATH": "",  # nothing of this process's environment
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
}
MODEL = "small-clip"
SIDE, CONTEXT, WIDTH = 48, 77, 64
"""Of the CLIP: pixels of its square, tokens of its texts, numbers of an embedding."""
SENTENCES = (
    "a photo of a dog",
    "A drawing of a RED apple,   with a leaf!",
    "naïve café ☕ 你好",
    "x",
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty twenty-one twenty-two twenty-three",
    "word " * 100,  # more than the context: both cut it
)
LARGEST, LARGEST_AS_SENT = 2e-4, 1e-5
"""Differences of a component of unit embeddings: with both sides' own resizing, and without it."""
START_SECONDS = 300.0


def make_environment(folder: Path) -> Path:
    """Install infinity-emb where it is not yet; return the folder with its programs."""
    venv.create(folder, symlinks=True, with_pip=True)
    programs = folder / "bin"
    call([str(programs / "python"), "-m", "pip", "install", "--quiet", *REQUIREMENTS], OFFLINE)
    return programs


def make_clip(folder: Path) -> None:
    """Save a CLIP with random weights, its tokenizer and its image processor."""
    import torch
    import transformers

    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    tokens = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config={
            **tower,
            **tokens,
            "vocab_size": 49408,
            "max_position_embeddings": CONTEXT,
        },
        vision_config={**tower, "image_size": SIDE, "patch_size": 16},
        projection_dim=WIDTH,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    ).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    # Without it infinity cuts texts after 20 tokens, a default of transformers 4.
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "max_length": CONTEXT}))


def call(words: Sequence[str], environment: dict[str, str]) -> None:
    """Run a command; what it said is shown when it fails."""
    done = subprocess.run(
        words, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise AttarError(f"{' '.join(words[:4])} failed: {done.stderr.strip()[-2000:]}")


def embed(teacher: str, out: Path, *words: str) -> None:
    """Ask a teacher into a store of float32, where rounding hides nothing."""
    options = ("--teacher", teacher, "--out", str(out), "--dtype", "float32", "--workers", "0")
    call(
        [sys.executable, "-m", "attar", "embed", *words, *options],
        {"PYTHONPATH": str(ROOT / "src")},
    )


@contextmanager
def serving(programs: Path, clip: Path, log: Path) -> Iterator[str]:
    """Run infinity's server; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = {
        "--model-id": str(clip),
        "--served-model-name": MODEL,
        "--engine": "torch",
        "--device": "cpu",
        "--dtype": "float32",
        "--host": "127.0.0.1",
        "--port": str(port),
    }
    words = [str(programs / "infinity_emb"), "v2", "--no-bettertransformer"]
    words += [word for pair in options.items() for word in pair]
    with log.open("w") as said:
        server = subprocess.Popen(
            words, env={**os.environ, **OFFLINE}, stdout=said, stderr=subprocess.STDOUT
        )
    try:
        _wait_for(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def _wait_for(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise AttarError(f"the server does not start; {log} ends: {log.read_text()[-2000:]}")


def requests_counted(url: str) -> int:
    """Return how many requests for embeddings the server says that it answered."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    counter = 'http_requests_total{handler="/embeddings",method="POST",status="2xx"} '
    return sum(int(float(line.removeprefix(counter))) for line in lines if line.startswith(counter))


def requests_paid(store: Path) -> int:
    """Return how many requests the ledger says were answered."""
    lines = (store / LEDGER).read_text().splitlines()
    return sum(json.loads(line)["event"] == "paid" for line in lines)


def images_in(store: Path, paths: Sequence[Path]) -> NDArray[np.float32]:
    """Return the embeddings [N, D] of files."""
    opened = Store.open(store)
    keys = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    rows: NDArray[np.float32] = opened.image_features(opened.image_rows(keys))
    return rows


def texts_in(store: Path, texts: Sequence[str]) -> NDArray[np.float32]:
    """Return the embeddings [N, D] of sentences."""
    rows: NDArray[np.float32] = Store.open(store).text_features(texts)
    return rows


def gap(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Return the largest difference of a component."""
    return float(np.abs(a - b).max())


def closest(rows: NDArray[np.float32]) -> float:
    """Return the largest difference of a component of the two rows that are most alike."""
    between = np.abs(rows[:, None] - rows[None]).max(axis=2)
    return float(between[~np.eye(len(rows), dtype=bool)].min())


def compare(work: Path, url: str, clip: Path, concepts: int) -> dict[str, Any]:
    """Ask both about the same files and sentences."""
    tree, sentences = work / "emoji", work / "sentences.txt"
    paths = sorted(extract_emoji(tree, concepts=concepts).glob("*/*/*.webp"))
    sentences.write_text("\n".join(SENTENCES) + "\n")
    asked = ("--data", str(tree), "--unlabelled", "--texts", str(sentences))
    spec = f"{url}#{MODEL}?size={SIDE}"
    embed(spec, work / "remote", *asked, "--request-size", "5")
    counted = requests_counted(url)
    embed(f"hf:{clip}", work / "local", *asked)
    # The local teacher again, on the very pixels that were sent.
    prepare, sent = load_teacher(spec).prepare, []
    (work / "sent").mkdir()
    for number, path in enumerate(paths):
        sent.append(work / "sent" / f"{number:03}.png")
        sent[-1].write_bytes(encode_image(prepare(read_image(path))))
    embed(f"hf:{clip}", work / "local", "--data", str(work / "sent"))
    texts = list(texts_of(sentences, "photo"))
    remote, theirs = images_in(work / "remote", paths), texts_in(work / "remote", texts)
    ledger = Ledger(work / "remote")
    return {
        "images": len(paths),
        "texts": len(texts),
        "image_gap": gap(remote, images_in(work / "local", paths)),
        "image_gap_as_sent": gap(remote, images_in(work / "local", sent)),
        "text_gap": gap(theirs, texts_in(work / "local", texts)),
        "closest_images": closest(remote),
        "closest_texts": closest(theirs),
        "ledger_queries": ledger.paid_queries,
        "ledger_unsure": ledger.unsure,
        "ledger_requests": requests_paid(work / "remote"),
        "server_requests": counted,
    }


def is_equal(found: dict[str, Any]) -> bool:
    """Tell whether what was found says that the two sides agree."""
    alike = min(found["closest_images"], found["closest_texts"])
    return (
        found["image_gap"] <= LARGEST < alike / 10
        and max(found["image_gap_as_sent"], found["text_gap"]) <= LARGEST_AS_SENT
        and found["ledger_requests"] == found["server_requests"]
        and found["ledger_unsure"] == 0
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the environment")
    parser.add_argument("--concepts", type=int, default=8, help="emoji of each family")
    asked = parser.parse_args()
    programs = make_environment(asked.out / "env")
    work = asked.out / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    make_clip(work / "clip")
    with serving(programs, work / "clip", work / "server.log") as url:
        found = compare(work, url, work / "clip", asked.concepts)
    print(json.dumps(found))
    return 0 if is_equal(found) else 1


if __name__ == "__main__":
    sys.exit(main())

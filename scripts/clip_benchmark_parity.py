"""A student exported for OpenCLIP answers the same in CLIP_benchmark as in attar.

    python -m venv ENV
    ENV/bin/pip install clip_benchmark requests 'numpy<2.4'
    python scripts/clip_benchmark_parity.py --clip-benchmark ENV/bin/clip_benchmark

The benchmark runs in that environment of its own (it wants an older numpy and does not declare
requests). Emoji of three families train a small student of a small OpenCLIP teacher with random
weights, those of the fourth are the dataset, in the benchmark's webdataset layout. Prints one JSON
object; exit status 1 when an accuracy differs by as much as one image, or when the student has
fewer than three different answers, so that equality would say little.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from tests.doubles import make_openclip_folder  # noqa: E402

from attar.data.emoji import (  # noqa: E402
    HELD_OUT_FAMILY,
    TRAINING_FAMILIES,
    emoji_concepts,
    extract_emoji,
)
from attar.data.images import read_image  # noqa: E402
from attar.errors import AttarError  # noqa: E402
from attar.evaluation.predictions import predictions_path  # noqa: E402
from attar.records import read_records  # noqa: E402

CLASSES = {
    "Activities": "activity",
    "Animals & Nature": "animal",
    "Food & Drink": "food",
    "Objects": "object",
    "Travel & Places": "place",
}
"""Group in the Unicode charts -> the class's name."""
TEMPLATES = ("a drawing of a {c}", "a photo of a {c}.")
METRICS = ("acc1", "acc5", "mean_per_class_recall")


def make_pictures(work: Path, concepts: int) -> tuple[Path, Path]:
    """Write JPEGs of emoji in class folders: those to train on, and those to test on."""
    groups = {concept.name: CLASSES[concept.group] for concept in emoji_concepts()}
    tree = extract_emoji(work / "emoji", concepts=concepts)
    for family in (*TRAINING_FAMILIES, HELD_OUT_FAMILY):
        split = "test" if family == HELD_OUT_FAMILY else "train"
        for source in sorted((tree / family).glob("*/*.webp")):
            folder = work / split / groups[source.parent.name]
            folder.mkdir(parents=True, exist_ok=True)
            read_image(source).save(folder / f"{family}-{source.stem}.jpg", quality=90)
    return work / "train", work / "test"


def write_shard(images: Path, root: Path) -> int:
    """Write class folders as a dataset of CLIP_benchmark: one tar, names, templates."""
    names = sorted(CLASSES.values())
    (root / "test").mkdir(parents=True)
    (root / "classnames.txt").write_text("\n".join(names) + "\n")
    (root / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES) + "\n")
    (root / "test" / "nshards.txt").write_text("1\n")
    paths = sorted(images.glob("*/*.jpg"))
    with tarfile.open(root / "test" / "0.tar", "w") as tar:
        for number, path in enumerate(paths):
            label = str(names.index(path.parent.name)).encode()
            for suffix, data in (("jpg", path.read_bytes()), ("cls", label)):
                entry = tarfile.TarInfo(f"{number:06d}.{suffix}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return len(paths)


def call(words: Sequence[str], environment: dict[str, str]) -> None:
    """Run a command; what it said is shown when it fails."""
    done = subprocess.run(
        words, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise AttarError(f"{' '.join(words[:3])} failed: {done.stderr.strip()[-2000:]}")


def attar(*words: str) -> None:
    call([sys.executable, "-m", "attar", *words], {"PYTHONPATH": str(ROOT / "src")})


def make_model(work: Path, train: Path, steps: int) -> tuple[Path, Path]:
    """Distil and export; return the run and the OpenCLIP folder."""
    make_openclip_folder(work / "teacher", image_size=64)
    (work / "templates.txt").write_text("\n".join(TEMPLATES) + "\n")
    options = {
        "--data": train,
        "--templates": work / "templates.txt",
        "--teacher": f"local-dir:{work / 'teacher'}",
        "--student": "mobilenetv3_small_050",
        "--student.weights": "none",
        "--student.image-size": 64,
        "--student.crop-pct": 1,
        "--method": "li2023",
        "--method.temperature": 0.01,
        "--method.image-contrastive": 0,  # the teacher's image tower is random
        "--method.proximity": 0,
        "--splits.test-fraction": 0,
        "--training.steps": steps,
        "--training.batch-size": 32,
        "--training.augmentation": "flip-crop",
        "--training.workers": 0,
        "--training.precision": "fp32",
        "--embed.workers": 0,
        "--evaluation.workers": 0,
        "--out": work / "run",
    }
    attar("distill", *(str(word) for pair in options.items() for word in pair))
    attar("export", str(work / "run"), "--format", "openclip", "--out", str(work / "model"))
    return work / "run", work / "model"


def measured_by_attar(run: Path, test: Path, work: Path) -> tuple[dict[str, float], Counter[str]]:
    """Return the student's metrics, and how often it gave each answer."""
    out = work / "evaluation"
    attar(
        *("evaluate", str(run), "--data", str(test), "--out", str(out), "--workers", "0"),
        *("--templates", str(work / "templates.txt")),
    )
    asked = ("student", "zeroshot_classification", "all")
    (own,) = (
        record.metrics
        for record in read_records(out / "results.jsonl")
        if (record.role, record.task, record.domain) == asked
    )
    answers = pq.read_table(predictions_path(out, "student", "test_ood"))["prediction"]
    return {name: own[name] for name in METRICS}, Counter(answers.to_pylist())


def measured_by_benchmark(program: Path, model: Path, root: Path, work: Path) -> dict[str, Any]:
    options = {
        "--model": f"local-dir:{model}",
        "--pretrained": "none",
        "--dataset": "wds/emoji",
        "--dataset_root": str(root),
        "--task": "zeroshot_classification",
        "--batch_size": "32",
        "--num_workers": "0",
        "--output": str(work / "benchmark.json"),
    }
    words = [str(program), "eval", *(word for pair in options.items() for word in pair)]
    # An environment of its own: nothing of this process's.
    call([*words, "--no_amp"], {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1"})
    return json.loads((work / "benchmark.json").read_text())["metrics"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clip-benchmark", type=Path, required=True, help="its program")
    parser.add_argument("--concepts", type=int, default=200, help="emoji of each family")
    parser.add_argument("--steps", type=int, default=200, help="of training")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="attar-") as folder:
        work = Path(folder)
        train, test = make_pictures(work, asked.concepts)
        count = write_shard(test, work / "dataset")
        run, model = make_model(work, train, asked.steps)
        own, answers = measured_by_attar(run, test, work)
        theirs = measured_by_benchmark(asked.clip_benchmark, model, work / "dataset", work)
        parity = json.loads((model / "export.json").read_text())["parity"]
    # A mean of per-class recalls moves by less than one image's share, so it is compared as it is.
    same = abs(own["acc1"] - theirs["acc1"]) * count < 1e-3 and all(
        abs(own[name] - theirs[name]) < 1e-6 for name in own
    )
    shown = {"images": count, "answers": answers, "attar": own, "clip_benchmark": theirs}
    print(json.dumps({**shown, "export": parity, "same": same}, indent=2))
    return 0 if same and len(answers) >= 3 else 1


if __name__ == "__main__":
    sys.exit(main())

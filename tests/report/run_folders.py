"""Realistic run folders written by hand: result files only, no model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from attar.records import Record, append_records

CLASSES = ("dog", "<b>cat</b>", "house & home")


def record(role: str, acc1: float | None, **changes: Any) -> Record:
    metrics: dict[str, float] = changes.pop("metrics", {})
    if acc1 is not None:
        metrics = {"acc1": acc1, "mean_per_class_recall": acc1 - 0.02, "ece": 0.041, **metrics}
    fields: dict[str, Any] = {
        "dataset": "pacs",
        "model": "pocket" if role == "teacher" else "lite0",
        "pretrained": "run",
        "task": "zeroshot_classification",
        "metrics": metrics,
        "role": role,
        "method": {"student": "vl2v-adip", "baseline": "erm"}.get(role, ""),
        "split": "held_out",
        "domain": "sketch",
        "num_images": 2000,
    }
    return Record(**{**fields, **changes})


def three(teacher: float, student: float, baseline: float, **changes: Any) -> list[Record]:
    accuracies = {"teacher": teacher, "student": student, "baseline": baseline}
    return [record(role, acc1, **changes) for role, acc1 in accuracies.items()]


def write_predictions(
    run: Path,
    role: str,
    answers: Sequence[str],
    labels: Sequence[str | None],
    *,
    split: str = "held_out",
    confidence: Sequence[float] | None = None,
) -> None:
    number = len(answers)
    sure = list(confidence) if confidence is not None else [0.5 + 0.4 * i / number
                                                            for i in range(number)]  # fmt: skip
    table = pa.table(
        {
            "name": [f"sketch/img_{i}.png" for i in range(number)],
            "path": [str(run / "images" / f"img_{i}.png") for i in range(number)],
            "domain": ["sketch"] * number,
            "label": pa.array(labels, pa.string()),
            "prediction": list(answers),
            "confidence": sure,
            "correct": pa.array(
                [None if b is None else a == b for a, b in zip(answers, labels, strict=True)],
                pa.bool_(),
            ),
            "top5": [[answer, "other"] for answer in answers],
            "top5_confidence": [[c, 1 - c] for c in sure],
        }
    )
    (run / "predictions").mkdir(exist_ok=True)
    pq.write_table(table, run / "predictions" / f"{role}-{split}.parquet")


def write_metrics(run: Path) -> None:
    lines = []
    for step in range(1, 81):
        phase = "align" if step <= 20 else "distill"
        train = {"step": step, "phase": phase, "split": "train", "time": 1.5 * step}
        train |= {"loss": 2.0 / step, "term/image": 1.0 / step, "term/text": 0.5 / step}
        lines.append({**train, "lr": 1e-3, "images_per_s": 72.0, "data_wait": 0.04})
        if step % 20 == 0:
            val = {"step": step, "phase": phase, "split": "val", "val/acc1": 0.5 + step / 400}
            lines.append(val)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text + '{"step": 81, "phase": "dis')


def write_full_run(run: Path) -> Path:
    """Every file that a finished, exported and measured run has."""
    run.mkdir(parents=True)
    config = {"teacher": "pocket", "method": "vl2v-adip", "held_out_domain": "sketch"}
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "training": {"seed": 0}}))
    environment = {"python": "3.11.9", "packages": {"timm": "1.0.22"}}
    (run / "environment.json").write_text(json.dumps(environment))
    broken = [{"path": f"photo/broken_{i}.jpg", "reason": "truncated"} for i in range(12)]
    (run / "set_aside.json").write_text(json.dumps(broken))
    (run / "command.txt").write_text("attar distill --data pacs --out 'my run' --method <x>\n")
    (run / "done").write_text("")
    append_records(run / "results.jsonl", three(0.820, 0.663, 0.600))
    fidelity = record(
        "student", None, task="fidelity", metrics={"agreement": 0.701, "mean_cosine": 0.8123}
    )
    append_records(run / "results.jsonl", [fidelity])
    write_metrics(run)
    (run / "images").mkdir()
    colors = np.random.default_rng(0).integers(0, 255, (30, 3))
    for i in range(0, 30, 2):
        image = Image.new("RGB", (90, 60), tuple(int(c) for c in colors[i]))
        image.save(run / "images" / f"img_{i}.png")
    labels = [CLASSES[i % 3] for i in range(30)]
    wrong = [CLASSES[(i + (i % 5 == 0)) % 3] for i in range(30)]
    write_predictions(run, "student", wrong, labels)
    write_predictions(run, "teacher", labels, labels)
    write_predictions(run, "baseline", [CLASSES[0]] * 30, labels)
    bundle = run / "bundle"
    bundle.mkdir()
    (bundle / "bundle.json").write_text(json.dumps({"version": 1, "student": "lite0"}))
    (bundle / "model.onnx").write_bytes(bytes(2_500_000))
    measured = {"median_ms": 11.84, "p90_ms": 13.0, "batch": 1, "cpu": "a small chip"}
    (run / "latency.json").write_text(json.dumps(measured))
    return run

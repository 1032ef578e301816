"""What drawing trained weights back towards their start gives, without training again.

    python scripts/interpolation_table.py RUN … > table.jsonl

For runs of `attar bench domains`: for each α the student (1 - α) start + α end and its accuracy in
percent on the domain held out and on source validation images. The start is that of the last phase:
the fitted projection on the untrained backbone, or, in the two stages of `vl2v-adip`, the untrained
backbone under the projection that the first one has aligned. Live BatchNorm is measured again on
1,280 source training images (training takes up to fifty batches). A line of JSON a run.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attar.data.images import read_image
from attar.data.table import ImageTable
from attar.data.transforms import train_transform
from attar.errors import UsageError
from attar.evaluation.features import compute_features, read_features
from attar.evaluation.models import from_student
from attar.files import read_json
from attar.prompts import mean_class_features
from attar.run import RunFolder
from attar.students.config import StudentConfig
from attar.students.student import Student, build_student, load_student
from attar.teachers.registry import load_teacher
from attar.training.batchnorm import reestimate_batchnorm
from attar.training.weights import blend

BATCHES, BATCH_SIZE = 20, 64
"""Of the images that BatchNorm is measured on."""
SPLITS = ("held_out", "val")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.0, 0.25, 0.5, 0.75])
    asked = parser.parse_args(words)
    for run in asked.runs:
        print(json.dumps({"run": str(run), "accuracy": accuracies(run, asked.shares)}), flush=True)


def accuracies(run: Path, shares: Sequence[float]) -> dict[str, dict[str, float]]:
    """Return α -> split -> accuracy; "end" is the student that the run saved."""
    table = ImageTable.load(run / "images.parquet")
    classes = _class_features(run)
    start = _start(run).state_dict()
    found = {"end": _measured(load_student(run / "student"), table, classes)}
    for share in shares:
        student = load_student(run / "student")
        mixed = {name: value.clone() for name, value in start.items()}
        blend(mixed, student.state_dict(), share)
        student.load_state_dict(mixed)
        if share:  # the start has its own statistics
            reestimate_batchnorm(student, _batches(student, run, _part(table, "train")))
        found[f"{share:g}"] = _measured(student, table, classes)
    return found


def _start(run: Path) -> Student:
    """Return the student that the run's last phase began with."""
    fitted = run / "references" / "projection-only"
    if fitted.is_dir():
        return load_student(fitted)
    options, end = RunFolder(run).options(), load_student(run / "student")
    if options["method"].get("distill_trains") != "backbone" or end.spec.projector != "linear":
        raise UsageError(f"{run}: neither a fitted projection nor one that the first phase aligned")
    config = StudentConfig(weights=options["student"]["weights"], image_size=end.spec.image_size)
    start = build_student(end.spec.name, end.spec.dim, config)
    projection: Any = end.projection()
    start.set_projection(projection.weight.detach(), projection.bias.detach())
    return start


def _part(table: ImageTable, split: str) -> ImageTable:
    return table.select([row for row, name in enumerate(table.splits) if name == split])


def _batches(student: Student, run: Path, table: ImageTable) -> Iterator[Tensor]:
    """Yield images [B, 3, H, W] in [0, 1] as training sees them."""
    name = RunFolder(run).options()["training"]["augmentation"]
    augment = train_transform(name, student.spec.image_size)
    torch.manual_seed(0)
    order = np.random.default_rng(0).permutation(len(table))[: BATCHES * BATCH_SIZE]
    for first in range(0, len(order), BATCH_SIZE):
        paths = [table.paths[row] for row in order[first : first + BATCH_SIZE]]
        yield torch.stack([augment(read_image(path)) for path in paths]) / 255


def _class_features(run: Path) -> Tensor:
    texts = read_json(run / "classes.json")["texts"]
    teacher = load_teacher(str(RunFolder(run).option("teacher")))
    flat = teacher.encode_texts([text for of_class in texts for text in of_class])
    return mean_class_features(flat, [len(of_class) for of_class in texts])


def _measured(student: Student, table: ImageTable, classes: Tensor) -> dict[str, float]:
    found = {}
    for split in SPLITS:
        part = _part(table, split)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "features.safetensors"
            compute_features(from_student(student), part, out, workers=1)
            features = torch.from_numpy(read_features(out))
        answers = (features @ classes.float().T).argmax(dim=1)
        found[split] = round(100 * float((answers == torch.tensor(part.labels)).float().mean()), 2)
    return found


if __name__ == "__main__":
    main()

"""Every image's prediction as a Parquet file: what the report draws confusion and samples from."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from attar.evaluation import metrics
from attar.evaluation.evidence import EvaluationData
from attar.evaluation.metrics import Floats
from attar.files import atomic_path

_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("path", pa.string()),
        ("domain", pa.string()),
        ("label", pa.string()),
        ("prediction", pa.string()),
        ("confidence", pa.float64()),
        ("correct", pa.bool_()),
        ("top5", pa.list_(pa.string())),
        ("top5_confidence", pa.list_(pa.float64())),
    ]
)


def predictions_path(out_dir: Path, role: str, split: str) -> Path:
    """Return where the predictions of a row of the tables on a split lie."""
    return out_dir / "predictions" / f"{file_stem(role, split)}.parquet"


def file_stem(role: str, split: str) -> str:
    """Return "ROLE-SPLIT", odd characters replaced by "_"; the last dash parts the two."""
    row, images = re.sub(r"[^\w.-]", "_", role), re.sub(r"[^\w.]", "_", split)
    return f"{row}-{images}"


def write_predictions(path: Path, logits: Floats, data: EvaluationData) -> Path:
    """Write one row an image from its logits [N, C]: the best five classes and their confidences.

    `label`, `domain` and `correct` are null where they are not known.
    """
    best = metrics.top_k(logits, 5)
    probabilities = metrics.softmax(logits)
    names, table = data.class_names, data.table
    top5 = [[names[c] for c in row] for row in best]
    confidences = [probabilities[i, row].tolist() for i, row in enumerate(best)]
    labels = [names[label] if label >= 0 else None for label in table.labels]
    columns = {
        "name": table.names,
        "path": table.paths,
        "domain": [table.domain_names[d] if d >= 0 else None for d in table.domains],
        "label": labels,
        "prediction": [row[0] for row in top5],
        "confidence": [row[0] for row in confidences],
        "correct": [
            None if label is None else label == row[0]
            for label, row in zip(labels, top5, strict=True)
        ],
        "top5": top5,
        "top5_confidence": confidences,
    }
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns, schema=_SCHEMA), temporary)
    return path

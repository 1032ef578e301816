"""What a refused command looks like, and a sound one to spoil."""

import re
from pathlib import Path

from tests.cli.commands import Outcome, World

COMPUTED = ("store.json", "config.yaml", "student", "model.onnx", "results.jsonl", "metrics.jsonl")


def refused(outcome: Outcome, *, names: str, way_out: str) -> str:
    """Check that a command was refused in one line; return it."""
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("attar: ")
    assert names in lines[0], lines[0]
    assert re.search(way_out, lines[0]), lines[0]
    assert "Traceback" not in lines[0]
    assert outcome.status == 2
    assert outcome.out == ""
    return lines[0]


def nothing_computed(folder: Path) -> None:
    found = {path.name for path in folder.rglob("*")} if folder.exists() else set()
    assert not found & set(COMPUTED), found


def request_of(world: World, out: Path, **changes: object) -> list[str]:
    """Return a sound `attar distill` with some options changed (None leaves one out)."""
    options: dict[str, object] = {
        "data": world.flat,
        "teacher": world.teacher,
        "student": "mobilenetv3_small_050",
        "student.image-size": 32,
        "method": "feature-mse",
        "out": out,
        **{name.replace("__", ".").replace("_", "-"): value for name, value in changes.items()},
    }
    return ["distill", *(f"--{name}={v}" for name, v in options.items() if v is not None)]

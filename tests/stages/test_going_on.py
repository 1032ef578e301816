"""A run that was killed goes on with fewer workers, smaller batches and its data named anew."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import distil

from attar import pipeline
from attar.data.splits import SplitConfig
from attar.errors import UsageError
from attar.evaluation.config import EvaluationConfig
from attar.records import read_records
from attar.run import DataConfig
from attar.store.config import EmbedConfig
from attar.store.store import Store
from attar.training.config import TrainingConfig

TRAINING = TrainingConfig(steps=4, batch_size=4, workers=0, precision="fp32", checkpoint_every=2)


def paced(root: Path, where: str = "") -> dict:
    """Return every option that sets the pace at another value than `distil` has it."""
    templates = str(root / "templates.txt")
    return {
        "data": DataConfig(data=(Path(where) / "seen",), templates=templates),
        "training": replace(TRAINING, workers=1, log_every=3, checkpoint_every=3),
        "embed": EmbedConfig(workers=1, batch_size=5, shard_rows=7, commit_seconds=9),
        "evaluation": EvaluationConfig(workers=1, batch_size=3),
    }


def student_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "student" / "model.safetensors")


def test_the_pace_changes_no_result(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    plain = distil(root, "pace", training=TRAINING)
    slow = paced(root)
    other = distil(root, "other-pace", **{**slow, "embed": replace(slow["embed"], batch_size=64)})
    assert student_of(plain).keys() == student_of(other).keys()
    assert all(torch.equal(student_of(other)[k], value) for k, value in student_of(plain).items())
    pairs = zip(*(read_records(run / "results.jsonl") for run in (plain, other)), strict=True)
    for left, right in pairs:
        assert (left.role, left.split, left.task) == (right.role, right.split, right.task)
        assert left.metrics == pytest.approx(right.metrics, rel=1e-4, abs=1e-5)
    # Of the teacher's features another batch size changes the rounding.
    store = pipeline.embed(
        slow["data"], f"local-dir:{root / 'teacher'}", root / "other-batches", slow["embed"]
    )
    one, two = Store.open(plain / "store"), Store.open(store)
    assert len(two.info.image_shards) > len(one.info.image_shards)
    for left, right in zip(one.iterate_images(99), two.iterate_images(99), strict=True):
        assert left.keys == right.keys
        np.testing.assert_allclose(left.features, right.features, rtol=0, atol=1e-3)


def test_a_run_goes_on_at_another_pace(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = distil(root, "goes-on", training=TRAINING)
    before = student_of(run)
    (run / "done").unlink()  # as if it had been killed before its end
    monkeypatch.chdir(root)
    assert distil(root, "goes-on", **paced(root)) == run
    assert (run / "done").is_file()
    assert all(torch.equal(value, before[name]) for name, value in student_of(run).items())
    assert distil(root, "goes-on", training=TRAINING) == run
    with pytest.raises(UsageError, match=r"another configuration \(training\.batch_size 4 there"):
        distil(root, "goes-on", training=replace(TRAINING, batch_size=3))
    with pytest.raises(UsageError, match=r"splits\.val_fraction 0\.2 there, 0\.3 asked"):
        distil(root, "goes-on", training=TRAINING, splits=SplitConfig(val_fraction=0.3))

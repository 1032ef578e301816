"""What stands beside a student is compared by what it costs too."""

from pathlib import Path

import pytest
from tiny_runs import QUICK

from attar import pipeline
from attar.evaluation.config import EvaluationConfig
from attar.records import Record, read_records
from attar.run import DataConfig
from attar.stages.comparing import Comparison, gather
from attar.stages.costing import teacher_of, with_cost
from attar.store.store import Store
from attar.students.student import load_student


def costs(root: Path, run: Path, out: Path, **asked) -> dict[str, Record]:
    data = DataConfig(data=(root / "new",))
    asked = {"config": QUICK, **asked}
    results = pipeline.evaluate(gather(Comparison(run=run, data=data, out=out, **asked)))
    return {record.role: record for record in read_records(results) if record.task == "cost"}


def test_another_model_brings_the_cost_of_all(
    root: Path, run: Path, bundle: Path, tmp_path: Path
) -> None:
    other = f"local-dir:{root / 'other-teacher'}"
    found = costs(root, run, tmp_path, others=(other, str(bundle)))
    assert set(found) == {"teacher", "student", "baseline", "untrained", other, "bundle"}
    network = load_student(run / "student").network
    numbers = sum(parameter.numel() for parameter in network.parameters())
    for role in ("student", "baseline", "untrained"):
        assert found[role].metrics["num_parameters"] == numbers
    assert found["teacher"].metrics["num_parameters"] > 0
    assert found["student"].extra["image_size"] == 32
    assert found[other].extra["image_size"] == 48
    shipped = found["bundle"]
    assert shipped.extra["runtime"] == "onnxruntime"
    assert shipped.metrics["megabytes"] * 1e6 == (bundle / "model.onnx").stat().st_size
    # BatchNorm is folded into the convolutions before it, whatever else the graph needs.
    assert 0.9 * numbers < shipped.metrics["num_parameters"] < 1.1 * numbers
    assert all(record.metrics["latency_ms"] > 0 for record in found.values())


def test_it_is_not_measured_unless_it_is_asked_for(root: Path, run: Path, tmp_path: Path) -> None:
    assert costs(root, run, tmp_path / "one") == {}
    asked = EvaluationConfig(workers=0, tasks=("zero_shot", "cost"))
    assert set(costs(root, run, tmp_path / "two", config=asked)) == {
        "teacher", "student", "baseline", "untrained",
    }  # fmt: skip


def test_the_task_is_added_once() -> None:
    assert with_cost(QUICK, ()) is QUICK
    added = with_cost(QUICK, ("other",))
    assert added.tasks == ("zero_shot", "fidelity", "cost")
    assert with_cost(added, ("other",)) is added


def test_a_teacher_that_is_gone_is_left_out_and_said(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(run / "store")
    teacher = Path(store.info.teacher.name.removeprefix("local-dir:"))
    kept = teacher.rename(teacher.with_name("gone"))
    try:
        model = teacher_of(store, EvaluationConfig(tasks=("cost",)))
    finally:
        kept.rename(teacher)
    assert model.network is None
    assert model.lookup is not None
    assert "what the teacher costs is not measured" in caplog.text

"""The whole path on what is shipped: the pocket teacher, the emoji set and a small student.

Three families of emoji train; the fourth, Noto, is the unseen domain. Everything here is an
ordinary run, made with the same functions as the user's own.
"""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from attar.data.emoji import EMOJI_FAMILIES, HELD_OUT_FAMILY, extract_emoji
from attar.data.splits import SplitConfig
from attar.errors import UsageError
from attar.files import write_json
from attar.report.config import ReportConfig
from attar.run import DataConfig, RunConfig
from attar.runtime.latency import measure_latency
from attar.students.config import StudentConfig
from attar.training.config import TrainingConfig

ONE_STAGE = {"align_share": 0.0, "distill_trains": "all"}
"""Options of `vl2v-adip` in a run this short: its Align stage is the fitted projection, which costs
no step. Chosen on source validation images (see the log)."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What the demo may be told; the defaults take a few minutes on two cores."""

    teacher: str = "pocket"
    """Any teacher; the pocket teacher needs no network."""
    student: str = "tf_efficientnet_lite0"
    """Any timm model."""
    concepts: int = 100
    """How many of the emoji concepts to use as classes."""
    steps: int = 150
    """Optimiser steps of each of the two runs."""
    image_size: int = 96
    """Side of the student's images in pixels."""
    seed: int = 0
    """Decides the concepts, the splits and the training."""


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """Where the demo left its work."""

    distilled: Path
    baseline: Path
    bundle: Path
    page: Path


def run_demo(config: DemoConfig, out: Path) -> DemoResult:
    """Embed, distil, train the baseline, evaluate, export, report; a killed demo goes on.

    Raises:
        UsageError: the teacher cannot be used here; nothing has been computed.
    """
    # Here, so that `attar demo --help` need not wait for torch.
    from attar import pipeline
    from attar.report.page import write_report
    from attar.teachers.registry import describe_teacher_spec

    describe_teacher_spec(config.teacher)
    if config.concepts < 5:
        raise UsageError(f"--concepts {config.concepts}: the demo needs 5 or more")
    data = extract_emoji(out / "emoji", EMOJI_FAMILIES, config.concepts, config.seed)
    erm = _run(config, data, out, "erm")
    baseline = pipeline.distill(erm, out / "erm", command=_command(config, data, out, "erm"))
    distil = replace(_run(config, data, out, "vl2v-adip"), baseline=baseline)
    command = _command(config, data, out, "vl2v-adip")
    distilled = pipeline.distill(distil, out / "vl2v-adip", command=command)
    bundle = distilled / "bundle"
    if not (bundle / "bundle.json").is_file():
        pipeline.export(distilled, bundle)
    write_json(distilled / "latency.json", measure_latency(bundle, threads=2, runs=50))
    page = write_report([distilled], distilled / "report.html", ReportConfig())
    return DemoResult(distilled=distilled, baseline=baseline, bundle=bundle, page=page)


def _run(config: DemoConfig, data: Path, out: Path, method: str) -> RunConfig:
    distils = method != "erm"
    return RunConfig(
        data=DataConfig(data=(data,)),
        teacher=config.teacher,
        student=config.student,
        method=method,
        method_options=ONE_STAGE if distils else {},
        store=out / "store",
        splits=SplitConfig(
            seed=config.seed,
            held_out_domain=HELD_OUT_FAMILY,
            val_fraction=0.1,
            test_fraction=0.0,
        ),
        student_config=StudentConfig(
            image_size=config.image_size, projection="fitted" if distils else None
        ),
        training=TrainingConfig(steps=config.steps, batch_size=32, seed=config.seed),
    )


def _command(config: DemoConfig, data: Path, out: Path, method: str) -> str:
    """Return the `attar distill` command that makes the same run."""
    options = {
        "data": data,
        "teacher": config.teacher,
        "student": config.student,
        "method": method,
        "store": out / "store",
        "held-out-domain": HELD_OUT_FAMILY,
        "splits.val-fraction": 0.1,
        "splits.test-fraction": 0.0,
        "splits.seed": config.seed,
        "student.image-size": config.image_size,
        "training.steps": config.steps,
        "training.batch-size": 32,
        "training.seed": config.seed,
        "out": out / method,
    }
    if method != "erm":
        options["baseline"] = out / "erm"
        options["student.projection"] = "fitted"
        options |= {f"method.{name.replace('_', '-')}": value for name, value in ONE_STAGE.items()}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return shlex.join(["attar", "distill", *words])

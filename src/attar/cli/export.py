"""`attar export`: the bundle for the device, with proof."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from attar.export.config import ExportConfig


def export(
    run: Path,
    /,
    *,
    out: Path | None = None,
    classes: Path | None = None,
    options: Annotated[ExportConfig, Parameter(name="*")] = ExportConfig(),
) -> None:
    """Write a bundle (ONNX model, labels, preprocessing, card) and prove it equals the student.

    For example:

    `attar export runs/photos --out bundle/`

    `attar export runs/photos --classes new-classes.txt --vocabulary nouns.txt --out bundle/`

    Parameters
    ----------
    run
        Run folder made by `attar distill`.
    out
        The bundle's folder; `RUN/bundle` by default.
    classes
        Other classes than the run's; the teacher is asked for texts that its store lacks.
    """
    from attar import pipeline
    from attar.files import read_json

    path = pipeline.export(run, out or run / "bundle", options, classes)
    parity = read_json(path / "bundle.json").get("parity", {})
    print(f"{path}: proven on {parity.get('images', 0)} images ({parity})")

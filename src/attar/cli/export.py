"""`attar export`: the bundle for the device, or an OpenCLIP model, with proof."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from attar.errors import UsageError
from attar.export.config import ExportConfig, OpenCLIPConfig


def export(
    run: Path,
    /,
    *,
    format: Literal["onnx", "openclip"] = "onnx",
    out: Path | None = None,
    classes: Path | None = None,
    options: Annotated[ExportConfig, Parameter(name="*")] = ExportConfig(),
    openclip: Annotated[OpenCLIPConfig, Parameter(name="*")] = OpenCLIPConfig(),
) -> int:
    """Write a bundle (ONNX model, labels, preprocessing, card) and prove it equals the student.

    For example:

    `attar export runs/photos --out bundle/`

    `attar export runs/photos --classes new-classes.txt --vocabulary nouns.txt --out bundle/`

    `attar export runs/photos --int8 --out bundle/`

    `attar export runs/photos --format openclip --out model/`

    Parameters
    ----------
    run
        Run folder made by `attar distill`.
    format
        `onnx`: the bundle for the device. `openclip`: a model that OpenCLIP loads as
        `local-dir:PATH`, with the text tower of the run's OpenCLIP teacher.
    out
        The folder to write; `RUN/bundle` or `RUN/openclip` by default.
    classes
        Other classes than the run's; the teacher is asked for texts that its store lacks.
    """
    from attar import pipeline
    from attar.files import read_json

    if format == "openclip":
        _refuse({"classes": classes, **_of_bundles(options)}, "onnx")
        place = out or run / "openclip"
        path = pipeline.export_openclip(run, place, openclip, options.parity_images)
        facts = path / "export.json"
    else:
        _refuse({"teacher": openclip.teacher, "whole-image": openclip.whole_image}, "openclip")
        path = pipeline.export(run, out or run / "bundle", options, classes)
        facts = path / "bundle.json"
    said = read_json(facts)
    parity, int8 = said.get("parity", {}), said.get("int8")
    print(f"{path}: proven on {parity.get('images', 0)} images ({parity})")
    if int8 is not None:
        print(f"{path}, int8: {int8}")
    return 1 if int8 and not int8["written"] else 0  # it was asked for, and why not has been said


def _of_bundles(options: ExportConfig) -> dict[str, object]:
    """Return what was given of the options that only a bundle's proof and labels know."""
    plain = ExportConfig()
    names = ["vocabulary", "threshold", "tolerance", "min_cosine"]
    names += ["int8", "int8_images", "int8_min_agreement", "int8_min_cosine"]
    given = {name: getattr(options, name) for name in names}
    return {
        name.replace("_", "-"): None if value == getattr(plain, name) else value
        for name, value in given.items()
    }


def _refuse(given: dict[str, object], format: str) -> None:
    """Refuse options that mean nothing to the format that was asked for."""
    for name, value in given.items():
        if value is not None and value is not False:
            raise UsageError(f"--{name} belongs to --format {format}; leave it out")

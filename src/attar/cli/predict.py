"""`attar predict` and `attar latency`: what runs on the device; neither loads torch."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from attar.runtime.config import PredictConfig


def predict(
    bundle: Path,
    images: Annotated[list[Path], Parameter(negative=())],
    /,
    *,
    options: Annotated[PredictConfig, Parameter(name="*")] = PredictConfig(),
) -> None:
    """Name what images show, with calibrated confidence; needs numpy, pillow and onnxruntime.

    For example:

    `attar predict bundle/ photo.jpg more-photos/`

    `attar predict bundle/ photos/ --labels other-classes.txt --threshold 0.5 --csv > answers.csv`

    Parameters
    ----------
    bundle
        Folder made by `attar export`.
    images
        Images, or folders of images.
    """
    from attar.runtime.predict import run_predict

    run_predict(bundle, images, options)


def latency(
    bundle: Path,
    /,
    *,
    threads: int = 1,
    runs: int = 100,
    batch: int = 1,
    int8: bool = False,
    out: Path | None = None,
) -> None:
    """Measure a bundle's speed, size and memory on this machine, in a process of its own.

    For example:

    `attar latency bundle/ --threads 2`

    Parameters
    ----------
    bundle
        Folder made by `attar export`.
    threads
        Threads of the model.
    runs
        Timed runs; their median is reported.
    batch
        Images a run.
    int8
        Measure the model in 8-bit integers (`attar export --int8`).
    out
        Also write the JSON here (`RUN/latency.json` puts it on the run's report).
    """
    from attar.files import check_writable, write_json
    from attar.runtime.latency import measure_latency

    if out is not None:
        check_writable(out.parent)
    measured = measure_latency(bundle, threads, runs, batch, int8=int8)
    if out is not None:
        write_json(out, measured)
    print(json.dumps(measured, indent=2))

"""Measure a bundle on the machine it is on: time, memory and size.

Several onnxruntime sessions in one process disturb each other's times, and a process that already
did other work has a memory peak of its own, so each measurement has a fresh process to itself.
"""

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attar.errors import AttarError, UsageError
from attar.runtime.bundle import INPUT, Bundle

_WARM_UP = 5
_PHOTO = (640, 480)
"""Width and height of the JPEG whose reading is timed as preprocessing."""


def measure_latency(
    bundle: Path, threads: int = 1, runs: int = 100, batch: int = 1, *, int8: bool = False
) -> dict[str, Any]:
    """Measure a bundle in a process of its own.

    Args:
        bundle: the bundle folder.
        threads: threads of the model.
        runs: timed runs, after a few untimed ones.
        batch: images a run.
        int8: measure the model in 8-bit integers.

    Returns:
        `median_ms` and `p90_ms` a run of `batch` images, `images_per_s` (the model alone),
        `preprocess_ms` (median for one 640 x 480 JPEG: decode, resize, crop), `model_mb` and
        `bundle_mb` on disk, `peak_rss_mb` of the process (null where the system does not tell),
        and what was measured where.

    Raises:
        UsageError: no bundle there, none with the model asked for, or numbers below 1.
        AttarError: the measuring process failed; its last line is given.
    """
    for name, value in (("threads", threads), ("runs", runs), ("batch", batch)):
        if value < 1:
            raise UsageError(f"--{name} {value} is too small; give 1 or more")
    Bundle.open(bundle).model(int8=int8)
    numbers = [str(value) for value in (threads, runs, batch)]
    command = [sys.executable, "-m", "attar.runtime.latency", str(bundle), *numbers]
    command += ["--int8"] if int8 else []
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise AttarError(f"measuring {bundle} failed: {last}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measure_here(
    bundle: Path, threads: int, runs: int, batch: int, *, int8: bool = False
) -> dict[str, Any]:
    """Measure in this process, which should do nothing else; keys as in `measure_latency`."""
    import onnxruntime

    from attar.runtime.predict import open_session

    opened = Bundle.open(bundle)
    model = opened.model(int8=int8)
    size = opened.preprocess.image_size
    pixels = np.random.default_rng(0).random((batch, 3, size, size), dtype=np.float32)
    session = open_session(model, threads)
    times = _time(lambda: session.run(None, {INPUT: pixels}), runs)
    peak = _peak_rss_mb()
    photo = _photo()
    prepare_times = _time(lambda: _prepare(opened, photo), min(runs, 20))
    median = statistics.median(times)
    return {
        "median_ms": median * 1e3,
        "p90_ms": float(np.quantile(times, 0.9)) * 1e3,
        "images_per_s": batch / median,
        "preprocess_ms": statistics.median(prepare_times) * 1e3,
        "threads": threads,
        "batch": batch,
        "runs": runs,
        "model": model.name,
        "model_mb": model.stat().st_size / 1e6,
        "bundle_mb": sum(p.stat().st_size for p in bundle.rglob("*") if p.is_file()) / 1e6,
        "peak_rss_mb": peak,
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
        "image_size": size,
        "student": opened.manifest.get("student"),
        "onnxruntime": onnxruntime.__version__,
        "platform": platform.platform(terse=True),
    }


def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model", "Hardware") and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def _time(call: Callable[[], object], runs: int) -> list[float]:
    """Return the seconds of each of `runs` calls, after the warm-up."""
    times = []
    for number in range(_WARM_UP + runs):
        start = time.perf_counter()
        call()
        if number >= _WARM_UP:
            times.append(time.perf_counter() - start)
    return times


def _photo() -> bytes:
    """Return a JPEG with the detail of a photo; a synthetic one is always there."""
    coarse = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(_PHOTO, Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def _prepare(bundle: Bundle, photo: bytes) -> None:
    with Image.open(io.BytesIO(photo)) as image:
        bundle.preprocess(image.convert("RGB"))


def _peak_rss_mb() -> float | None:
    """Return this process's peak resident memory in MB.

    Linux is asked through /proc, as its getrusage counts the parent's memory before exec too.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure in this process and print the result as JSON."""
    parser = argparse.ArgumentParser(description="Measure a bundle in this process.")
    parser.add_argument("bundle", type=Path)
    for name in ("threads", "runs", "batch"):
        parser.add_argument(name, type=int)
    parser.add_argument("--int8", action="store_true")
    given = parser.parse_args(arguments)
    numbers = (given.threads, given.runs, given.batch)
    print(json.dumps(measure_here(given.bundle, *numbers, int8=given.int8)))


if __name__ == "__main__":
    main()

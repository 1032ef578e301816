"""What the benchmarks share: images, a store, a teacher, the timed training loop and the answer.

A benchmark prints one line of JSON on stdout. Its ratios come from measurements that take turns in
one process, so that whatever else the machine does strikes both sides.
"""

import argparse
import copy
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg
from PIL import Image
from safetensors.torch import save_file

from attar.data.sources import read_sources
from attar.data.splits import SourceSplits
from attar.data.table import ImageTable
from attar.device import device_summary, limit_threads, pick_device
from attar.errors import AttarError, UsageError
from attar.files import write_json
from attar.methods.base import ClassFeatures, Phase
from attar.store.layout import CLEAN
from attar.store.store import Store
from attar.store.writer import StoreWriter
from attar.students.config import StudentConfig
from attar.students.student import Student, build_student
from attar.teachers.base import Teacher, TeacherInfo
from attar.teachers.registry import load_teacher
from attar.training.config import TrainingConfig
from attar.training.feed import Feed, Place
from attar.training.log import METRICS_FILE
from attar.training.loop import train
from attar.training.precision import choose_precision
from attar.training.step import StepModule

CLASSES = tuple(f"class {number}" for number in range(7))
SIDE = 227
"""Made images measure and weigh what those of PACS do: 227 px square, about 25 kB."""


# Arguments


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of images (default: made in a moment)")
    parser.add_argument("--images", type=int, default=1024, help="images to use or to make")
    parser.add_argument("--image-size", type=int, default=224, help="side in pixels")
    parser.add_argument("--batch-size", type=int, default=64, help="images a step")
    parser.add_argument("--rounds", type=int, default=3, help="times that the two sides take turns")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: shows that it runs")
    return parser


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, smoke: Mapping[str, Any]
) -> argparse.Namespace:
    """Parse; with --smoke the options that were not given take the values in `smoke`."""
    args = parser.parse_args(arguments)
    if args.smoke:
        parser.set_defaults(**smoke)
        args = parser.parse_args(arguments)
    for name in ("images", "batch_size", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if args.images < args.batch_size:
        parser.error(f"--images {args.images} do not fill one batch of {args.batch_size}")
    return args


def run(main: Callable[[], None]) -> None:
    """Run a benchmark as a script: a failure is one line on stderr."""
    try:
        main()
    except AttarError as error:
        sys.exit(f"error: {error}")


# Images and what is known of them


def read_images(args: argparse.Namespace, folder: Path) -> ImageTable:
    """Return a whole number of batches of distinct images, each with one of seven labels.

    The labels mean nothing: a step costs the same whatever they are.
    """
    if args.data is None:
        make_images(folder / "images", args.images)
    table = read_sources([args.data or folder / "images"], unlabelled=True)
    distinct = list({key: row for row, key in enumerate(table.keys)}.values())
    count = min(args.images, len(distinct)) // args.batch_size * args.batch_size
    if not count:
        raise UsageError(f"{args.data} holds {len(distinct)} images, less than one batch")
    chosen = np.random.default_rng(0).permutation(distinct)[:count]
    labels = tuple(number % len(CLASSES) for number in range(count))
    return replace(table.select(chosen.tolist()), labels=labels, class_names=CLASSES)


def make_images(folder: Path, count: int) -> None:
    """Write `count` JPEG files with the energy of a photograph at coarse and fine scales."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        pixels = np.full((SIDE, SIDE, 3), 128.0)
        for cells, strength in ((4, 40.0), (16, 25.0), (64, 18.0), (SIDE, 12.0)):
            coarse = generator.normal(128, strength, (cells, cells, 3)).clip(0, 255)
            layer = Image.fromarray(coarse.astype(np.uint8)).resize((SIDE, SIDE))
            pixels += np.asarray(layer, dtype=np.float64) - 128
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        picture.save(folder / f"{number:06d}.jpg", quality=90)


def describe_images(args: argparse.Namespace, table: ImageTable) -> dict[str, Any]:
    """Return the facts about the images that a reader of the ratios needs."""
    sizes = [Path(path).stat().st_size for path in table.paths]
    return {
        "images": len(table),
        "images_from": "made" if args.data is None else args.data.name,
        "mean_file_kilobytes": round(statistics.mean(sizes) / 1000, 1),
    }


def all_for_training(table: ImageTable) -> SourceSplits:
    nothing = table.select([])
    return SourceSplits(train=table, val=nothing, few_shot=nothing)


def make_store(path: Path, table: ImageTable, dim: int) -> Store:
    """Write a store of random embeddings: reading them back costs what reading real ones does."""
    info = TeacherInfo(name="random", identity="0" * 64, dim=dim, logit_scale=100.0)
    features = np.random.default_rng(0).standard_normal((len(table), dim), dtype=np.float32)
    with StoreWriter.open(path, info) as writer:
        writer.add_images(table.keys, table.names, CLEAN, features)
    return Store.open(path)


def make_teacher(folder: Path, name: str, image_size: int) -> Teacher:
    """Return OpenCLIP's image tower `name` with random weights, loaded as attar loads a folder.

    The text tower is a token one: no text is asked.
    """
    config = open_clip.get_model_config(name)
    if config is None:
        raise UsageError(f"OpenCLIP has no model {name!r}")
    config["vision_cfg"]["image_size"] = image_size
    config["text_cfg"] |= {"width": 64, "heads": 1, "layers": 1}
    preprocess = vars(PreprocessCfg(size=image_size))
    folder.mkdir(parents=True)
    write_json(
        folder / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": preprocess}
    )
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return load_teacher(f"local-dir:{folder}")


# Training


def make_student(name: str, image_size: int, dim: int, class_names: Sequence[str] = ()) -> Student:
    """Return a student with random weights; speed does not depend on them."""
    torch.manual_seed(0)
    config = StudentConfig(weights="none", image_size=image_size)
    return build_student(name, dim, config, class_names=class_names)


def settle_precision(asked: str, student: Student, phase: Phase, feed: Feed) -> str:
    """Return what `--training.precision auto` picks here, once for everything that is compared."""
    if asked != "auto":
        return asked
    place = Place(pick_device())
    batch = feed.first_batch(place)
    features = torch.randn(len(batch.images), student.spec.dim, device=place.device)
    batch = replace(batch, image_features=F.normalize(features, dim=-1))
    module = StepModule(copy.deepcopy(student), phase, None, "fp32")
    return choose_precision(module.to(place.device), batch)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training run said of itself in metrics.jsonl."""

    seconds: float
    """In steps, waiting for data included; checkpoints and logs are not."""
    data_wait: float
    """Share of the seconds spent on waiting for data."""


def time_training(
    student: Student,
    phase: Phase,
    feed: Feed,
    config: TrainingConfig,
    class_features: ClassFeatures | None = None,
) -> Trained:
    """Train a copy of the student with attar's loop and return what the steps took."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        config = replace(config, log_every=phase.steps, steps=phase.steps)
        train(copy.deepcopy(student), [phase], feed, class_features, config, run_dir)
        last = json.loads((run_dir / METRICS_FILE).read_text().splitlines()[-1])
    return Trained(seconds=last["time"], data_wait=last["data_wait"])


# Measuring


def take_turns(
    reference: Callable[[], float], measured: Callable[[], float], rounds: int
) -> tuple[list[float], list[float]]:
    """Call reference, measured, reference, ..., reference; return both lists of numbers.

    There is one more of the references than of the measured.
    """
    references, values = [reference()], []
    for _ in range(rounds):
        values.append(measured())
        references.append(reference())
    return references, values


def ratios_between(references: Sequence[float], values: Sequence[float]) -> list[float]:
    """Return each value over the mean of the references before and after it."""
    around = [(a + b) / 2 for a, b in itertools.pairwise(references)]
    return [value / near for value, near in zip(values, around, strict=True)]


def time_operations(
    items: Sequence[Any], operations: Sequence[Callable[[Any], Any]]
) -> dict[str, float]:
    """Return the milliseconds an item of each operation in a chain, on one thread as in a worker.

    `items` go through the first operation, its results through the second, and so on.
    """
    spent = [0.0] * len(operations)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for item in items:
            result = item
            for number, operation in enumerate(operations):
                start = time.perf_counter()
                result = operation(result)
                spent[number] += time.perf_counter() - start
    finally:
        torch.set_num_threads(threads)
    names = [getattr(one, "__name__", type(one).__name__) for one in operations]
    return {name: 1000 * seconds / len(items) for name, seconds in zip(names, spent, strict=True)}


def begin() -> None:
    """Give torch the threads that this machine has."""
    limit_threads()
    torch.manual_seed(0)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One line of a benchmark."""

    benchmark: str
    ratios: Mapping[str, float]
    """Median over the rounds."""
    aims: Mapping[str, str]
    rounds: Mapping[str, Sequence[float]]
    """The ratio of each round: how far they lie apart says how quiet the machine was."""
    absolute: Mapping[str, Any]
    facts: Mapping[str, Any]
    profile: Mapping[str, Any] | None = None

    def print(self) -> None:
        """Print the line on stdout; floats keep four significant digits."""
        line = {name: value for name, value in vars(self).items() if value is not None}
        line["facts"] = {**self.facts, "machine": device_summary()}
        print(json.dumps(_rounded(line)), flush=True)


def medians(rounds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the median of each list."""
    return {name: statistics.median(values) for name, values in rounds.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {name: _rounded(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return value

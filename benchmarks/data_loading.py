"""An epoch from JPEG files against the same number of steps on a batch held in memory.

Both run attar's training loop. Beside the ratio of each student stands the profile that explains
it: what each piece of the reading costs, and how long training stood still for want of data.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import (
    CLASSES,
    Answer,
    Trained,
    all_for_training,
    begin,
    describe_images,
    make_parser,
    make_student,
    medians,
    parse,
    ratios_between,
    read_images,
    run,
    settle_precision,
    take_turns,
    time_operations,
    time_training,
)

from attar.data.images import read_image
from attar.data.table import ImageTable
from attar.data.transforms import train_transform
from attar.device import pick_device, usable_cores
from attar.methods.base import Phase, Views
from attar.methods.erm import CrossEntropy
from attar.training.config import TrainingConfig
from attar.training.feed import Feed, Place
from attar.types import Batch

AIMS = {"tf_efficientnet_lite0": "<= 1.10"}
WARM_UP = 2
PROFILED_IMAGES = 256
SMOKE = {
    "students": ["test_resnet", "mobilenetv3_small_050"],
    "images": 16,
    "image_size": 32,
    "batch_size": 8,
    "rounds": 1,
}


class HeldFeed(Feed):
    """Gives the first batch at every step: what training costs when no file is read."""

    _held: Batch

    def hold(self, place: Place) -> None:
        """Read the batch, before the clock runs."""
        self._held = self.first_batch(place)

    def batches(
        self, steps: range, views: Views, place: Place, *, teacher: bool = True
    ) -> Iterator[Batch]:
        for _ in steps:
            yield self._held


class TimedFeed(Feed):
    """A feed that notes how long each epoch's first batch took, workers' start included."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.first_waits: list[float] = []

    def batches(
        self, steps: range, views: Views, place: Place, *, teacher: bool = True
    ) -> Iterator[Batch]:
        start = time.perf_counter()
        batches = super().batches(steps, views, place, teacher=teacher)
        first = next(batches)
        self.first_waits.append(time.perf_counter() - start)
        yield first
        yield from batches


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One student's epochs from files and from memory."""

    images: int
    files: list[Trained]
    memory: list[Trained]
    first_waits: list[float]
    """Seconds until the first batch of each epoch from files."""
    precision: str

    def ratios(self) -> list[float]:
        return ratios_between([m.seconds for m in self.memory], [f.seconds for f in self.files])

    def milliseconds(self) -> dict[str, float]:
        """Return milliseconds an image of an epoch, and where those from files go."""
        seconds = {
            "from_files": [f.seconds for f in self.files],
            "from_memory": [m.seconds for m in self.memory],
            "waiting_for_the_first_batch": self.first_waits,
            "waiting_for_later_batches": [
                max(0.0, f.seconds * f.data_wait - first)
                for f, first in zip(self.files, self.first_waits, strict=True)
            ],
        }
        numbers = {name: 1000 * s / self.images for name, s in medians(seconds).items()}
        waits = sum(value for name, value in numbers.items() if name.startswith("waiting"))
        slower = numbers["from_files"] - numbers["from_memory"] - waits
        return {**numbers, "slower_steps_beside_workers": slower}


def compare(name: str, table: ImageTable, args: Any) -> Compared:
    """Train the student an epoch from files and from memory in turn."""
    student = make_student(name, args.image_size, len(CLASSES), CLASSES)
    steps = len(table) // args.batch_size
    phase = Phase(name="train", objective=CrossEntropy(0.0), trainable="all", steps=steps)
    config = TrainingConfig(steps=steps, batch_size=args.batch_size, workers=args.workers)
    source = all_for_training(table)
    held = HeldFeed(source, None, config, args.image_size)
    held.hold(Place(pick_device()))
    feed = TimedFeed(source, None, config, args.image_size)
    config = replace(config, precision=settle_precision(args.precision, student, phase, held))
    time_training(student, replace(phase, steps=WARM_UP), held, config)
    files, memory = [], []

    def from_files() -> float:
        files.append(time_training(student, phase, feed, config))
        return files[-1].seconds

    def from_memory() -> float:
        memory.append(time_training(student, phase, held, config))
        return memory[-1].seconds

    take_turns(from_memory, from_files, args.rounds)
    return Compared(
        images=len(table),
        files=files,
        memory=memory,
        first_waits=feed.first_waits,
        precision=config.precision,
    )


def profile_reading(table: ImageTable, image_size: int, batch_size: int) -> dict[str, float]:
    """Return milliseconds an image of each piece of the reading, workers' and main process's."""
    paths = table.paths[:PROFILED_IMAGES]
    transform: Any = train_transform("domainbed", image_size)
    steps = [read_image, *transform.transforms]
    pieces = time_operations(paths, steps)
    images = [transform(read_image(path)) for path in paths[:batch_size]]
    start = time.perf_counter()
    batch = torch.stack(images)
    pieces["collate"] = 1000 * (time.perf_counter() - start) / len(images)
    start = time.perf_counter()
    batch.share_memory_()
    pieces["hand_over"] = 1000 * (time.perf_counter() - start) / len(images)
    return pieces


def profile_main_process(image_size: int, batch_size: int) -> float:
    """Return milliseconds an image of turning the bytes of a batch into floats on the device."""
    pixels = torch.zeros(batch_size, 3, image_size, image_size, dtype=torch.uint8)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        moved = pixels.to(pick_device())
        moved.contiguous(memory_format=torch.channels_last).float().div_(255).sum().item()
        best = min(best, time.perf_counter() - start)
    return 1000 * best / batch_size


def make_profile(compared: Mapping[str, Compared], table: ImageTable, args: Any) -> dict[str, Any]:
    """Say where the time of an epoch goes, and what ratio the pieces alone would give."""
    workers = profile_reading(table, args.image_size, args.batch_size)
    main = profile_main_process(args.image_size, args.batch_size)
    spent = {name: one.milliseconds() for name, one in compared.items()}
    profile: dict[str, Any] = {
        "worker_milliseconds_an_image": {**workers, "total": sum(workers.values())},
        "main_process_milliseconds_an_image": main,
        "milliseconds_an_image": spent,
    }
    if pick_device().type == "cpu":
        # On the CPU, reading and training share the cores: this much is unavoidable.
        reading = sum(workers.values()) / usable_cores() + main
        profile["ratio_if_the_pieces_share_all_cores"] = {
            name: 1 + reading / numbers["from_memory"] for name, numbers in spent.items()
        }
    return profile


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.set_defaults(images=2048)
    parser.add_argument(
        "--students",
        nargs="+",
        default=["tf_efficientnet_lite0", "mobilenetv3_small_100"],
        help="timm names",
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that read images")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    args = parse(parser, arguments, SMOKE)
    begin()
    with tempfile.TemporaryDirectory() as folder:
        table = read_images(args, Path(folder))
        compared = {name: compare(name, table, args) for name in args.students}
        profile = make_profile(compared, table, args)
        images = describe_images(args, table)
    rounds = {name: one.ratios() for name, one in compared.items()}
    spent = profile["milliseconds_an_image"]
    Answer(
        benchmark="data_loading",
        ratios=medians(rounds),
        aims={name: aim for name, aim in AIMS.items() if name in rounds},
        rounds=rounds,
        absolute={
            "images_a_second": {
                name: {kind: 1000 / spent[name][kind] for kind in ("from_files", "from_memory")}
                for name in rounds
            },
            "data_wait_share": {
                name: medians({"share": [f.data_wait for f in one.files]})["share"]
                for name, one in compared.items()
            },
        },
        profile=profile,
        facts={
            "augmentation": "domainbed",
            "image_size": args.image_size,
            "batch_size": args.batch_size,
            "workers": args.workers,
            "timed_steps": args.rounds * (len(table) // args.batch_size),
            "precision": {name: one.precision for name, one in compared.items()},
            **images,
        },
    ).print()


if __name__ == "__main__":
    run(main)

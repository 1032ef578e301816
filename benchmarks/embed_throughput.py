"""Embedding a folder of JPEG files against the bare encoder on batches that are ready in memory.

The two take turns. `embed` is attar's `embed_images` into a new store, from its first line to its
last; `embed_and_check` adds what `attar embed` does before: hashing and decoding every file.
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import (
    Answer,
    begin,
    describe_images,
    make_parser,
    make_teacher,
    medians,
    parse,
    ratios_between,
    read_images,
    run,
    take_turns,
    time_operations,
)
from torch import Tensor

from attar.data.checking import check_files
from attar.data.images import read_image
from attar.data.table import ImageTable
from attar.device import usable_cores
from attar.store.config import EmbedConfig
from attar.store.embed import embed_images
from attar.teachers.base import Teacher

AIM = ">= 0.95"
HELD_BATCHES = 2
PROFILED_IMAGES = 256
SMOKE = {
    "teacher": "ViT-S-32-alt",
    "images": 16,
    "image_size": 32,
    "batch_size": 8,
    "rounds": 1,
}


class Throughput:
    """Seconds that each side takes for all images."""

    def __init__(self, teacher: Teacher, table: ImageTable, config: EmbedConfig) -> None:
        self._teacher, self._table, self._config = teacher, table, config
        self._held = self._prepare_batches()
        self.checking: list[float] = []
        """Seconds that hashing and decoding every file took, one an embedding."""

    def _prepare_batches(self) -> list[Tensor]:
        paths = self._table.paths[: HELD_BATCHES * self._config.batch_size]
        pixels = torch.stack([self._teacher.prepare(read_image(path)) for path in paths])
        return list(pixels.split(self._config.batch_size))

    @torch.inference_mode()
    def bare(self) -> float:
        """Encode as many batches as the images make."""
        start = time.perf_counter()
        for number in range(len(self._table) // self._config.batch_size):
            self._teacher.encode_images(self._held[number % len(self._held)]).cpu()
        return time.perf_counter() - start

    def embed(self) -> float:
        """Embed all images into a new store."""
        start = time.perf_counter()
        check_files(self._table.paths)
        self.checking.append(time.perf_counter() - start)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            embed_images(self._teacher, self._table, Path(folder) / "store", self._config)
            return time.perf_counter() - start

    def warm_up(self) -> None:
        """Encode one batch, so that torch has set itself up."""
        self._teacher.encode_images(self._held[0])


def make_profile(teacher: Teacher, table: ImageTable, bare: float) -> dict[str, Any]:
    """Say what reading costs; `bare` is the encoder's milliseconds an image."""
    prepare: Any = teacher.prepare
    pieces = time_operations(table.paths[:PROFILED_IMAGES], [read_image, *prepare.transforms])
    total = sum(pieces.values())
    profile: dict[str, Any] = {"worker_milliseconds_an_image": {**pieces, "total": total}}
    if teacher_on_cpu(teacher):
        # On the CPU, reading and encoding share the cores: this much is unavoidable.
        shared = bare / (bare + total / usable_cores())
        profile["ratio_if_the_pieces_share_all_cores"] = shared
    return profile


def teacher_on_cpu(teacher: Teacher) -> bool:
    assert teacher.towers is not None
    return next(teacher.towers.image.parameters()).device.type == "cpu"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.set_defaults(images=512)
    parser.add_argument("--teacher", default="ViT-B-32", help="OpenCLIP architecture")
    parser.add_argument("--workers", type=int, default=2, help="processes that read images")
    args = parse(parser, arguments, SMOKE)
    begin()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = read_images(args, folder)
        teacher = make_teacher(folder / "teacher", args.teacher, args.image_size)
        config = EmbedConfig(batch_size=args.batch_size, workers=args.workers)
        throughput = Throughput(teacher, table, config)
        throughput.warm_up()
        bare, embed = take_turns(throughput.bare, throughput.embed, args.rounds)
        milliseconds = 1000 * statistics.median(bare) / len(table)
        profile = make_profile(teacher, table, milliseconds)
        images = describe_images(args, table)
    checked = [a + b for a, b in zip(embed, throughput.checking, strict=True)]
    rounds = {
        "embed": [1 / ratio for ratio in ratios_between(bare, embed)],
        "embed_and_check": [1 / ratio for ratio in ratios_between(bare, checked)],
    }
    seconds = medians({"bare": bare, "embed": embed, "embed_and_check": checked})
    Answer(
        benchmark="embed_throughput",
        ratios=medians(rounds),
        aims={"embed": AIM},
        rounds=rounds,
        absolute={"images_a_second": {kind: len(table) / s for kind, s in seconds.items()}},
        profile=profile,
        facts={
            "teacher": args.teacher,
            "precision": "fp32",
            "image_size": args.image_size,
            "batch_size": args.batch_size,
            "workers": args.workers,
            "timed_steps": args.rounds * (len(table) // args.batch_size),
            **images,
        },
    ).print()


if __name__ == "__main__":
    run(main)

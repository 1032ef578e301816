"""Training with stored teacher features against asking the teacher at every step.

Both run attar's training loop on the same images. The online teacher sees the student's augmented
pixels and is asked in float32, as attar asks it and as its stored answers are (the aim is about
this one), and beside it with bfloat16 weights where the device has them: other, coarser features,
but what the fastest online set-up could do.
"""

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import (
    Answer,
    all_for_training,
    begin,
    describe_images,
    make_parser,
    make_store,
    make_student,
    make_teacher,
    medians,
    parse,
    ratios_between,
    read_images,
    run,
    settle_precision,
    take_turns,
    time_training,
)
from torch import Tensor

from attar.data.table import ImageTable
from attar.device import DTYPES, pick_device, supported_precisions
from attar.methods.base import Phase
from attar.methods.feature_mse import FeatureMSE
from attar.store.store import Store
from attar.teachers.base import Teacher
from attar.training.config import TrainingConfig
from attar.training.feed import Feed

AIM = ">= 8"
Ask = Callable[[Tensor], Tensor]
TEACHER_PRECISIONS = ("fp32", "bf16")
WARM_UP = 2
SMOKE = {
    "student": "test_resnet",
    "teacher": "ViT-S-32-alt",
    "images": 16,
    "image_size": 32,
    "batch_size": 8,
    "rounds": 1,
    "cached_steps": 4,
    "online_steps": 2,
}


def ask_online(teacher: Teacher, precision: str) -> Ask:
    """Return what answers a batch of bytes [B, 3, H, W] with the teacher's unit features [B, D]."""
    assert teacher.towers is not None
    prepare: Any = teacher.prepare
    normalise = prepare.transforms[-1]  # the image has its size already
    device, dtype = pick_device(), DTYPES[precision]
    tower = teacher.towers.image
    if dtype != torch.float32:
        tower = copy.deepcopy(tower).to(dtype)

    @torch.no_grad()
    def ask(images: Tensor) -> Tensor:
        pixels = normalise(images.to(device).float().div_(255))
        return F.normalize(tower(pixels.to(dtype)).float(), dim=-1)

    return ask


class Race:
    """Images a second of the student with a cached and with an online teacher."""

    def __init__(self, args: Any, table: ImageTable, store: Store) -> None:
        self._args, self._store = args, store
        self._source = all_for_training(table)
        self._student = make_student(args.student, args.image_size, store.info.teacher.dim)
        self._phase = Phase(name="distill", objective=FeatureMSE(), trainable="all", steps=1)
        self._config = TrainingConfig(steps=1, batch_size=args.batch_size, workers=args.workers)
        asked, feed = args.precision, self._feed(store)
        precision = settle_precision(asked, self._student, self._phase, feed)
        self._config = replace(self._config, precision=precision)
        self.precision = precision

    def cached(self) -> float:
        """Return images a second with features from the store."""
        return self._train(self._phase, self._feed(self._store), self._args.cached_steps)

    def online(self, ask: Ask) -> float:
        """Return images a second with a teacher that is asked at every step."""
        feed = self._feed(None, online=ask)
        return self._train(replace(self._phase, views="online"), feed, self._args.online_steps)

    def warm_up(self, ask: Ask) -> None:
        """Let torch set up what it sets up at the first step of each kind."""
        self._train(self._phase, self._feed(self._store), WARM_UP)
        feed = self._feed(None, online=ask)
        self._train(replace(self._phase, views="online"), feed, 1)

    def _feed(self, store: Store | None, **options: Any) -> Feed:
        return Feed(self._source, store, self._config, self._args.image_size, **options)

    def _train(self, phase: Phase, feed: Feed, steps: int) -> float:
        trained = time_training(self._student, replace(phase, steps=steps), feed, self._config)
        return steps * self._args.batch_size / trained.seconds


def race_all(
    race: Race, teacher: Teacher, rounds: int
) -> dict[str, tuple[list[float], list[float]]]:
    """Return (cached, online) images a second of the rounds for each precision of the teacher."""
    speeds = {}
    for precision in TEACHER_PRECISIONS:
        if precision in supported_precisions(pick_device()):
            ask = ask_online(teacher, precision)
            race.warm_up(ask)
            speeds[precision] = take_turns(race.cached, partial(race.online, ask), rounds)
    return speeds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--student", default="mobilenetv3_small_100", help="timm name")
    parser.add_argument("--teacher", default="ViT-B-32", help="OpenCLIP architecture")
    parser.add_argument("--workers", type=int, default=2, help="processes that read images")
    parser.add_argument("--cached-steps", type=int, default=20, help="steps a round")
    parser.add_argument("--online-steps", type=int, default=6, help="steps a round")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    args = parse(parser, arguments, SMOKE)
    begin()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = read_images(args, folder)
        teacher = make_teacher(folder / "teacher", args.teacher, args.image_size)
        store = make_store(folder / "store", table, teacher.info.dim)
        race = Race(args, table, store)
        speeds = race_all(race, teacher, args.rounds)
        images = describe_images(args, table)
    rounds = {
        f"teacher in {precision}": [1 / ratio for ratio in ratios_between(cached, online)]
        for precision, (cached, online) in speeds.items()
    }
    Answer(
        benchmark="cached_vs_online",
        ratios=medians(rounds),
        aims={"teacher in fp32": AIM},
        rounds=rounds,
        absolute={
            "images_a_second": {
                f"teacher in {precision}": medians({"cached": cached, "online": online})
                for precision, (cached, online) in speeds.items()
            }
        },
        facts={
            "student": args.student,
            "teacher": args.teacher,
            "student_precision": race.precision,
            "image_size": args.image_size,
            "batch_size": args.batch_size,
            "workers": args.workers,
            "timed_steps": {
                "cached": (args.rounds + 1) * args.cached_steps,
                "online": args.rounds * args.online_steps,
            },
            **images,
        },
    ).print()


if __name__ == "__main__":
    run(main)

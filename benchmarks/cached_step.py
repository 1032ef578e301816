"""A distillation step with stored features against a plain supervised step of the same student.

The methods take turns step by step on the same images. Images are read in the training process, so
that no worker works for one method in another's time.
"""

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import (
    CLASSES,
    Answer,
    all_for_training,
    begin,
    describe_images,
    make_parser,
    make_store,
    make_student,
    medians,
    parse,
    read_images,
    run,
    settle_precision,
)

from attar.device import pick_device, synchronize, to_channels_last
from attar.errors import AttarError
from attar.methods.base import FrozenClassFeatures, Phase, Sizes
from attar.methods.registry import METHODS
from attar.store.store import Store
from attar.students.student import Student
from attar.training.config import TrainingConfig
from attar.training.feed import Feed, Place
from attar.training.finite import is_finite
from attar.training.log import Meter
from attar.training.optim import build_optimizer, learning_rate, set_learning_rate
from attar.training.step import StepModule

SUPERVISED = "erm"
DISTILLED = ("feature-mse", "vl2v-adip")
WARM_UP = 2
AIM = "<= 1.05"
SMOKE = {
    "student": "test_resnet",
    "images": 16,
    "image_size": 32,
    "batch_size": 8,
    "rounds": 3,
    "dim": 16,
}


@dataclass(frozen=True, kw_only=True)
class Took:
    """Seconds of one step."""

    data: float
    """Reading and augmenting the images, looking the features up, moving the batch."""
    compute: float
    lookup: float
    """Looking the features up once more, alone."""

    @property
    def whole(self) -> float:
        return self.data + self.compute

    @property
    def without_images(self) -> float:
        """The step as if the images had been in memory: only what the methods differ in."""
        return self.lookup + self.compute


class Stepper:
    """The steps of one method, one at a time, as the training loop takes them."""

    def __init__(
        self,
        student: Student,
        phase: Phase,
        feed: Feed,
        store: Store | None,
        config: TrainingConfig,
    ) -> None:
        place = Place(pick_device())
        provider = FrozenClassFeatures(unit_rows(len(CLASSES), student.spec.dim))
        self._module = StepModule(to_channels_last(student), phase, provider, config.precision)
        self._module.to(place.device).set_modes()
        self._optimizer = build_optimizer(
            config, student.parameters(), self._module.other_parameters()
        )
        self._device, self._config, self._phase, self._store = (place.device, config, phase, store)
        if store is not None:
            store.index_images()
        self._batches = feed.batches(range(phase.steps), phase.views, place)
        self._meter, self._step = Meter(), 0

    def step(self) -> Took:
        start = time.perf_counter()
        batch = next(self._batches)
        synchronize(self._device)
        arrived = time.perf_counter()
        set_learning_rate(
            self._optimizer, learning_rate(self._config, self._step, self._phase.steps)
        )
        loss = self._module(batch)
        if not is_finite(loss.total):
            raise AttarError(f"the loss is {loss.total} at step {self._step + 1}")
        self._optimizer.zero_grad()
        loss.total.backward()
        self._optimizer.step()
        self._meter.add(loss)
        synchronize(self._device)
        done = time.perf_counter()
        self._step += 1
        return Took(
            data=arrived - start, compute=done - arrived, lookup=self._time_lookup(batch.keys)
        )

    def _time_lookup(self, keys: Sequence[str]) -> float:
        if self._store is None:
            return 0.0
        rows = self._store.image_rows(keys)
        start = time.perf_counter()
        torch.from_numpy(self._store.image_features(rows)).float()
        return time.perf_counter() - start


def unit_rows(count: int, dim: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(count, dim, generator=generator), dim=-1)


def phase_of(method: str, steps: int, student: Student) -> Phase:
    """Return the method's last phase, which trains the backbone, with `steps` steps."""
    recipe = METHODS[method]
    sizes = Sizes(dim=student.spec.dim, trunk_width=1, num_classes=len(CLASSES), num_domains=1)
    last = recipe.phases(recipe.options(), 2 * steps, sizes)[-1]
    return Phase(name=last.name, objective=last.objective, trainable=last.trainable, steps=steps)


def make_steppers(args: Any, folder: Path) -> tuple[dict[str, Stepper], dict[str, Any]]:
    """Return a stepper for each method on the same images, and the facts about them."""
    table = read_images(args, folder)
    store, source = make_store(folder / "store", table, args.dim), all_for_training(table)
    config = TrainingConfig(
        steps=WARM_UP + args.rounds, batch_size=args.batch_size, workers=0, precision=args.precision
    )
    steppers = {}
    for method in (SUPERVISED, *DISTILLED):
        supervised = method == SUPERVISED
        student = make_student(
            args.student,
            args.image_size,
            len(CLASSES) if supervised else args.dim,
            CLASSES if supervised else (),
        )
        phase = phase_of(method, WARM_UP + args.rounds, student)
        own = None if supervised else store
        feed = Feed(source, own, config, args.image_size)
        precision = settle_precision(config.precision, student, phase, feed)
        config = replace(config, precision=precision)  # the supervised step decides for all
        steppers[method] = Stepper(student, phase, feed, own, config)
    facts = {"precision": config.precision, "augmentation": config.augmentation, "workers": 0}
    return steppers, {**facts, **describe_images(args, table)}


def take_steps(steppers: Mapping[str, Stepper], rounds: int) -> dict[str, list[Took]]:
    """Return the timed steps of each method; who begins a round changes from round to round."""
    names = list(steppers)
    took: dict[str, list[Took]] = {name: [] for name in names}
    for number in range(WARM_UP + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            one = steppers[name].step()
            if number >= WARM_UP:
                took[name].append(one)
    return took


def compare(took: Mapping[str, Sequence[Took]]) -> dict[str, list[float]]:
    """Return each round's ratios, with and without the reading of images."""
    rounds = {}
    for method in DISTILLED:
        pairs = list(zip(took[method], took[SUPERVISED], strict=True))
        rounds[method] = [ours.whole / plain.whole for ours, plain in pairs]
        rounds[f"{method} without images"] = [
            ours.without_images / plain.without_images for ours, plain in pairs
        ]
    return rounds


def milliseconds(steps: Sequence[Took]) -> dict[str, float]:
    return {
        part: 1000 * statistics.median(getattr(one, part) for one in steps)
        for part in ("whole", "data", "compute", "lookup")
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.set_defaults(rounds=30, images=512)
    parser.add_argument("--student", default="mobilenetv3_small_100", help="timm name")
    parser.add_argument("--dim", type=int, default=512, help="width of the teacher's features")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    args = parse(parser, arguments, SMOKE)
    begin()
    with tempfile.TemporaryDirectory() as folder:
        steppers, facts = make_steppers(args, Path(folder))
        took = take_steps(steppers, args.rounds)
    rounds = compare(took)
    settings = {"student": args.student, "image_size": args.image_size, "dim": args.dim}
    Answer(
        benchmark="cached_step",
        ratios=medians(rounds),
        aims=dict.fromkeys(rounds, AIM),
        rounds=rounds,
        absolute={"milliseconds_a_step": {name: milliseconds(t) for name, t in took.items()}},
        facts={**settings, "batch_size": args.batch_size, "timed_steps": args.rounds, **facts},
    ).print()


if __name__ == "__main__":
    run(main)

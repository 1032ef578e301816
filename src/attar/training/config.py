"""What a user may choose about training; free of torch so that `--help` is quick."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from attar.errors import UsageError

_DEFAULT_EPOCHS = 10.0
_DEFAULT_DECAY = 0.999
_SWAD_VALIDATIONS = 25


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Options under `--training.`."""

    steps: int | None = None
    """Budget in optimiser steps, over all phases together."""
    epochs: float | None = None
    """Budget in passes over the training images, turned into steps (10 when neither is given)."""
    batch_size: int = 64
    """Images a step and process; a source domain with the `per-domain` sampler."""
    lr: float | None = None
    """Peak learning rate; 1e-3 where the method does not set another."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """`adam` adds weight decay to the gradient, `adamw` decouples it; `sgd` has momentum 0.9."""
    weight_decay: float | None = None
    """Not applied to biases and normalisation parameters; 0.05 where the method does not set
    another."""
    schedule: Literal["cosine", "step", "one-cycle", "constant"] = "cosine"
    """Over each phase: `cosine` falls to zero, `step` divides by 10 at each milestone, `one-cycle`
    rises from lr/25 to lr over the first 30 % and falls to lr/250,000 (PyTorch's OneCycleLR)."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Shares of a phase's steps after which `step` divides the learning rate by 10."""
    warmup: float | None = None
    """Share of each phase's steps in which the learning rate rises linearly; 0.05 where the method
    does not set another."""
    clip_norm: float | None = None
    """Greatest gradient norm, or none."""
    average: Literal["none", "ema", "tail", "swad", "swad-code"] = "none"
    """Which average of the weights is saved in place of the last ones: `ema`, exponential; `tail`,
    the mean over the last steps of a phase; `swad`, over the valley of the validation loss, in the
    last phase; `swad-code`, the same with all that the official class counts twice."""
    ema: float | None = None
    """Decay of `ema` (0.999), which a value given here also switches on; `ema` and `tail` weights
    are validated too, with averaged BatchNorm statistics. Those of what is saved are measured anew,
    as they are in the last phase's validations under `--training.selection best`."""
    tail_share: float = 0.25
    """Share of a phase's steps whose weights `tail` averages, counted back from its end."""
    swad_converge: int = 3
    """Validations that `swad` waits for: the first whose loss is the least of so many starts the
    window."""
    swad_tolerance: int = 6
    """Validations in a row above the threshold that end `swad`'s window, and how far back
    validations before its start may join."""
    swad_ratio: float = 0.3
    """How far `swad`'s threshold lies above the mean loss of the validations that it waited for."""
    swad_segments: Literal["fresh", "vl2v"] = "fresh"
    """`fresh`: every validation begins a new average, as the original does; `vl2v`: only those at a
    multiple of 1000 steps after 2500, so that segments overlap, as VL2V's code does by default."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` times a few steps each way on this machine and keeps the fastest."""
    sampler: Literal["uniform", "shards", "per-domain", "half-few-shot"] = "uniform"
    """How a batch is drawn from the training images; `shards` reads tars one after the other."""
    augmentation: Literal[
        "none",
        "domainbed",
        "domainbed-randconv",
        "flip-crop",
        "imagenet",
        "li2023",
        "li2023-randaugment",
    ] = "domainbed"
    """What the student's images go through; `domainbed-randconv` adds random convolutions, which
    change textures and keep shapes (Xu et al., ICLR 2021)."""
    shared_augmentation: bool = False
    """Draw one crop and flip for the whole batch, as the official code of Li et al. does; the
    images then need one size, as `li2023` gives them."""
    workers: int = 2
    """Processes that read images; 0 reads them in the training process."""
    checkpoint_every: int = 200
    """Steps between checkpoints; a killed run goes on from the last one."""
    validate_every: int | None = None
    """Steps between validations on source images; by default only at the end of each phase, ten
    times a phase where the best weights are wanted, and 25 times in the phase that `swad`
    averages (200 of 5000 steps, as VL2V has it)."""
    selection: Literal["last", "best"] = "last"
    """Which weights end a phase: the last ones, or the best on source validation images, those that
    the phase began with among them. The phase that `swad` averages ends in its average."""
    snapshots: int = 0
    """Students kept at the ends of the last N epochs; results are then also averaged over them (Li
    et al. report the mean of the last 5 epochs)."""
    objective_lr_factor: float | None = None
    """Learning rate of the objective's own parameters relative to the student's; 1 where the method
    does not set another."""
    seed: int = 0
    """Decides batch order, augmentation and dropout."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""

    UNSET: ClassVar[Mapping[str, Any]] = {
        "lr": 1e-3,
        "weight_decay": 0.05,
        "warmup": 0.05,
        "objective_lr_factor": 1.0,
    }
    """What None means where the method sets nothing: only such options can a method set, since no
    value of theirs that a user gives can be taken for the default."""

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            UsageError: a value out of its range, named with its option.
        """
        if self.steps is not None and self.epochs is not None:
            raise UsageError("give --training.steps or --training.epochs, not both")
        for name in ("steps", "validate_every", "batch_size", "checkpoint_every", "log_every"):
            self._require(name, minimum=1)
        for name in ("workers", "weight_decay", "objective_lr_factor", "snapshots"):
            self._require(name, minimum=0)
        for name in ("epochs", "lr", "clip_norm"):
            self._require(name, above=0)
        self._require("warmup", minimum=0, below=1)
        self._require("ema", minimum=0, below=1)
        self._require("tail_share", above=0, below=1)
        for name in ("swad_converge", "swad_tolerance"):
            self._require(name, minimum=1)
        self._require("swad_ratio", minimum=0)
        if self.ema is not None and self.average not in ("none", "ema"):
            raise UsageError(
                f"--training.ema {self.ema} is the decay of --training.average ema: leave it out "
                f"with {self.average}"
            )
        if not all(0 < share < 1 for share in self.milestones):
            raise UsageError(f"--training.milestones {self.milestones}: shares between 0 and 1")

    def _require(
        self,
        name: str,
        *,
        minimum: float = -math.inf,
        above: float = -math.inf,
        below: float = math.inf,
    ) -> None:
        value = getattr(self, name)
        if value is None or (value >= minimum and above < value < below):
            return
        wanted = f"above {above:g}" if math.isfinite(above) else f"at least {minimum:g}"
        if math.isfinite(below):
            wanted += f" and below {below:g}"
        raise UsageError(f"--training.{name.replace('_', '-')} {value}: must be {wanted}")

    def of(self, name: str) -> float:
        """Return one of the options that a method may set, or what it is when nobody did."""
        value = getattr(self, name)
        return float(self.UNSET[name] if value is None else value)

    @property
    def averaging(self) -> str:
        """Which average is taken: `average`, or "ema" where only its decay was given."""
        return "ema" if self.average == "none" and self.ema is not None else self.average

    @property
    def ema_decay(self) -> float:
        """The decay of the exponential average."""
        return _DEFAULT_DECAY if self.ema is None else self.ema

    @property
    def chooses_by_validation(self) -> str | None:
        """The option that cannot do without validation images, as it is written; None: there is
        none."""
        if self.average.startswith("swad"):
            return f"--training.average {self.average}"
        return "--training.selection best" if self.selection == "best" else None

    def validation_interval(self, phase_steps: int, *, averaged: bool = True) -> int | None:
        """Return the steps between validations in a phase, or None: only at its end.

        `averaged` says whether an average is taken in this phase: `swad` takes one in the last.
        """
        if self.validate_every is not None:
            return self.validate_every
        if averaged and self.average.startswith("swad"):
            return max(1, phase_steps // _SWAD_VALIDATIONS)
        return max(1, phase_steps // 10) if self.selection == "best" else None

    def total_steps(self, num_images: int, global_batch: int) -> int:
        """Return the budget in optimiser steps: `steps`, or ⌈epochs · num_images / global_batch⌉.

        `num_images` counts the training images, `global_batch` the images of one step over all
        processes.
        """
        if self.steps is not None:
            return self.steps
        epochs = _DEFAULT_EPOCHS if self.epochs is None else self.epochs
        return max(1, math.ceil(epochs * num_images / global_batch))

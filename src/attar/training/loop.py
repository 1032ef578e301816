"""The training loop: one loop runs a list of phases, and goes on exactly where it was killed.

Each step: 1. seed the model's random numbers from the step, 2. loss, 3. stop if it is not finite,
4. backward, clip, optimiser, 5. average the weights, 6. log, validate and checkpoint when due.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from attar.device import naming_dead_workers, pick_device, to_channels_last
from attar.errors import AttarError, UsageError
from attar.files import atomic_path
from attar.methods.base import ClassFeatures, Phase
from attar.students.student import Student, save_student
from attar.training.averaging import Averager, build_averager, chooses, validated_weights
from attar.training.batchnorm import reestimate_from
from attar.training.checkpoint import (
    Best,
    Checkpoints,
    State,
    load_own_state,
    own_state,
    read_tensors,
    save_tensors,
)
from attar.training.config import TrainingConfig
from attar.training.feed import IF_A_WORKER_DIES, Feed, Place
from attar.training.finite import NAN_FILE, is_finite, not_finite
from attar.training.log import Meter, MetricsLog
from attar.training.optim import build_optimizer, learning_rate, set_learning_rate
from attar.training.precision import choose_precision, settle_precision
from attar.training.progress import TrainingBar
from attar.training.seeds import derive_seed
from attar.training.snapshots import Snapshots
from attar.training.step import StepModule
from attar.types import Batch, Loss

Validate = Callable[[Student], Mapping[str, float]]
"""Measures a student on source validation data; "selection" (higher is better) picks the best."""


@naming_dead_workers(IF_A_WORKER_DIES)
def train(
    student: Student,
    phases: Sequence[Phase],
    feed: Feed,
    class_features: ClassFeatures | None,
    config: TrainingConfig,
    run_dir: Path,
    validate: Validate | None = None,
    anchor: Student | None = None,
) -> Path:
    """Train the student through all phases and return the folder `run_dir/student`.

    A run that was killed goes on from its last checkpoint and ends as an unbroken one would; a
    finished run returns at once. The objectives' own parameters and learnt class features end in
    `run_dir/objective.safetensors`. Under `torchrun` or `accelerate launch` every process calls
    this alike.

    Args:
        student: trained in place.
        phases: run one after the other; the optimiser, the schedule and the average are new in
            each.
        feed: the training batches.
        class_features: provider of the class features, or None.
        config: the same as the feed's.
        run_dir: receives metrics.jsonl, tensorboard/, checkpoints/ and student/.
        validate: called on source validation data with the student in evaluation mode.
        anchor: frozen second network for objectives that ask for one; a copy of the initial
            student when not given.

    Raises:
        UsageError: `run_dir` holds another run, or "best" or SWAD is asked without validation.
        AttarError: the loss is not finite, data is missing, or a worker died.
    """
    accelerator = Accelerator(cpu=pick_device().type == "cpu", mixed_precision="no")
    checkpoints = Checkpoints(run_dir / "checkpoints")
    if accelerator.is_main_process:
        checkpoints.recover()
    accelerator.wait_for_everyone()
    state = checkpoints.read_state()
    accelerator.wait_for_everyone()  # until all have read: the main process writes it next
    plan = tuple((phase.name, phase.steps) for phase in phases)
    if state is not None and state.plan != plan:
        raise UsageError(
            f"{run_dir} holds a run with phases {dict(state.plan)} (steps), not {dict(plan)}; "
            "choose another folder or delete it"
        )
    if state is not None and state.done and (run_dir / "student").is_dir():
        return run_dir / "student"
    if config.chooses_by_validation and validate is None:
        raise UsageError(f"{config.chooses_by_validation} needs validation images; leave it out")
    for phase in phases:
        feed.check(phase.views)
    training = _Training(
        student=to_channels_last(student.to(accelerator.device)),
        phases=phases,
        feed=feed,
        class_features=class_features,
        config=config,
        run_dir=run_dir,
        validate=validate,
        accelerator=accelerator,
        checkpoints=checkpoints,
    )
    training.open(state, plan, anchor)
    training.run()
    return run_dir / "student"


@dataclass(kw_only=True)
class _Training:
    """A run under way."""

    student: Student
    phases: Sequence[Phase]
    feed: Feed
    class_features: ClassFeatures | None
    config: TrainingConfig
    run_dir: Path
    validate: Validate | None
    accelerator: Accelerator
    checkpoints: Checkpoints
    state: State = field(init=False)
    anchor: Student | None = field(init=False, default=None)
    meter: Meter = field(init=False, default_factory=Meter)
    lr: float = field(init=False, default=0.0)
    log: MetricsLog | None = field(init=False, default=None)
    bar: TrainingBar = field(init=False)
    snapshots: Snapshots = field(init=False)

    @property
    def place(self) -> Place:
        """This process among those that train together."""
        accelerator = self.accelerator
        return Place(accelerator.device, accelerator.process_index, accelerator.num_processes)

    # Beginning, or taking up again

    def open(
        self, state: State | None, plan: tuple[tuple[str, int], ...], anchor: Student | None
    ) -> None:
        """Begin a run, or put everything back as it was at the last checkpoint."""
        wants_anchor = any(phase.objective.needs_anchor for phase in self.phases)
        keeps_initial = wants_anchor or any(phase.start == "initial" for phase in self.phases)
        if wants_anchor:
            self.anchor = copy.deepcopy(self.student if anchor is None else anchor)
            self.anchor.requires_grad_(False).eval().to(self.place.device)
        if state is None:
            if keeps_initial and self.accelerator.is_main_process:
                self.checkpoints.save_initial(self.student.state_dict())
            precision = self._choose_precision()
            self.state = State(phase=0, step=0, precision=precision, plan=plan)
            self._save_last()
        else:
            self.state = state
            if self.anchor is not None and anchor is None:
                self.anchor.load_state_dict(read_tensors(self.checkpoints.initial, "student"))
            self.meter = Meter(state.meter)
            self._load(self.checkpoints.last, "student")

    def _load(self, folder: Path, name: str) -> None:
        """Load the student's weights `name` and what goes with them from a checkpoint."""
        self.student.load_state_dict(read_tensors(folder, name))
        load_own_state(read_tensors(folder, "objective"), self.phases, self.class_features)

    def _choose_precision(self) -> str:
        """Return the configured precision, or time the longest phase's step; changes no weight."""
        phase = max(self.phases, key=lambda phase: phase.steps)

        def measure() -> str:
            batch = next(iter(self.feed.batches(range(1), phase.views, self.place)))
            return choose_precision(self._step_module(phase, "fp32"), batch)

        return settle_precision(self.config.precision, self.place.device, measure)

    def _step_module(self, phase: Phase, precision: str) -> StepModule:
        module = StepModule(self.student, phase, self.class_features, precision, self.anchor)
        return module.to(self.place.device)

    # The phases

    def run(self) -> None:
        """Run what is left of the phases, then save the student."""
        total = sum(phase.steps for phase in self.phases)
        epoch = self.feed.steps_per_epoch(self.place.world)
        self.snapshots = Snapshots(self.run_dir, total, epoch, self.config.snapshots)
        main = self.accelerator.is_main_process
        with ExitStack() as stack:
            if main:
                self.log = stack.enter_context(MetricsLog(self.run_dir, self.state.step))
            self.bar = stack.enter_context(TrainingBar(total, self.state.step, silent=not main))
            for index in range(self.state.phase, len(self.phases)):
                self._run_phase(index)
        if main:
            self._finish()
        self.accelerator.wait_for_everyone()

    def _run_phase(self, index: int) -> None:
        phase = self.phases[index]
        first = sum(phase.steps for phase in self.phases[:index])
        if phase.start == "initial" and self.state.step == first:
            self.student.load_state_dict(read_tensors(self.checkpoints.initial, "student"))
        module = self._step_module(phase, self.state.precision)
        config, model = self.config, self.student
        optimizer = build_optimizer(config, model.parameters(), module.other_parameters())
        last = index + 1 == len(self.phases)
        averager = build_averager(config, model, phase.steps, last=last, share=phase.interpolation)
        saved = self.checkpoints.read_optimizer()
        if saved is not None:
            optimizer.load_state_dict(saved)
            if averager is not None:
                averager.load_state_dict(read_tensors(self.checkpoints.last, "average"))
        # Before `prepare`, where all meet: the main process may write a best one right after.
        begins = self.state.step == first and self.checkpoints.read_best(index) is None
        wrapped, optimizer = self.accelerator.prepare(module, optimizer)
        module.set_modes()
        end = first + phase.steps
        if begins and self.config.selection == "best":
            self._validate(index, averager)
            module.set_modes()
        batches = iter(self.feed.batches(range(self.state.step, end), phase.views, self.place))
        for step in range(self.state.step, end):
            began = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - began
            self.lr = learning_rate(self.config, step - first, phase.steps)
            set_learning_rate(optimizer, self.lr)
            self._step(wrapped, optimizer, batch, phase.name)
            if averager is not None:
                averager.update(self.student)
            seconds = time.perf_counter() - began
            self.meter.add_time(seconds, waited)
            self.state = replace(self.state, step=step + 1, seconds=self.state.seconds + seconds)
            self._after_step(index, end, module, optimizer, averager)
        self._end_phase(index, averager)
        self.accelerator.free_memory()

    def _step(
        self, wrapped: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, phase: str
    ) -> None:
        """Take one optimiser step."""
        torch.manual_seed(derive_seed(self.config.seed, "model", self.state.step, self.place.rank))
        loss: Loss = wrapped(batch)
        self._check_finite(loss.total, "loss", loss, batch, phase)
        optimizer.zero_grad()
        self.accelerator.backward(loss.total)
        if self.config.clip_norm is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            norm = self.accelerator.clip_grad_norm_(parameters, self.config.clip_norm)
            self._check_finite(norm, "gradient norm", loss, batch, phase)
        optimizer.step()
        self.meter.add(loss)

    def _check_finite(self, value: Tensor, what: str, loss: Loss, batch: Batch, phase: str) -> None:
        """Stop before a loss or gradient that is not finite reaches the weights."""
        if not is_finite(value):
            step = self.state.step
            where = f"step {step + 1} of phase {phase}"
            paths = self.feed.paths(step, self.place)
            raise not_finite(what, value, where, loss, batch, paths, self.run_dir / NAN_FILE)

    # What is due after a step

    def _after_step(
        self,
        index: int,
        end: int,
        module: StepModule,
        optimizer: torch.optim.Optimizer,
        averager: Averager | None,
    ) -> None:
        step, config = self.state.step, self.config
        phase = self.phases[index].name
        self.bar.advance(step, phase)
        ends = step == end
        if ends or step % config.log_every == 0:
            self._write_log(phase)
        averaged = averager is not None
        interval = config.validation_interval(self.phases[index].steps, averaged=averaged)
        validates = ends or (interval and step % interval == 0)
        if validates and self.validate is not None:
            self._validate(index, averager)
            module.set_modes()
        if self.snapshots.due(step) and self.accelerator.is_main_process:
            self.snapshots.save(self.student, averager, self.feed, step)
        if not ends and (validates or step % config.checkpoint_every == 0):
            average = {} if averager is None else averager.state_dict()
            self._save_last({"average": average}, optimizer.state_dict())

    def _write_log(self, phase: str) -> None:
        means = self.meter.means()
        reduced = self.accelerator.reduce(torch.stack(list(means.values())), reduction="mean")
        numbers = {
            **dict(zip(means, reduced.tolist(), strict=True)),
            "lr": self.lr,
            **self.meter.speed(self.feed.global_batch(self.place.world)),
        }
        if self.log is not None:
            self.log.write(self.state.step, phase, "train", self.state.seconds, numbers)
        self.bar.report(self.state.step, phase, numbers)
        self.meter = Meter()

    def _validate(self, index: int, averager: Averager | None) -> None:
        """Measure the weights that would be saved; keep them if they are the phase's best."""
        assert self.validate is not None
        selects = self.config.selection == "best" and not chooses(averager)
        ends_run = index + 1 == len(self.phases)
        measured: list[Any] = [None]
        with validated_weights(self.student, averager), torch.no_grad():
            self.student.eval()
            if self.accelerator.is_main_process:
                if selects and ends_run and averager is not None:  # the network that is saved
                    reestimate_from(self.feed, self.student, self.snapshots.total_steps)
                measured = [dict(self.validate(self.student))]
        metrics: dict[str, float] = broadcast_object_list(measured)[0]
        if averager is not None:
            averager.validated(self.state.step, metrics)
        if self.log is not None:
            values = {f"val/{name}": float(value) for name, value in metrics.items()}
            phase = self.phases[index].name
            self.log.write(self.state.step, phase, "val", self.state.seconds, values)
            if selects:
                self._keep_if_best(index, metrics, averager)
        self.accelerator.wait_for_everyone()

    def _keep_if_best(
        self, index: int, metrics: Mapping[str, float], averager: Averager | None
    ) -> None:
        selection = metrics.get("selection", math.nan)
        if not math.isfinite(selection):
            raise AttarError(
                f"validation gave no number to select by at step {self.state.step}; use "
                "--training.selection last"
            )
        best = self.checkpoints.read_best(index)
        if best is None or selection > best.selection:
            live = self.student.state_dict()
            self.checkpoints.save_best(
                Best(phase=index, step=self.state.step, selection=selection),
                {
                    "student": live if averager is None else averager.weights(),
                    "live": {} if averager is None else live,
                    "objective": own_state(self.phases, self.class_features),
                },
            )

    def _save_last(
        self,
        extra: Mapping[str, Mapping[str, Tensor]] | None = None,
        optimizer: Mapping[str, Any] | None = None,
    ) -> None:
        """Checkpoint; without an optimiser the next phase begins from here."""
        if self.accelerator.is_main_process:
            self.state = replace(self.state, meter=self.meter.state())
            tensors = {
                "student": self.student.state_dict(),
                "objective": own_state(self.phases, self.class_features),
            }
            self.checkpoints.save_last(self.state, {**tensors, **(extra or {})}, optimizer)
        self.accelerator.wait_for_everyone()

    # Endings

    def _end_phase(self, index: int, averager: Averager | None) -> None:
        """Choose the phase's weights: the next phase begins from the raw ones of that moment."""
        evaluated = self.student.state_dict() if averager is None else averager.weights()
        best = self.checkpoints.read_best(index) if self.config.selection == "best" else None
        if best is not None and not chooses(averager):
            folder = self.checkpoints.best
            evaluated = read_tensors(folder, "student")
            self._load(folder, "student" if averager is None else "live")
        self.state = replace(self.state, phase=index + 1)
        last = index + 1 == len(self.phases)
        self._save_last({"evaluated": evaluated} if last else None)

    def _finish(self) -> None:
        """Save the student (averaged or best weights as chosen) and mark the run as done."""
        self.student.load_state_dict(read_tensors(self.checkpoints.last, "evaluated"))
        self.student.requires_grad_(True).eval()
        if self.config.averaging != "none" or any(p.interpolation != 1 for p in self.phases):
            reestimate_from(self.feed, self.student, self.state.step)
        self.student.to(memory_format=torch.contiguous_format)
        save_student(self.student, self.run_dir / "student")
        own = own_state(self.phases, self.class_features)
        if own:
            with atomic_path(self.run_dir / "objective.safetensors") as temporary:
                save_tensors(temporary, own)
        self.checkpoints.mark_done(self.state)

"""Checkpoints: folders that are whole or absent, holding all that an exact resume needs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attar.errors import AttarError
from attar.files import atomic_folder, read_json, recover_folder, write_json
from attar.methods.base import ClassFeatures, Phase

_STATE, _OPTIMIZER = "state.json", "optimizer.pt"


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a run stands."""

    phase: int
    """Index of the phase to go on with; the number of phases when all are over."""
    step: int
    """Optimiser steps done, over all phases."""
    precision: str
    """What the run computes in, whatever `auto` would find today."""
    seconds: float = 0.0
    """Training time so far."""
    plan: tuple[tuple[str, int], ...]
    """Name and steps of each phase, to notice that a folder belongs to another run."""
    meter: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    """Sums of the log line under way."""
    done: bool = False


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best validation of a phase."""

    phase: int
    step: int
    selection: float


class Checkpoints:
    """The folder `run_dir/checkpoints` with `last`, `best` and `initial`."""

    def __init__(self, folder: Path) -> None:
        self.last, self.best, self.initial = (folder / n for n in ("last", "best", "initial"))

    def recover(self) -> None:
        """Finish or undo whatever a crash interrupted."""
        for folder in (self.last, self.best, self.initial):
            recover_folder(folder)

    def save_last(
        self,
        state: State,
        tensors: Mapping[str, Mapping[str, Tensor]],
        optimizer: Mapping[str, Any] | None = None,
    ) -> None:
        """Replace the last checkpoint; each entry of `tensors` becomes one safetensors file."""
        with atomic_folder(self.last) as temporary:
            _save_all(temporary, tensors)
            if optimizer is not None:
                torch.save(dict(optimizer), temporary / _OPTIMIZER)
            write_json(temporary / _STATE, asdict(state))

    def read_state(self) -> State | None:
        """Return where the run stands, or None when it never began."""
        if not (self.last / _STATE).exists():
            return None
        values = read_json(self.last / _STATE)
        values["plan"] = tuple((name, steps) for name, steps in values["plan"])
        values["meter"] = {k: (total, count) for k, (total, count) in values["meter"].items()}
        return State(**values)

    def save_initial(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep the weights that the run began with."""
        with atomic_folder(self.initial) as temporary:
            _save_all(temporary, {"student": tensors})

    def mark_done(self, state: State) -> None:
        """Note that the student is saved and nothing is left to do."""
        write_json(self.last / _STATE, asdict(replace(state, done=True)))

    def read_optimizer(self) -> dict[str, Any] | None:
        """Return the optimiser's state dict, or None at the beginning of a phase.

        Raises:
            AttarError: the file is damaged.
        """
        path = self.last / _OPTIMIZER
        if not path.exists():
            return None
        try:
            loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except MemoryError:
            raise
        except Exception as error:  # a broken file has torch raise one of many kinds
            raise AttarError(
                f"{path} is damaged ({error}); delete {self.last.parent} and run again: training "
                "then starts anew"
            ) from error
        return loaded

    def save_best(self, best: Best, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Replace the best checkpoint."""
        with atomic_folder(self.best) as temporary:
            _save_all(temporary, tensors)
            write_json(temporary / _STATE, asdict(best))

    def read_best(self, phase: int) -> Best | None:
        """Return the best validation of a phase, or None before the first one."""
        if not (self.best / _STATE).exists():
            return None
        best = Best(**read_json(self.best / _STATE))
        return best if best.phase == phase else None


def save_tensors(path: Path, values: Mapping[str, Tensor]) -> None:
    """Write tensors as a safetensors file, which takes neither shared storage nor channels_last."""
    copies = {
        k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in values.items()
    }
    save_file(copies, path)


def _save_all(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write `{name: {key: tensor}}` as `folder/name.safetensors`; empty ones are left out."""
    for name, values in tensors.items():
        if values:
            save_tensors(folder / f"{name}.safetensors", values)


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """Return the tensors of `folder/name.safetensors`; none when it was left out as empty.

    Raises:
        AttarError: the file is damaged.
    """
    path = folder / f"{name}.safetensors"
    if not path.exists():
        return {}
    try:
        return load_file(path)
    except Exception as error:  # safetensors has its own exception type for a broken file
        raise AttarError(f"{path} is damaged ({error}); delete {folder} and run again") from error


def own_state(phases: Sequence[Phase], class_features: ClassFeatures | None) -> dict[str, Tensor]:
    """Return what training learns beside the student: objectives and learnt class features.

    Keys are "phase.parameter" and "class_features.parameter"; frozen towers are left out.
    """
    state = {
        f"{phase.name}.{key}": value
        for phase in phases
        for key, value in phase.objective.state_dict().items()
    }
    return state | {f"class_features.{key}": value for key, value in _learnt(class_features)}


def load_own_state(
    state: Mapping[str, Tensor], phases: Sequence[Phase], class_features: ClassFeatures | None
) -> None:
    """Put back what `own_state` returned."""
    for phase in phases:
        prefix = f"{phase.name}."
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        phase.objective.load_state_dict(own)
    with torch.no_grad():
        for key, parameter in _learnt(class_features):
            parameter.copy_(state[f"class_features.{key}"])


def _learnt(class_features: ClassFeatures | None) -> Iterator[tuple[str, nn.Parameter]]:
    if class_features is not None:
        yield from ((k, p) for k, p in class_features.named_parameters() if p.requires_grad)

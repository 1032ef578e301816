"""One module for everything a step differentiates, so that one wrapper synchronises it all."""

from typing import Any

import torch
from torch import Tensor, nn

from attar.device import autocast
from attar.methods.base import ClassFeatures, Objective, Phase
from attar.students.student import Student
from attar.types import Batch, Loss, Outputs


class StepModule(nn.Module):
    """Student, objective and class features of one phase: a batch in, its loss out.

    The student runs in the chosen precision, the objective always in float32. The anchor is kept
    out of the module tree: it is neither trained, synchronised nor saved.
    """

    def __init__(
        self,
        student: Student,
        phase: Phase,
        class_features: ClassFeatures | None,
        precision: str,
        anchor: Student | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.objective: Objective = phase.objective
        self.class_features = class_features
        self.trainable = phase.trainable
        self.precision = precision
        self._anchor = (anchor,)
        select_trainable(student, phase)

    def forward(self, batch: Batch) -> Loss:
        """Return the loss of a batch whose tensors are on the module's device."""
        outputs = self._run(self.student, batch.images)
        class_features = None if self.class_features is None else self.class_features()
        extra: dict[str, Any] = {}
        anchor = self._anchor[0]
        if self.objective.needs_anchor and anchor is not None:
            with torch.no_grad():
                extra["anchor"] = self._run(anchor, batch.images)
        loss: Loss = self.objective(outputs, batch, class_features, **extra)
        return loss

    def _run(self, student: Student, images: Tensor) -> Outputs:
        asked = {
            "trunk": self.objective.needs_trunk,
            "regions": self.objective.needs_regions,
            "layers": self.objective.needs_layers,
        }
        with autocast(images.device, self.precision):
            outputs: Outputs = student(images, **asked)
        return Outputs(
            features=outputs.features.float(),
            trunk=None if outputs.trunk is None else outputs.trunk.float(),
            regions=None if outputs.regions is None else outputs.regions.float(),
            layers=None if outputs.layers is None else tuple(one.float() for one in outputs.layers),
        )

    def set_modes(self) -> None:
        """Put trained parts in training mode and frozen ones in evaluation mode."""
        self.train()
        if self.trainable == "projection":
            self.student.eval()
            self.student.train_projection()
        elif self.trainable == "backbone":
            self.student.train_projection(False)
        if self.class_features is not None:
            self.class_features.eval()

    def other_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the objective and of the class features."""
        others = list(self.objective.parameters())
        if self.class_features is not None:
            others += self.class_features.parameters()
        return others


def select_trainable(student: Student, phase: Phase) -> None:
    """Let gradients reach exactly the parts that the phase trains.

    A frozen backbone needs no other care: without a parameter or input that requires a gradient,
    autograd builds no graph through it.
    """
    for parameter in student.backbone_parameters():
        parameter.requires_grad_(phase.trainable in ("all", "backbone"))
    for parameter in student.projection_parameters():
        parameter.requires_grad_(phase.trainable in ("all", "projection"))

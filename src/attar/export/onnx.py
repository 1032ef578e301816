"""The student as one ONNX file: pixels in [0, 1] in, unit embedding or logits out."""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from attar.errors import AttarError
from attar.runtime.bundle import INPUT
from attar.students.student import Student


class DeployedStudent(nn.Module):
    """What runs on a device: the student with its normalisation, projection and L2 norm inside.

    forward(image [B, 3, H, W] in [0, 1]) gives unit embeddings [B, D], or for head "classes" the
    logits [B, C] as they are.
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student
        self.unit = student.spec.head == "embedding"

    def forward(self, image: Tensor) -> Tensor:
        """Return the bundle's output for images [B, 3, H, W]."""
        features: Tensor = self.student(image).features
        return functional.normalize(features, dim=-1) if self.unit else features


def deployed(student: Student) -> DeployedStudent:
    """Return a copy of the student on the CPU, in float32 and evaluation mode, ready to export."""
    own = copy.deepcopy(student).to(device="cpu", dtype=torch.float32)
    return DeployedStudent(own.to(memory_format=torch.contiguous_format)).eval()


def output_name(student: Student) -> str:
    """Return the name of the model's output: "embedding" or "logits"."""
    return "embedding" if student.spec.head == "embedding" else "logits"


def write_onnx(student: Student, path: Path) -> None:
    """Write the student to one ONNX file with a dynamic batch, without the exporter's chatter.

    Raises:
        AttarError: torch cannot export this architecture; its first line of reason is given.
    """
    size = student.spec.image_size
    # A batch of 2: torch.export would take a batch of 1 for a constant.
    example = torch.zeros(2, 3, size, size)
    with quiet():
        try:
            program = torch.onnx.export(
                deployed(student),
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[output_name(student)],
                dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
                verbose=False,
            )
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise AttarError(
                f"{student.spec.name} cannot be exported to ONNX: {reason[0]}; "
                "choose another student architecture"
            ) from error
        if program is None:
            raise AttarError(f"{student.spec.name} cannot be exported to ONNX: torch gave nothing")
        program.save(path, external_data=False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence an exporter's prints, warnings and log lines; its errors still raise."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)

"""Going on from a student that was trained before: `--start-from RUN`."""

from pathlib import Path
from typing import Any

import torch

from attar.errors import UsageError
from attar.students.heads import part_as
from attar.students.student import Student, load_student

_OPTIONS = {
    "projector": ", or add --student.projector {}",
    "GELU behind the projection": ", or change --student.gelu",
}
"""How this run could be given what the other has."""


def take_weights(student: Student, path: Path) -> None:
    """Give a freshly built student the weights of a run's student, in place.

    Students in a teacher's space take everything. A plain classifier takes the backbone and the
    rows of the classes that both know; rows of other classes keep their new values.

    Raises:
        UsageError: another architecture, another head, the space of another teacher, another
            projector or GELU, or a bias in the projection where this student has none.
    """
    trained = load_student(path)
    ours, theirs = student.spec, trained.spec
    for what, own, other in (
        ("architecture", ours.name, theirs.name),
        ("head", ours.head, theirs.head),
        ("teacher", ours.teacher_identity, theirs.teacher_identity),
        ("projector", ours.projector, theirs.projector),
        ("GELU behind the projection", *(("on" if s.gelu else "off") for s in (ours, theirs))),
    ):
        if own != other:
            option = _OPTIONS.get(what, "").format(other)
            raise UsageError(
                f"--start-from {path}: its {what} is {_short(other)}, this run's {_short(own)}; "
                f"start from a run with the same {what}{option}"
            )
    if theirs.projection_bias and not ours.projection_bias:
        raise UsageError(
            f"--start-from {path}: its projection has a bias, this run's has none; add "
            "--student.projection-bias"
        )
    part_as(student.network, trained.network)
    state = trained.state_dict()
    if ours.head == "classes":
        state |= _joined_classifier(student, trained)
    student.load_state_dict(state)


def _short(value: str) -> str:
    return repr(value[:40]) if value else "none"


def _joined_classifier(student: Student, trained: Student) -> dict[str, Any]:
    """Return the student's classifier with the rows of known classes taken from the other's."""
    position = {name: index for index, name in enumerate(trained.spec.class_names)}
    shared = [i for i, name in enumerate(student.spec.class_names) if name in position]
    rows = [position[student.spec.class_names[i]] for i in shared]
    known, joined = trained.state_dict(), {}
    ids = {id(parameter) for parameter in student.projection_parameters()}
    # A classifier that two tokens share stands under both of its names.
    for name, parameter in student.named_parameters(remove_duplicate=False):
        if id(parameter) in ids:
            value = parameter.detach().clone()
            with torch.no_grad():
                value[shared] = known[name][rows]
            joined[name] = value
    return joined

"""One door for everything that can be measured: teacher, student, bundle, any OpenCLIP model.

Whatever enters becomes an `EvaluatedModel`: a way to prepare an image and a way to turn prepared
images into features. Nothing behind the door knows what kind of model it was.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from attar.data.table import ImageTable
from attar.data.transforms import eval_transform
from attar.errors import UsageError
from attar.evaluation.metrics import ROWS_AT_ONCE
from attar.files import sha256_file
from attar.store.store import Store
from attar.students.student import Student, load_student
from attar.teachers.base import Teacher, TeacherInfo
from attar.types import Outputs

TEACHER = "teacher"
STUDENT = "student"
BASELINE = "baseline"

Features = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A model as evaluation sees it: `prepare` and `encode`, or `lookup` of known features."""

    name: str
    """The architecture or teacher name, e.g. "timm/resnet18"."""
    role: str
    """The row of the tables: "teacher", "student", "baseline" or a name given by the user."""
    pretrained: str
    """Where the weights come from: a run folder, a tag, or "none"."""
    method: str = ""
    """The distillation method, empty for anything but a student."""
    head: Literal["embedding", "classes"] = "embedding"
    """"embedding": features in a joint space; "classes": the features are logits."""
    dim: int
    """D, or C when the head is "classes"."""
    logit_scale: float
    """Factor on cosines (on the logits when the head is "classes") before the softmax."""
    class_names: tuple[str, ...] = ()
    """The classes of the logits when the head is "classes"."""
    class_features: Features | None = None
    """[C, D] of the model's own, where the evaluation's common ones do not fit it."""
    in_teacher_space: bool = True
    """Whether a cosine with the teacher's features means anything."""
    teacher_identity: str = ""
    """The teacher in whose joint space the features lie (`TeacherInfo.identity`); empty where that
    is unknown or, as for a plain classifier, where there is none."""
    identity: str
    """Changes whenever the features would: what a stored feature file is matched by."""
    prepare: Callable[[Image.Image], Any] | None = None
    """RGB image to [3, H, W] (torch or numpy); picklable, runs in loader workers."""
    encode: Callable[[Tensor], Tensor] | None = None
    """Prepared images [N, 3, H, W] to [N, D], without gradient."""
    outputs: Callable[[Tensor], Outputs] | None = None
    """Prepared images to all that a student says of them, the features of regions too."""
    lookup: Callable[[ImageTable], Features] | None = None
    """Instead of the two above: the features [N, D] of a table that are known already."""
    encode_trunk: Callable[[Tensor], Tensor] | None = None
    """Prepared images to pooled features before the projection [N, W], of a student."""
    network: nn.Module | None = None
    """The network behind `encode`, where it runs in this process: what it costs can be measured."""
    bundle: Path | None = None
    """The folder of an exported bundle."""


def from_teacher(
    teacher: Teacher,
    *,
    role: str = TEACHER,
    pretrained: str = "",
    class_features: NDArray[Any] | Tensor | None = None,
) -> EvaluatedModel:
    """Let a teacher, or any OpenCLIP model loaded as one, in.

    Under another role than "teacher" it has a joint space of its own: give it the
    `class_features` [C, D] that its own text tower makes of the class list.
    """
    info = teacher.info
    return EvaluatedModel(
        name=info.name,
        role=role,
        pretrained=pretrained or info.identity[:12],
        dim=info.dim,
        logit_scale=info.logit_scale,
        class_features=None if class_features is None else _float32(class_features),
        in_teacher_space=role == TEACHER,
        teacher_identity=info.identity,
        identity=info.identity,
        prepare=teacher.prepare,
        encode=teacher.encode_images,
        network=None if teacher.towers is None else teacher.towers.image,
    )


def from_store(store: Store) -> EvaluatedModel:
    """Let the teacher of an embedding store in without loading it: it has answered already."""
    info = store.info.teacher

    def lookup(table: ImageTable) -> Features:
        return features_from_store(store, table)

    return EvaluatedModel(
        name=info.name,
        role=TEACHER,
        pretrained=info.identity[:12],
        dim=info.dim,
        logit_scale=info.logit_scale,
        teacher_identity=info.identity,
        identity=info.identity,
        lookup=lookup,
    )


def features_from_store(store: Store, table: ImageTable) -> Features:
    """Return the teacher's clean-view features [N, D] of a table, in its order.

    Raises:
        AttarError: images that the store lacks; the message says how to add them.
    """
    return _float32(store.image_features(store.image_rows(table.keys)))


def feature_parts(store: Store, table: ImageTable, rows: int = ROWS_AT_ONCE) -> Iterator[Features]:
    """Yield what `features_from_store` returns as consecutive parts [n, D], n at most `rows`.

    What needs each row but once, such as a mean, takes the memory of one part at any size so.

    Raises:
        AttarError: as `features_from_store`, with the first part.
    """
    places = store.image_rows(table.keys)
    for start in range(0, len(places), rows):
        yield _float32(store.image_features(places[start : start + rows]))


def from_student(
    student: Student,
    *,
    role: str = STUDENT,
    pretrained: str = "",
    method: str = "",
    logit_scale: float | None = None,
) -> EvaluatedModel:
    """Let a student in, on the device where it is; `encode` leaves its training mode as it was.

    `logit_scale` defaults to the student's own, and to 1 for a plain classifier's logits.
    """
    spec = student.spec
    own_scale = spec.logit_scale if spec.head == "embedding" else 1.0
    return EvaluatedModel(
        name=f"timm/{spec.name}",
        role=role,
        pretrained=pretrained or spec.weights,
        method=method,
        head=spec.head,
        dim=spec.dim,
        logit_scale=own_scale if logit_scale is None else logit_scale,
        class_names=spec.class_names,
        teacher_identity=spec.teacher_identity,
        identity=_student_identity(student),
        prepare=student_transform(student),
        encode=lambda pixels: student_outputs(student, pixels),
        outputs=lambda pixels: all_outputs(student, pixels, regions=spec.head == "embedding"),
        encode_trunk=lambda pixels: student_outputs(student, pixels, trunk=True),
        network=_whole_network(student),
    )


def from_trunk(student: Student, *, role: str = "trunk") -> EvaluatedModel:
    """Let a student's features before the projection [N, W] in, to fit a projection on them."""
    size = student.spec.image_size
    width = student_outputs(student, torch.zeros(1, 3, size, size), trunk=True).shape[1]
    return EvaluatedModel(
        name=f"timm/{student.spec.name}",
        role=role,
        pretrained=student.spec.weights,
        dim=width,
        logit_scale=1.0,
        in_teacher_space=False,
        identity=f"{_student_identity(student)}/trunk",
        prepare=student_transform(student),
        encode=lambda pixels: student_outputs(student, pixels, trunk=True),
    )


def from_constant(
    vector: NDArray[Any] | Tensor, teacher: TeacherInfo, *, role: str = "constant-mean"
) -> EvaluatedModel:
    """Let the model in that answers every image with one vector [D] of the teacher's space."""
    row = _float32(vector)

    def lookup(table: ImageTable) -> Features:
        return np.tile(row, (len(table), 1))

    return EvaluatedModel(
        name="constant",
        role=role,
        pretrained="none",
        dim=len(row),
        logit_scale=teacher.logit_scale,
        teacher_identity=teacher.identity,
        identity=hashlib.sha256(row.tobytes()).hexdigest(),
        lookup=lookup,
    )


def from_bundle(path: Path, *, role: str = "bundle") -> EvaluatedModel:
    """Let an exported bundle in: its own pixels, its own graph, its own calibrated scale.

    Raises:
        UsageError: the folder holds no bundle.
        AttarError: a file of it is missing or damaged.
    """
    from attar.runtime.bundle import INPUT, MODEL, PREPROCESS, Bundle
    from attar.runtime.predict import open_session

    bundle = Bundle.open(path)
    session = open_session(path / MODEL)

    def encode(pixels: Tensor) -> Tensor:
        images = pixels.to("cpu", torch.float32).numpy()
        return torch.from_numpy(session.run(None, {INPUT: images})[0])

    return EvaluatedModel(
        name=f"timm/{bundle.manifest['student']}" if "student" in bundle.manifest else path.name,
        role=role,
        pretrained=str(path),
        method=str(bundle.manifest.get("method") or ""),
        head=bundle.head,
        dim=bundle.dim,
        logit_scale=bundle.logit_scale,
        class_names=bundle.labels.texts if bundle.head == "classes" else (),
        teacher_identity=str(bundle.manifest.get("teacher_identity") or ""),
        identity=f"{sha256_file(path / MODEL)}/{sha256_file(path / PREPROCESS)}",
        prepare=bundle.preprocess,
        encode=encode,
        bundle=path,
    )


def open_model(
    path: Path, *, role: str = STUDENT, method: str = "", device: torch.device | None = None
) -> EvaluatedModel:
    """Let the bundle, student folder or run folder at `path` in, whichever it is.

    Raises:
        UsageError: the folder is none of these.
    """
    if not path.is_dir():
        raise UsageError(f"{path} is not a folder; give a run, a student or a bundle")
    if (path / "bundle.json").is_file():
        return from_bundle(path, role=role)
    student = load_student(path)
    if device is not None:
        student.to(device)
    return from_student(student, role=role, pretrained=str(path), method=method)


def student_transform(student: Student) -> Callable[[Image.Image], Tensor]:
    """Return the preprocessing of a student at evaluation: RGB image to uint8 [3, H, W]."""
    spec = student.spec
    return eval_transform(spec.image_size, spec.crop_pct, spec.interpolation)


def student_outputs(student: Student, pixels: Tensor, *, trunk: bool = False) -> Tensor:
    """Return features [N, D] (or pooled trunk features [N, W]) of uint8 or [0, 1] images."""
    outputs = all_outputs(student, pixels, trunk=trunk)
    features = outputs.trunk if trunk else outputs.features
    assert isinstance(features, Tensor)
    return features


def all_outputs(
    student: Student, pixels: Tensor, *, trunk: bool = False, regions: bool = False
) -> Outputs:
    """Return what a student says of uint8 or [0, 1] images [N, 3, H, W], without gradient."""
    device = next(student.parameters()).device
    images = pixels.to(device, non_blocking=True)
    if images.dtype == torch.uint8:
        images = images.float() / 255
    with evaluating(student), torch.no_grad():
        outputs: Outputs = student(images, trunk=trunk, regions=regions)
    return outputs


@contextmanager
def evaluating(student: Student) -> Iterator[None]:
    """Hold a student in evaluation mode, then give it back in the mode it came in."""
    was_training = student.training
    student.eval()
    try:
        yield
    finally:
        student.train(was_training)


def _student_identity(student: Student) -> str:
    # What the features do not depend on stays out: a newly fitted scale leaves them valid.
    aside = ("logit_scale", "weights", "teacher", "teacher_identity", "projection_bias")
    spec = {k: v for k, v in asdict(student.spec).items() if k not in aside}
    for name, before in (("gelu", False), ("projector", "linear")):
        if spec[name] == before:  # as all were before there was a choice
            del spec[name]
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode())
    for name, tensor in sorted(_learnt(student).items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()


def _whole_network(student: Student) -> nn.Module:
    """Return what is counted of a student: its network with what is behind the projection."""
    behind = student.projector
    return student.network if behind is None else nn.ModuleList([student.network, behind])


def _learnt(student: Student) -> dict[str, Tensor]:
    """Return the tensors that decide the features; the network's under timm's names."""
    tensors: dict[str, Tensor] = dict(student.network.state_dict())
    if student.projector is not None:
        tensors |= student.projector.state_dict(prefix="projector.")
    return tensors


def _float32(values: NDArray[Any] | Tensor) -> Features:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return np.ascontiguousarray(array, dtype=np.float32)

"""The student: a timm network whose own classifier is the projection into the teacher's space.

So the saved folder is an ordinary timm model (`timm.create_model("local-dir:PATH")`), and OpenCLIP
can load it as an image tower.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from attar.errors import UsageError, unknown_name
from attar.files import atomic_folder, write_json
from attar.students.config import StudentConfig
from attar.students.heads import apart, check_one_linear, is_one_linear, share_classifiers
from attar.students.reading import load_weights, read_fields
from attar.students.weights import check_weights, classifier_names, load_backbone_weights
from attar.types import Outputs

Head = Literal["embedding", "classes"]
Projector = Literal["linear", "mlp"]
_SMALLEST_IMAGE = 32
_OF_OTHER_SIZES = ("test_input_size", "test_crop_pct", "pool_size")
"""What timm's configuration says of sizes that are not the student's."""
_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
_PROJECTOR_FILE = "projector.safetensors"
"""What is behind the projection, in a file of its own: timm refuses tensors it does not know."""


@dataclass(frozen=True, kw_only=True)
class StudentSpec:
    """Everything needed to build the student again and to feed it."""

    name: str
    """timm's architecture name."""
    dim: int
    """Width of the output: the teacher's joint dimension, or the number of classes."""
    head: Head
    """"embedding": features in the teacher's space; "classes": plain logits of `class_names`."""
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    crop_pct: float
    class_names: tuple[str, ...] = ()
    """The classes of the logits when `head` is "classes"."""
    teacher: str = ""
    teacher_identity: str = ""
    """The teacher's `TeacherInfo.identity`: only class features of this teacher can be compared
    with the student's; empty without a teacher."""
    logit_scale: float = 100.0
    weights: str = "none"
    """Where the starting weights came from."""
    freeze_bn: bool = False
    projection_bias: bool = True
    """Whether the projection's bias is learnt; else it is zero and frozen."""
    gelu: bool = False
    """Whether GELU follows the projection."""
    projector: Projector = "linear"
    """"linear": the projection alone; "mlp": BatchNorm, ReLU and Linear follow it."""


class Student(nn.Module):
    """A timm network with its preprocessing; images come in as [0, 1] and are normalised inside."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, spec: StudentSpec) -> None:
        super().__init__()
        self.network = network
        self.projector = _layers_behind(spec.dim) if spec.projector == "mlp" else None
        self.spec = spec
        self._is_one_linear: bool | None = None  # found when it is first asked
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)
        for bias in self._frozen_biases():
            bias.requires_grad_(False)

    def forward(
        self, images: Tensor, *, trunk: bool = False, regions: bool = False, layers: bool = False
    ) -> Outputs:
        """Return features [B, D] (unnormalised) of images [B, 3, H, W] in [0, 1].

        `trunk` adds the pooled features before the projection [B, W], `regions` the projected
        features of each place of the last feature map [B, R, D], `layers` the feature maps that
        timm gives of the stages or blocks; none where it gives none.
        """
        normalised = (images - self.mean) / self.std
        if not trunk and not regions and not layers:
            return Outputs(features=self._activate(self.network(normalised)))
        network: Any = self.network
        maps: Sequence[Tensor] = ()
        if layers and hasattr(network, "forward_intermediates"):
            feature_map, maps = network.forward_intermediates(normalised)
        else:
            feature_map = network.forward_features(normalised)
        pooled = network.forward_head(feature_map, pre_logits=True)
        if self._is_one_linear is None:
            self._is_one_linear = is_one_linear(network, self.spec.image_size)
        # What else may stand behind the pooled features only the network itself knows.
        behind = self._project(pooled) if self._is_one_linear else network.forward_head(feature_map)
        return Outputs(
            features=self._activate(behind),
            trunk=pooled if trunk else None,
            regions=self._regions(feature_map) if regions else None,
            layers=tuple(maps) if layers else None,
        )

    def _project(self, pooled: Tensor) -> Tensor:
        """Project pooled features [B, W]; some networks' classifier is a 1 x 1 convolution."""
        linear: Any = self.projection()
        return F.linear(pooled, linear.weight.flatten(1), linear.bias)

    def _activate(self, projected: Tensor) -> Tensor:
        """Return what the layers behind the projection make of its output [N, D]."""
        if self.projector is not None:
            projected = self.projector(projected)
        return F.gelu(projected) if self.spec.gelu else projected

    def _regions(self, feature_map: Tensor) -> Tensor:
        """Project each place of a convolutional map [B, W, h, w] by itself, as pooling would."""
        network: Any = self.network
        if feature_map.ndim != 4 or getattr(network, "output_fmt", "NCHW") != "NCHW":
            raise UsageError(f"{self.spec.name} has no convolutional map to take regions from")
        batch, width, height, breadth = feature_map.shape
        places = feature_map.permute(0, 2, 3, 1).reshape(-1, width, 1, 1)
        projected = self._activate(network.forward_head(places))
        return projected.view(batch, height * breadth, -1)

    def projection(self) -> nn.Module:
        """Return the network's own classifier: the projection into the joint space."""
        return self.network.get_submodule(classifier_names(self.network)[0])

    def projection_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the projection, and of what is behind it, that are learnt."""
        frozen = {id(bias) for bias in self._frozen_biases()}
        yield from (p for p in self._whole_projection() if id(p) not in frozen)

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Yield every parameter outside the projection."""
        projection = {id(p) for p in self._whole_projection()}
        yield from (p for p in self.network.parameters() if id(p) not in projection)

    def _whole_projection(self) -> Iterator[nn.Parameter]:
        yield from self._classifier()
        if self.projector is not None:
            yield from self.projector.parameters()

    def _classifier(self) -> Iterator[nn.Parameter]:
        classifiers = map(self.network.get_submodule, classifier_names(self.network))
        yield from nn.ModuleList(classifiers).parameters()  # one that is shared is named once

    def _frozen_biases(self) -> Iterator[nn.Parameter]:
        if not self.spec.projection_bias:
            yield from (p for p in self._classifier() if p.ndim == 1)

    def clear_projection_bias(self) -> None:
        """Set the projection's bias to zero where the student's projection has none."""
        with torch.no_grad():
            for bias in self._frozen_biases():
                bias.zero_()

    def set_projection(self, weight: Tensor, bias: Tensor) -> None:
        """Put a fitted projection (weight [D, W], bias [D]) in place of the classifier's values.

        Whatever it was before, the student's projection then has a bias and nothing behind it.
        """
        linear: Any = self.projection()
        check_one_linear(self.network, self.spec.name, self.spec.image_size)
        if linear.weight.numel() != weight.numel():
            raise UsageError(
                f"{self.spec.name}'s classifier is no linear layer of shape {tuple(weight.shape)}; "
                "use --student.projection random"
            )
        with torch.no_grad():
            linear.weight.copy_(weight.view_as(linear.weight))
            linear.bias.copy_(bias)
        self.projector = None
        self.spec = replace(self.spec, projection_bias=True, projector="linear")

    def train(self, mode: bool = True) -> Self:
        """Set the training mode; the backbone's BatchNorm stays in evaluation mode if frozen.

        The projector's own has no statistics from before training that could be kept.
        """
        super().train(mode)
        if self.spec.freeze_bn:
            for module in self.network.modules():
                if isinstance(module, _BATCH_NORMS):
                    module.eval()
        return self

    def train_projection(self, mode: bool = True) -> None:
        """Set the training mode of the projection, and of what is behind it, alone."""
        self.projection().train(mode)
        if self.projector is not None:
            self.projector.train(mode)


def _layers_behind(dim: int) -> nn.Module:
    """Return what makes Linear - BatchNorm - ReLU - Linear of a projection; [N, D] to [N, D]."""
    return nn.Sequential(nn.BatchNorm1d(dim), nn.ReLU(), nn.Linear(dim, dim))


def bare_name(name: str) -> str:
    """Return timm's name for "timm/NAME" or "NAME".

    Raises:
        UsageError: timm has no such model; the nearest names are given.
    """
    bare = name.removeprefix("timm/")
    if not timm.is_model(bare):
        raise unknown_name("student (timm model)", bare, timm.list_models())
    return bare


def check_student(name: str, config: StudentConfig, head: Head = "embedding") -> None:
    """Refuse a name, an image size or a weights file that cannot work; downloads nothing.

    Raises:
        UsageError: as `build_student`.
    """
    check_weights(config.weights)
    class_names = ("class",) if head == "classes" else ()
    build_student(name, 1, replace(config, weights="none"), class_names=class_names)


def build_student(
    name: str,
    dim: int,
    config: StudentConfig,
    *,
    class_names: Sequence[str] = (),
    teacher: str = "",
    teacher_identity: str = "",
    logit_scale: float = 100.0,
) -> Student:
    """Build a timm network with `dim` outputs, its starting weights loaded.

    Giving `class_names` makes it a plain classifier (`head="classes"`); `teacher` and
    `teacher_identity` say in whose joint space the features of any other student lie.

    Raises:
        UsageError: unknown name, weights that do not fit, an image size it cannot take, or a plain
            classifier with a projector.
    """
    if class_names and config.projector == "mlp":
        raise UsageError(
            "--student.projector mlp: a plain classifier has no projection into a teacher's space "
            "to put it behind; leave --student.projector out"
        )
    architecture = bare_name(name)
    network = _create_network(architecture, dim, config.image_size, config.drop_path)
    share_classifiers(network)
    origin = load_backbone_weights(network, architecture, config.weights)
    cfg: Any = network.pretrained_cfg
    spec = StudentSpec(
        name=architecture,
        dim=dim,
        head="classes" if class_names else "embedding",
        image_size=cfg["input_size"][-1] if config.image_size is None else config.image_size,
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        interpolation=cfg["interpolation"],
        crop_pct=cfg["crop_pct"] if config.crop_pct is None else config.crop_pct,
        class_names=tuple(class_names),
        teacher=teacher,
        teacher_identity=teacher_identity,
        logit_scale=logit_scale,
        weights=origin,
        freeze_bn=bool(config.freeze_bn),
        projection_bias=config.projection_bias is not False,
        gelu=config.gelu and not class_names,
        projector=config.projector or "linear",
    )
    student = Student(network, spec)
    student.clear_projection_bias()
    _try_one_image(student)
    if config.projection == "fitted":
        check_one_linear(network, architecture, student.spec.image_size)
    return student


def save_student(student: Student, folder: Path) -> Path:
    """Write the student as a timm model folder (config.json, model.safetensors) plus attar.json.

    config.json names the student's own preprocessing, not that of timm's pretrained weights, so
    that `timm.data.resolve_model_data_config` gives what attar uses. What is behind the projection
    has a file of its own, which timm does not read.
    """
    with atomic_folder(folder) as temporary, _own_preprocessing(student), apart(student.network):
        save_for_hf(student.network, str(temporary), safe_serialization=True)
        if student.projector is not None:
            save_file(student.projector.state_dict(), temporary / _PROJECTOR_FILE)
        write_json(temporary / "attar.json", asdict(student.spec))
    return folder


@contextmanager
def _own_preprocessing(student: Student) -> Iterator[None]:
    """Let the network's timm configuration say how this student sees images, while it is saved."""
    network: Any = student.network
    theirs, spec = network.pretrained_cfg, student.spec
    kept = {k: v for k, v in theirs.items() if k not in _OF_OTHER_SIZES}
    network.pretrained_cfg = {
        **kept,
        "input_size": (3, spec.image_size, spec.image_size),
        "crop_pct": spec.crop_pct,
        "crop_mode": "center",
        "mean": spec.mean,
        "std": spec.std,
        "interpolation": spec.interpolation,
    }
    try:
        yield
    finally:
        network.pretrained_cfg = theirs


def load_student(path: Path | str) -> Student:
    """Load a student from its folder, or from the run folder that holds one, in evaluation mode.

    Raises:
        UsageError: the folder holds no student.
        AttarError: a file of it is missing, damaged or of another version; it is named.
    """
    folder = Path(path)
    if not (folder / "attar.json").is_file():
        folder = folder / "student"
    if not (folder / "attar.json").is_file():
        raise UsageError(f"{path} holds no student; give a run folder made by `attar distill`")
    spec = StudentSpec(**read_fields(folder / "attar.json", StudentSpec))
    network = _create_network(spec.name, spec.dim, spec.image_size)
    load_weights(network, folder / "model.safetensors")
    share_classifiers(network, if_equal=True)
    student = Student(network, spec)
    if student.projector is not None:
        load_weights(student.projector, folder / _PROJECTOR_FILE)
    return student.eval()


def _create_network(
    name: str, dim: int, image_size: int | None, drop_path: float | None = None
) -> nn.Module:
    """Create the timm network; only a network with a fixed grid is told the image size."""
    default: Any = timm.get_pretrained_cfg(name)
    if image_size is not None and image_size < _SMALLEST_IMAGE:
        raise _wrong_size(name, image_size, default.input_size[-1])
    grid = image_size if default.fixed_input_size else None
    try:
        network: nn.Module = timm.create_model(  # which passes nothing on that is None
            name, num_classes=dim, img_size=grid, drop_path_rate=drop_path
        )
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        if "drop_path_rate" in str(error):
            raise UsageError(
                f"--student.drop-path {drop_path}: {name} has no blocks to leave out; leave the "
                "option out"
            ) from error
        if grid is None:
            raise
        raise _wrong_size(name, grid, default.input_size[-1]) from error
    return network


def _try_one_image(student: Student) -> None:
    """Run one image through, so that a size the backbone cannot take is refused here and now."""
    size, was_training = student.spec.image_size, student.training
    embedding: Any = getattr(student.network, "patch_embed", None)
    patch = getattr(embedding, "patch_size", (1, 1))[0]
    own: Any = student.network.pretrained_cfg
    if size < _SMALLEST_IMAGE or size % patch:
        # Networks accept these silently: a map of no extent, or pixels cut off at the border.
        raise _wrong_size(student.spec.name, size, own["input_size"][-1], patch)
    student.eval()
    try:
        with torch.no_grad():
            features = student(torch.zeros(1, 3, size, size)).features
    except (RuntimeError, AssertionError, ValueError) as error:
        raise _wrong_size(student.spec.name, size, own["input_size"][-1], patch) from error
    if features.shape != (1, student.spec.dim):
        raise UsageError(f"{student.spec.name} gives {tuple(features.shape)}, not one vector")
    student.train(was_training)


def _wrong_size(name: str, size: int, own: int, patch: int = 1) -> UsageError:
    multiple = f", a multiple of {patch}" if patch > 1 else ""
    return UsageError(
        f"--student.image-size {size}: {name} cannot take it; its own size is {own} px "
        f"(at least {_SMALLEST_IMAGE}{multiple})"
    )

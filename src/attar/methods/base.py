"""What a distillation method is made of: objectives, class features, phases, and the recipe.

An objective maps (Outputs, Batch, class_features) to a Loss. It is a module because it may own
parameters (they are optimised, saved apart and never exported), and it never holds the teacher.
"""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from attar.types import Batch, Loss, Outputs

Trainable = Literal["all", "backbone", "projection"]
Views = Literal["clean", "same", "online"]
Need = Literal["teacher", "labels", "label_sets", "class_features", "captions", "text", "domains"]
ClassEmbedding = Literal["prompts", "source-domains", "all-domains", "index", "source-images"]
"""What a run's class features are made of: `--templates`; "a {domain} of a {class}" over the source
domains, or over all of them, the held-out one's name included; the class's number in the place of
its name; or the mean of the teacher's features of its source images."""


class Objective(nn.Module, abc.ABC):
    """A loss over one batch."""

    needs_trunk: bool = False
    """Ask the student for its features before the projection."""
    needs_regions: bool = False
    """Ask the student for the projected features of each place of its last feature map."""
    needs_layers: bool = False
    """Ask the student for the feature maps of its stages or blocks."""
    needs_anchor: bool = False
    """Ask for the frozen initial student's Outputs on the same images, as `anchor=`."""

    @abc.abstractmethod
    def forward(
        self,
        outputs: Outputs,
        batch: Batch,
        class_features: Tensor | None,
        anchor: Outputs | None = None,
    ) -> Loss:
        """Return the loss of a batch; `class_features` is [C, D] or None."""


class ClassFeatures(nn.Module, abc.ABC):
    """Provider of the class features [C, D]: a frozen tensor, or learnt prompts with gradient.

    The one place where a gradient may cross teacher weights is a subclass: one holds the frozen
    text tower, and its parameters are the context vectors alone; another trains a copy of it.
    """

    @abc.abstractmethod
    def forward(self) -> Tensor:
        """Return the unit class features [C, D]."""


class FrozenClassFeatures(ClassFeatures):
    """Class features computed once from the teacher's text side."""

    features: Tensor

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.register_buffer("features", features, persistent=False)

    def forward(self) -> Tensor:
        """Return the class features [C, D]."""
        return self.features


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One stretch of training with one objective and one set of trainable weights."""

    name: str
    objective: Objective
    trainable: Trainable
    steps: int
    views: Views = "clean"
    """`clean`: the teacher saw the clean image, the student any augmentation; `same`: recorded
    views only, the student sees exactly what the teacher saw; `online`: the teacher is asked."""
    start: Literal["previous", "initial"] = "previous"
    interpolation: float = 1.0
    """a: what is validated and saved is (1 - a) of the weights that the phase began with and a of
    those it reached."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What an objective may need to know when it is built."""

    dim: int
    """D, the joint embedding dimension (or the number of classes for plain classifiers)."""
    trunk_width: int
    num_classes: int
    num_domains: int
    teacher_dim: int | None = None
    """The teacher's joint dimension, for plain classifiers too; None without a teacher."""
    layer_widths: tuple[int, ...] = ()
    """Channels of the feature maps that the student gives on request."""
    logit_scale: float = 100.0
    """What the teacher multiplies cosines by; 1 for plain classifiers."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A recipe: what it needs, its phases, its defaults. Added in one file and one dict entry."""

    name: str
    summary: str
    paper: str
    needs: frozenset[Need]
    options: type[Any]
    """A frozen dataclass; its fields are the command line's `--method.NAME`."""
    phases: Callable[[Any, int, Sizes], tuple[Phase, ...]]
    """(options, total optimiser steps, sizes) -> phases whose steps sum to the total."""
    asks: Callable[[Any], frozenset[Need]] = lambda options: frozenset()
    """Further needs that follow from the options."""
    context: Callable[[Any], int] = lambda options: 0
    """How many prompt vectors are learnt in front of every class name; 0: prompts are fixed."""
    domain_texts: Callable[[Any], tuple[str, ...] | None] = lambda options: None
    """Words that stand for the source domains in further prompts, "a {word} of a {class}", whose
    features come in the stream `domain_texts` [C, S, D]; empty: the domains' names; None: no such
    stream."""
    class_embedding: Callable[[Any], ClassEmbedding] = lambda options: "prompts"
    """What the class features are made of, in training and afterwards."""
    trains_texts: bool = False
    """Whether a copy of the teacher's text tower is trained beside the student."""
    white_box: bool = False
    """Whether the student must be the teacher's own image encoder, `--student teacher`, or begin as
    one that was trained before."""
    paired_prompts: bool = False
    """Whether each class has two learnt prompts, "it is there" and "it is not there"."""
    head: Literal["embedding", "classes"] = "embedding"
    training: Mapping[str, Any] = field(default_factory=dict)
    """Defaults of the training configuration that the paper sets otherwise."""
    student: Mapping[str, Any] = field(default_factory=dict)
    """Defaults of the student's configuration that the method sets otherwise."""

    @property
    def gives_several_labels(self) -> bool:
        """Whether its student says of every label if it is in the image."""
        return "label_sets" in self.needs

    def needs_with(self, options: Any) -> frozenset[Need]:
        """Return all that the method needs of the data when run with these options."""
        return self.needs | self.asks(options)

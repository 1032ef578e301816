"""A request that has been read, checked and loaded, and of which nothing has been done yet."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attar.data.splits import SourceSplits, Splits
from attar.data.table import ImageTable
from attar.methods.base import Method
from attar.run import RunConfig
from attar.students.student import Student
from attar.teachers.base import Teacher


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is about to be done."""

    config: RunConfig
    recipe: tuple[Method, Any]
    images: ImageTable
    splits: Splits
    texts: Sequence[Sequence[str]]
    """[C] each class's prompts."""
    plain_texts: Sequence[str]
    """[C] each class's name, or "{name} . {description}": what prompts are learnt in front of."""
    teacher: Teacher | None
    student: Student
    teacher_dim: int | None = None
    """The teacher's joint dimension, whether it is loaded or known from its store."""

    @property
    def needs(self) -> frozenset[str]:
        """What the method needs with its options."""
        method, options = self.recipe
        return method.needs_with(options)

    @property
    def captions(self) -> tuple[str, ...]:
        """The captions of the training images, each once, where the method learns from them."""
        return captions_of(self.source) if "captions" in self.needs else ()

    def plain_text_of(self, class_name: str) -> str:
        """Return the text that stands for a class where prompts are learnt."""
        return self.plain_texts[self.images.class_names.index(class_name)]

    def prompts_of(self, class_name: str) -> Sequence[str]:
        """Return a class's prompts."""
        return self.texts[self.images.class_names.index(class_name)]

    @property
    def source(self) -> SourceSplits:
        """The images that training and selection may see."""
        return self.splits.source


def captions_of(source: SourceSplits) -> tuple[str, ...]:
    """Return the captions of the training images, each once."""
    every = (caption for table in (source.train, source.few_shot) for caption in table.captions)
    return tuple(dict.fromkeys(caption for caption in every if caption))

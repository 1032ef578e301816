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
    teacher: Teacher | None
    student: Student

    @property
    def source(self) -> SourceSplits:
        """The images that training and selection may see."""
        return self.splits.source

"""What a user gives attar and has on disk."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.doubles import random_image

FAST = [
    "--training.workers=0",
    "--embed.workers=0",
    "--evaluation.workers=0",
    "--training.precision=fp32",
    "--student=mobilenetv3_small_050",
    "--student.image-size=32",
    "--student.weights=none",
]
"""Options that make a run of seconds."""


@dataclass(frozen=True)
class Outcome:
    """What a command left on the screen."""

    status: int | str | None
    out: str
    err: str


Give = Callable[..., Outcome]


@dataclass(frozen=True)
class World:
    """Paths of what a user might have."""

    root: Path

    @property
    def teacher(self) -> str:
        return f"local-dir:{self.root / 'teacher'}"

    @property
    def other_teacher(self) -> str:
        return f"local-dir:{self.root / 'other-teacher'}"

    @property
    def flat(self) -> Path:
        """24 images without labels."""
        return self.root / "flat"

    @property
    def photos(self) -> Path:
        """The same 24 images, with five files among them that cannot be read."""
        return self.root / "photos"

    @property
    def domains(self) -> Path:
        """domain/class/image: art, photo and sketch; cat and dog; 36 images."""
        return self.root / "domains"

    @property
    def classes(self) -> Path:
        """cat, dog and horse."""
        return self.root / "classes.txt"


def save_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    random_image(seed, (48, 40)).save(path)

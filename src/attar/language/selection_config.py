"""What a user may choose about the selection of sentences; free of torch."""

from dataclasses import dataclass
from typing import Literal

from attar.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """How sentences are chosen that images can see."""

    count: int
    """Sentences to choose."""
    anchors: int = 20_000
    """At most this many images, drawn by the seed, stand for all of them."""
    neighbours: int = 4
    """Nearest images that each sentence may be chosen for."""
    pool: float = 4.0
    """Only the best POOL x COUNT sentences by score compete."""
    redundant: float = 0.95
    """Cosine from which a sentence says the same as one that was chosen for a near image."""
    search: Literal["auto", "exact", "faiss"] = "auto"
    """`exact`, or approximate with the extra `attar[faiss]`; `auto` is exact below a million
    sentences."""
    seed: int = 0
    """Decides which images are drawn and which sentences set the scale."""

    def __post_init__(self) -> None:
        for name in ("count", "anchors", "neighbours", "pool"):
            if not getattr(self, name) >= 1:
                raise UsageError(f"--{name} is {getattr(self, name)}; give 1 or more")
        if not 0 < self.redundant <= 1:
            raise UsageError(f"--redundant is {self.redundant}; give a cosine above 0, at most 1")

"""What a user may choose about retrieval; free of torch so that `--help` is quick."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """How the keys are made and how much they say."""

    keys: Literal["student", "teacher"] = "teacher"
    """Whose features of the few images are the keys: the official code of Li et al. takes the
    teacher's, the paper's appendix the student's."""
    alpha: float = 1.0
    """Weight of the keys; 0 leaves the zero-shot answer."""
    beta: float = 5.5
    """How sharply a key's vote falls with its distance."""
    scale: float = 1.0
    """Factor on the zero-shot cosines; Tip-Adapter has the teacher's logit scale."""
    views: int = 10
    """RandAugment views of each image that become keys, the image itself among them."""

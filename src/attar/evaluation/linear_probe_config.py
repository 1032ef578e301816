"""What a user may set about linear probes; free of torch so that the CLI starts quickly."""

from dataclasses import dataclass
from typing import Literal

from attar.errors import UsageError

FeatureKind = Literal["projected", "trunk"]
Start = Literal["zero", "text"]
Solver = Literal["auto", "scikit-learn", "minibatch"]


@dataclass(frozen=True, kw_only=True)
class LinearProbeConfig:
    """How linear classifiers are fitted on frozen features."""

    shots: tuple[int, ...] = (5, 20, 50)
    """Images of each class to learn from, one measurement each; a class that has fewer leaves the
    number out."""

    full: bool = True
    """Also learn from all training images."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Each draws its own shots; mean and standard deviation over them are reported. All training
    images together are learnt with the first."""

    features: FeatureKind = "projected"
    """projected: unit features in the joint space, which every model has; trunk: a student's pooled
    features before the projection. Of a plain classifier it is always the trunk."""

    start: Start = "zero"
    """zero, or text: the classifier starts at the class features, so that it begins as the
    zero-shot classifier, and is held near them instead of near zero."""

    solver: Solver = "auto"
    """auto: scikit-learn up to 20 million numbers (images x features), minibatches above and
    whenever the classifier starts from text."""

    held_out_domain: str | None = None
    """Domain that is only tested: the probe learns from the others."""

    test_fraction: float = 0.2
    """Share of the images that is tested, where the data do not say which."""

    split_seed: int = 0
    """Draws the tested images, where the data do not say which."""

    batch_size: int = 64
    """Images in one minibatch."""

    search_epochs: int = 10
    """Passes over the images for each learning rate and weight decay tried (minibatch)."""

    epochs: int = 50
    """Passes over the images with the chosen ones (minibatch)."""

    def __post_init__(self) -> None:
        if not self.seeds:
            raise UsageError("--probe.seeds: give at least one")
        if not self.shots and not self.full:
            raise UsageError("--probe.shots: give some, or learn from all images: --probe.full")
        for shots in self.shots:
            if shots < 2:
                raise UsageError(
                    f"--probe.shots {shots}: give 2 or more; the weight decay is chosen on images "
                    "that were not learnt from"
                )
        for name in ("batch_size", "search_epochs", "epochs"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise UsageError(f"--probe.{option} {getattr(self, name)}: give 1 or more")
        if not 0 <= self.test_fraction < 1:
            raise UsageError(f"--probe.test-fraction {self.test_fraction}: give 0 <= fraction < 1")

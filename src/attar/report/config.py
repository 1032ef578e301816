"""What a user may choose about a report; loads nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """The options of `attar report`."""

    title: str | None = None
    """The page's title; by default it names the run, or says how many runs there are."""
    thumbnails: bool = True
    """Embed small copies of the sample images; switch off for images you may not pass on."""
    samples: int = 6
    """How many sample images each group (right, wrong, unsure) shows at most; 0 shows none."""
    thumbnail_size: int = 144
    """The longer side of an embedded thumbnail, in pixels."""
    confusion_classes: int = 30
    """Up to this many classes a confusion matrix is drawn; above it, only the confused pairs."""

"""What a user may choose about embedding; free of torch so that the CLI starts fast."""

from dataclasses import dataclass

from attar.errors import UsageError

DTYPES = ("float16", "float32")


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """How the teacher is asked and how its answers are stored."""

    batch_size: int = 64
    """Images (counting every view) in one call of the teacher."""
    workers: int = 2
    """Processes that read and prepare images; 0 reads in the main process."""
    views: int = 0
    """Recorded augmentations of each image, embedded beside the clean image."""
    view_recipe: str = "domainbed"
    """The augmentation that the recorded views are drawn from."""
    view_size: int = 224
    """Side in pixels of a recorded view, before the teacher's own preprocessing."""
    seed: int = 0
    """Seed of the recorded views; the same seed, image and number give the same view."""
    dtype: str = "float16"
    """Number format of the stored embeddings: float16 or float32."""
    shard_rows: int = 16384
    """Rows after which a shard is committed; a crash loses at most the shard in flight."""
    commit_seconds: float = 120.0
    """Seconds after which a shard is committed even when it is not full (for slow teachers)."""

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("workers", 0), ("views", 0), ("shard_rows", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"embed {name} is {getattr(self, name)}; give {least} or more")
        if self.view_size < 8:
            raise UsageError(f"embed view_size is {self.view_size}; give 8 pixels or more")
        if self.dtype not in DTYPES:
            raise UsageError(f"embed dtype is {self.dtype!r}; choose one of {', '.join(DTYPES)}")

    def view_name(self, index: int) -> str:
        """Return the name of recorded view number `index`, e.g. "domainbed-224-0"."""
        seed = f"s{self.seed}-" if self.seed else ""
        return f"{self.view_recipe}-{self.view_size}-{seed}{index}"

    def view_definitions(self) -> dict[str, dict[str, int | str]]:
        """Return {view name: what it is drawn from} for the recorded views, in order."""
        return {
            self.view_name(index): {
                "recipe": self.view_recipe,
                "size": self.view_size,
                "seed": self.seed,
                "index": index,
            }
            for index in range(self.views)
        }

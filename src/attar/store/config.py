"""What a user may choose about embedding; free of torch so that the CLI starts fast."""

from dataclasses import dataclass
from typing import Literal

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
    normalisation: Literal["teacher", "imagenet"] = "teacher"
    """What the teacher's pixels are normalised with: `teacher`, its own constants; `imagenet`,
    ImageNet's, as the official code of VL2V does for CLIP."""
    dtype: str = "float16"
    """Number format of the stored embeddings: float16 or float32."""
    shard_rows: int = 16384
    """Rows after which a shard is committed; a crash loses at most the shard in flight."""
    commit_seconds: float = 120.0
    """Seconds after which a shard is committed even when it is not full (for slow teachers)."""
    budget: float | None = None
    """Of a teacher paid by the query: queries that this store may pay in its whole life, or with
    --price an amount of money; asking stops before it is overrun, and goes on with a larger one."""
    price: float | None = None
    """Of a teacher paid by the query: what one query costs, in any currency."""
    request_size: int = 16
    """Of a remote teacher: images or texts in one request."""
    parallel: int = 4
    """Of a remote teacher: requests under way at once."""
    rate: float | None = None
    """Of a remote teacher: requests a second at most."""
    attempts: int = 6
    """Of a remote teacher: how often a request is made before its images are named as failed."""
    backoff: float = 1.0
    """Of a remote teacher: seconds before the second attempt; doubled each time, with jitter."""
    timeout: float = 60.0
    """Of a remote teacher: seconds that one answer may take."""

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("workers", 0), ("views", 0), ("shard_rows", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"embed {name} is {getattr(self, name)}; give {least} or more")
        for name in ("request_size", "parallel", "attempts"):
            if getattr(self, name) < 1:
                raise UsageError(f"embed {name} is {getattr(self, name)}; give 1 or more")
        for name in ("budget", "price", "rate", "backoff", "timeout"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"embed {name} is {value}; give a number above 0")
        if self.budget is not None and self.price is None and self.budget != int(self.budget):
            raise UsageError(
                f"embed budget is {self.budget} queries; give a whole number, or what one query "
                "costs with --price to make it an amount of money"
            )
        if self.view_size < 8:
            raise UsageError(f"embed view_size is {self.view_size}; give 8 pixels or more")
        if self.dtype not in DTYPES:
            raise UsageError(f"embed dtype is {self.dtype!r}; choose one of {', '.join(DTYPES)}")

    @property
    def query_limit(self) -> int | None:
        """Queries that the budget allows."""
        if self.budget is None:
            return None
        return int(self.budget if self.price is None else self.budget / self.price + 1e-9)

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

"""Tables of real files, and a configuration that commits often."""

from collections.abc import Sequence
from pathlib import Path

from attar.data.table import ImageTable
from attar.files import sha256_file
from attar.store.config import EmbedConfig

FAST = EmbedConfig(batch_size=4, workers=0, shard_rows=8)


def table_of(root: Path, names: Sequence[str]) -> ImageTable:
    """Describe the files `names` under `root`, as reading a folder would."""
    paths = [root / name for name in names]
    none = (None,) * len(names)
    return ImageTable(
        paths=tuple(str(path) for path in paths),
        names=tuple(names),
        keys=tuple(sha256_file(path) for path in paths),
        labels=(-1,) * len(names),
        domains=(-1,) * len(names),
        captions=none,
        splits=none,
    )

"""Recorded views, that a method may want the student to see exactly as the teacher saw them."""

from pathlib import Path
from typing import Any

from attar.data.splits import SourceSplits
from attar.errors import UsageError
from attar.store.config import EmbedConfig
from attar.store.store import Store


def check(
    options: Any, source: SourceSplits, store_path: Path, config: EmbedConfig, *, has_teacher: bool
) -> None:
    """Refuse `--method.views` that the teacher will not have answered about; ask nothing.

    Training would refuse them too, but only after the teacher had been asked, and perhaps paid.

    Raises:
        UsageError: `same` while no view of every training image is recorded or will be, or
            `online` without a teacher.
    """
    wanted = getattr(options, "views", "clean")
    if wanted == "online" and not has_teacher:
        raise UsageError("--method.views online asks the teacher at every step: give --teacher")
    if wanted != "same" or (has_teacher and config.views):
        return
    keys = [*source.train.keys, *source.few_shot.keys]
    store = Store.open(store_path) if (store_path / "store.json").is_file() else None
    if store is None or not store.views_with(keys):
        way_out = "--embed.views 4" if has_teacher else "--teacher and --embed.views 4"
        raise UsageError(
            f"--method.views same needs a recorded view of all {len(keys):,} training images, and "
            f"{store_path} has none: give {way_out}"
        )

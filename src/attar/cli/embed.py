"""`attar embed`: ask the teacher once."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from attar.run import DataConfig
from attar.store.config import EmbedConfig


def embed(
    *,
    data: Annotated[DataConfig, Parameter(name="*")],
    teacher: str,
    out: Path,
    options: Annotated[EmbedConfig, Parameter(name="*")] = EmbedConfig(),
) -> None:
    """Ask a teacher about every image and class, once ever, and keep the answers in a store.

    The folder can be read by clip-retrieval and embedding-reader. Run the command again to add
    what is missing: new images, new classes, or what a crash left out.

    For example:

    `attar embed --data photos/ --classes classes.txt --teacher ViT-B-32/openai --out store/`

    Parameters
    ----------
    teacher
        As in `attar distill`.
    out
        The store's folder.
    """
    from attar import pipeline
    from attar.store.store import store_info

    path = pipeline.embed(data, teacher, out, options)
    counts = store_info(path)
    print(f"{path}: {counts['image_rows']:,} images, {counts['text_rows']:,} texts of {teacher}")

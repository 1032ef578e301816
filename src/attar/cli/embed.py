"""`attar embed`: ask the teacher once."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from attar.run import DataConfig
from attar.store.config import EmbedConfig


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EmbedSources:
    """What the teacher is asked about."""

    data: tuple[Path, ...] = ()
    """Folders, manifests or tars of images (data-{000..009}.tar, also by URL); labelled and
    unlabelled ones may stand side by side."""
    texts: Path | None = None
    """Sentences: a text file (one a line), .jsonl, or a .csv or .parquet with a column text or
    caption, such as a manifest's; read line by line, so millions are no burden."""
    classes: Path | None = None
    """Class list: a text file (one a line) or JSON {class: [descriptions]}."""
    templates: str = "photo"
    """Prompt templates: a known name, or a file with one "{c}" template a line."""
    unlabelled: bool = False
    """Ignore labels that the folders' names would give."""
    subset: Literal["all", "odd", "even"] = "all"
    """Only the images whose name's sha256 is odd or even (what the pocket teacher saw is even)."""
    strict: bool = False
    """Stop at the first image that cannot be read, instead of setting it aside."""

    def data_config(self) -> DataConfig:
        """Return the part that says which images and classes."""
        return DataConfig(
            data=self.data,
            classes=self.classes,
            templates=self.templates,
            unlabelled=self.unlabelled,
            subset=self.subset,
            strict=self.strict,
        )


def embed(
    *,
    sources: EmbedSources = EmbedSources(),
    teacher: str,
    out: Path,
    options: Annotated[EmbedConfig, Parameter(name="*")] = EmbedConfig(),
    dry_run: bool = False,
) -> None:
    """Ask a teacher about every image, class and sentence, once ever, and keep the answers.

    The store's folder can be read by clip-retrieval and embedding-reader. Run the command again to
    add what is missing: new images, new classes, or what a crash left out.

    For example:

    `attar embed --data photos/ --classes classes.txt --teacher ViT-B-32/openai --out store/`

    `torchrun --nproc-per-node 8 -m attar embed --data 's3://bucket/data-{000..999}.tar'
    --teacher ViT-L-14/openai --out store/`

    `attar embed --texts sentences.txt --teacher ViT-B-32/openai --out store/`

    `attar embed --data photos/ --teacher https://HOST/v1#MODEL --price 0.0001 --dry-run --out s/`

    Parameters
    ----------
    teacher
        As in `attar distill`; one behind an address is paid by the query.
    out
        The store's folder.
    dry_run
        Say what it would cost in queries, money, bytes and time, and ask nothing.
    """
    from attar import pipeline
    from attar.store.store import store_info

    if dry_run:
        print(pipeline.embed_cost(sources.data_config(), teacher, out, options, sources.texts))
        return
    path = pipeline.embed(sources.data_config(), teacher, out, options, sources.texts)
    if os.environ.get("RANK", "0") != "0":
        return  # one of the processes that torchrun started says it for all
    counts = store_info(path)
    print(f"{path}: {counts['image_rows']:,} images, {counts['text_rows']:,} texts of {teacher}")

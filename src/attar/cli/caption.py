"""`attar caption`: words about the images."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from attar.language.config import CaptionConfig
from attar.run import DataConfig
from attar.store.config import EmbedConfig

if TYPE_CHECKING:
    from attar.data.table import ImageTable
    from attar.language.captions import Captions


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """Which images are captioned, from what, and where the manifest goes."""

    data: tuple[Path, ...]
    """Folders or manifests of images; labelled and unlabelled ones may stand side by side."""
    source: Literal["retrieval", "model"]
    """Where captions come from."""
    out: Path
    """The manifest, .csv or .parquet."""
    classes: Path | None = None
    """Class list that the labels are checked against."""
    texts: Path | None = None
    """With `--source retrieval`: sentences, one a line, or .jsonl, .csv or .parquet."""
    teacher: str | None = None
    """With `--source retrieval`: as in `attar distill`; not needed with a complete --store."""
    store: Path | None = None
    """With `--source retrieval`: folder of teacher embeddings to use and fill."""
    unlabelled: bool = False
    """Ignore labels that the folders' names would give."""
    subset: Literal["all", "odd", "even"] = "all"
    """Only the images whose name's sha256 is odd or even. Choose here, not where the manifest is
    used: there the names may differ."""
    strict: bool = False
    """Stop at the first image that cannot be read, instead of setting it aside."""

    def data_config(self) -> DataConfig:
        """Return the part that says which images."""
        return DataConfig(
            data=self.data,
            classes=self.classes,
            unlabelled=self.unlabelled,
            subset=self.subset,
            strict=self.strict,
        )


def caption(
    *,
    options: CaptionOptions,
    model: Annotated[CaptionConfig, Parameter(name="*")] = CaptionConfig(),
    embed: Annotated[EmbedConfig, Parameter(name="--embed")] = EmbedConfig(),
) -> None:
    """Write a manifest of the images with a caption each, to be given as `--data`.

    A caption is the nearest sentence of a text file under the teacher (asked once, kept in a
    store), or what a captioning model says (each caption is kept beside OUT; a command given again
    goes on). Captions that you have need no command: put them into a manifest's `caption` column.

    For example:

    `attar caption --data photos/ --source retrieval --texts sentences.txt
    --teacher ViT-B-32/openai --store store/ --out captions.csv`

    `attar caption --data photos/ --source model --model Salesforce/blip-image-captioning-base
    --out captions.csv`
    """
    from attar.language.captions import check_manifest_path, write_manifest

    check_manifest_path(options.out)
    work = _from_model if options.source == "model" else _retrieve
    table, captions = work(options, model, embed)
    write_manifest(table, captions, options.out)
    captioned = sum(text is not None for text in captions.texts)
    print(f"{options.out}: {captioned:,} of {len(table):,} images with a caption")


def _from_model(
    options: CaptionOptions, model: CaptionConfig, embed: EmbedConfig
) -> "tuple[ImageTable, Captions]":
    from attar.language.captioner import check_captioner, model_captions

    check_captioner(model)
    table = _read(options, options.out.with_name(f"{options.out.name}.files"))
    return table, model_captions(table, options.out, model)


def _retrieve(
    options: CaptionOptions, model: CaptionConfig, embed: EmbedConfig
) -> "tuple[ImageTable, Captions]":
    from attar.data.sentences import read_sentences
    from attar.errors import UsageError
    from attar.language.captions import retrieve_captions
    from attar.stages.embedding import check_store, introduce
    from attar.teachers.registry import describe_teacher_spec

    if options.texts is None or options.store is None:
        raise UsageError("--source retrieval needs --texts FILE and --store FOLDER")
    sentences, store = read_sentences(options.texts), options.store
    if options.teacher is not None:
        describe_teacher_spec(options.teacher)
    table = _read(options, store)
    teacher, _ = introduce(options.teacher, store, needed=True, config=embed)
    check_store(teacher, table, [sentences], store, embed)
    return table, retrieve_captions(teacher, table, sentences, store, embed)


def _read(options: CaptionOptions, folder: Path) -> "ImageTable":
    from attar.data.classes import read_class_list
    from attar.stages.images import read_image_table

    classes = read_class_list(options.classes) if options.classes else None
    return read_image_table(options.data_config(), classes, folder)

"""What the teacher says about images and classes, asked once and kept in a store."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attar.config import coerce_options
from attar.data.classes import ClassList, read_class_list
from attar.data.table import ImageTable
from attar.data.views import find_recipe
from attar.device import Processes
from attar.errors import AttarError, UsageError
from attar.files import check_writable, read_json
from attar.prompts import (
    class_texts,
    get_templates,
    mean_class_features,
    texts_behind_context,
)
from attar.run import DataConfig, RunFolder
from attar.stages.images import read_image_table
from attar.stages.sentences import check_texts, texts_of
from attar.store.config import EmbedConfig
from attar.store.cost import EmbedCost, embed_cost
from attar.store.embed import embed_images, embed_texts
from attar.store.estimate import estimate_embed
from attar.store.ledger import Ledger
from attar.store.parts import SET_ASIDE
from attar.store.paying import paid_by
from attar.store.store import Store
from attar.store.writer import refuse_foreign_folder
from attar.teachers.base import Teacher, TeacherInfo
from attar.teachers.normalisation import with_imagenet_normalisation
from attar.teachers.registry import describe_teacher_spec, load_teacher, parse_teacher_spec
from attar.teachers.remote import as_remote

log = logging.getLogger(__name__)

_NAMED = 5
"""Images that a message names."""


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """Everything the teacher said that a run needs; the teacher itself may be gone."""

    store: Store
    teacher: TeacherInfo
    class_names: tuple[str, ...]
    class_features: Tensor | None
    """[C, D] unit rows, or None when there is no class list."""

    def of_classes(self, names: Sequence[str]) -> Tensor | None:
        """Return the class features of some of the classes, in the order of `names`."""
        if self.class_features is None or tuple(names) == self.class_names:
            return self.class_features
        position = {name: index for index, name in enumerate(self.class_names)}
        return self.class_features[[position[name] for name in names]]


def introduce(
    teacher_spec: str | None,
    store_path: Path,
    *,
    needed: bool,
    config: EmbedConfig = EmbedConfig(),  # noqa: B008  (it is frozen)
) -> tuple[Teacher | None, TeacherInfo | None]:
    """Load the teacher, or read who it was from a store; ask nothing yet.

    A service that does not say its dimension is asked the probes, at the cost of the store.

    Raises:
        UsageError: `needed`, and neither a teacher nor a store is there.
    """
    if teacher_spec is not None:
        teacher = load(teacher_spec, config)
        with paid_by(store_path, teacher, config):
            info = teacher.info
        if info.licence:
            log.warning("licence of %s: %s", info.name, info.licence)
        return teacher, info
    if (store_path / "store.json").is_file():
        return None, Store.open(store_path).info.teacher
    if needed:
        raise UsageError(
            f"no teacher given and {store_path} is no store; give --teacher or --store"
        )
    return None, None


def refuse_to_pay(teacher_spec: str | None, store_path: Path) -> None:
    """Refuse a teacher that would have to be paid before anything can be said of it.

    Raises:
        UsageError: a service that does not say how long its embeddings are, and no store knows.
    """
    if teacher_spec is None or parse_teacher_spec(teacher_spec)[0] != "remote":
        return
    remote, account = as_remote(load_teacher(teacher_spec)), Ledger(store_path)
    known = account.known_info() is not None or account.probes()
    if remote is not None and remote.known_info is None and not known:
        raise UsageError(
            f"teacher {teacher_spec} does not say how long its embeddings are, and a dry run asks "
            "nothing: `attar embed --dry-run` says what asking would cost"
        )


def load(teacher_spec: str, config: EmbedConfig) -> Teacher:
    """Load a teacher that sees images as `config` says."""
    teacher = load_teacher(teacher_spec)
    return teacher if config.normalisation == "teacher" else with_imagenet_normalisation(teacher)


def asking_of(run: RunFolder) -> EmbedConfig:
    """Return how a run's teacher is asked: its budget and number format hold afterwards too.

    The views that training recorded are left out: what is asked now is asked about clean images.
    """
    known = {field.name for field in fields(EmbedConfig)}
    chosen = {k: v for k, v in run.options().get("embed", {}).items() if k in known}
    return coerce_options(EmbedConfig, {**chosen, "views": 0}, "--embed.")


def check_store(
    teacher: Teacher | None,
    images: ImageTable,
    texts: Sequence[Sequence[str]],
    store_path: Path,
    config: EmbedConfig,
    captions: Sequence[str] = (),
) -> None:
    """Refuse a store that cannot give or take what is asked; write and ask nothing.

    Raises:
        UsageError: a store of another teacher or number format, a folder that is something else,
            too little space, or rows missing while no teacher is given.
    """
    flat = [*(text for of_class in texts for text in of_class), *captions]
    if config.views:
        find_recipe(config.view_recipe)
    if teacher is None:
        _complete_store(store_path, images, flat)
        return
    if (store_path / "config.yaml").is_file():
        raise UsageError(f"{store_path} is a run, not a store; give {store_path / 'store'}")
    refuse_foreign_folder(store_path)
    store = Store.open(store_path) if (store_path / "store.json").is_file() else None
    missing = estimate_embed(teacher.info, images, store, config, flat)
    check_writable(store_path, missing.bytes)


def consult(
    teacher: Teacher | None,
    images: ImageTable,
    texts: Sequence[Sequence[str]],
    store_path: Path,
    config: EmbedConfig,
    captions: Sequence[str] = (),
) -> Knowledge:
    """Embed what the store lacks and return what it knows.

    Args:
        teacher: loaded, or None when the store already holds everything.
        images: every image of the run.
        texts: for each class its prompts; empty without a class list.
        store_path: created when absent.
        config: how the teacher is asked.
        captions: further texts that training asks for by what they say.

    Raises:
        UsageError: a store of another teacher, or one that lacks rows while no teacher is given.
    """
    flat = [*(text for of_class in texts for text in of_class), *captions]
    if teacher is None:
        store = _complete_store(store_path, images, flat)
    else:
        embed_images(teacher, images, store_path, config)
        embed_texts(teacher, flat, store_path, config)
        store = Store.open(store_path)
        _refuse_unanswered(store, images)
    return Knowledge(
        store=store,
        teacher=store.info.teacher,
        class_names=images.class_names,
        class_features=read_class_features(store, texts) if texts else None,
    )


def _refuse_unanswered(store: Store, images: ImageTable) -> None:
    """Name the images that the teacher gave no answer to: there is nothing to learn from them."""
    there = store.has_images(images.keys)
    paths = [path for path, known in zip(images.paths, there, strict=True) if not known]
    if paths:
        shown = ", ".join(paths[:_NAMED]) + (", …" if len(paths) > _NAMED else "")
        raise AttarError(
            f"the teacher gave no answer to {len(paths):,} of {len(images):,} images ({shown}; "
            f"reasons: {store.path / SET_ASIDE}): take them out of the data and run the same "
            "command again; nothing is asked twice"
        )


def prompts_of(classes: ClassList | None, images: ImageTable, templates: str) -> list[list[str]]:
    """Return each class's prompts, from the class list or else from the labels' names."""
    if not images.class_names:
        return []
    return class_texts(_described(classes, images), get_templates(templates))


def texts_behind_context_of(classes: ClassList | None, images: ImageTable) -> list[str]:
    """Return the text of each class that learnt prompts stand before, as `prompts_of` finds it."""
    return texts_behind_context(_described(classes, images))


def _described(classes: ClassList | None, images: ImageTable) -> ClassList:
    """Return the labels' names with what the class list says of them."""
    known = dict(zip(classes.names, classes.descriptions, strict=True)) if classes else {}
    return ClassList(images.class_names, tuple(known.get(name, ()) for name in images.class_names))


def read_class_features(store: Store, texts: Sequence[Sequence[str]]) -> Tensor:
    """Return class features [C, D]: each class's prompts normalised, averaged, normalised."""
    flat = [text for of_class in texts for text in of_class]
    features = np.asarray(store.text_features(flat), dtype=np.float32)
    return mean_class_features(torch.from_numpy(features), [len(of_class) for of_class in texts])


def holds_everything(path: Path, images: ImageTable, texts: Sequence[Sequence[str]]) -> bool:
    """Tell whether the teacher need not be asked: a store with every image and every prompt."""
    if not (path / "store.json").is_file():
        return False
    store = Store.open(path)
    flat = [text for of_class in texts for text in of_class]
    return bool(store.has_images(images.keys).all() and store.has_texts(flat).all())


def _complete_store(path: Path, images: ImageTable, texts: Sequence[str]) -> Store:
    store = Store.open(path)
    missing = int((~store.has_images(images.keys)).sum())
    unknown = [t for t, there in zip(texts, store.has_texts(texts), strict=True) if not there]
    if missing or unknown:
        example = f", e.g. {unknown[0]!r}" if unknown else ""
        raise UsageError(
            f"store {path} lacks {missing} of {len(images)} images and {len(unknown)} of "
            f"{len(texts)} texts{example}; give --teacher to ask for them"
        )
    return store


def embed(
    data: DataConfig,
    teacher_spec: str,
    out: Path,
    config: EmbedConfig,
    sentences: Path | None = None,
) -> Path:
    """Embed every image, every class's prompts and every sentence that the store at `out` lacks.

    Processes that `torchrun` starts share the images; the main one does the texts.

    Raises:
        UsageError: the request is wrong; the teacher has not been asked.
    """
    describe_teacher_spec(teacher_spec)
    classes = read_class_list(data.classes) if data.classes else None
    if not data.data and classes is None and sentences is None:
        raise UsageError("nothing to ask the teacher about: give --data, --classes or --texts")
    if sentences is not None and not sentences.is_file():
        raise UsageError(f"--texts {sentences} is no file; give a file of sentences")
    processes = Processes()
    if processes.world > 1 and parse_teacher_spec(teacher_spec)[0] == "remote":
        raise UsageError(
            f"teacher {teacher_spec} is paid by the query, which one process counts: give the "
            "command without torchrun (--parallel asks several requests at once)"
        )
    with processes.main_first():
        images = read_image_table(data, classes, out) if data.data else _no_images(classes)
        prompts = prompts_of(classes, images, data.templates)
        teacher, _ = introduce(teacher_spec, out, needed=True, config=config)
        assert teacher is not None  # `needed`
        if processes.is_main:
            check_store(teacher, images, prompts, out, config)
            missing = 0
            if sentences is not None:
                missing = check_texts(texts_of(sentences, data.templates), teacher, out, config)
    if data.data:
        embed_images(teacher, images, out, config, processes)
    if processes.is_main:
        embed_texts(teacher, [text for of in prompts for text in of], out, config)
        if sentences is not None:
            texts = texts_of(sentences, data.templates)
            embed_texts(teacher, texts, out, config, missing=missing)
    processes.wait()
    return out


def estimate_cost(
    data: DataConfig,
    teacher_spec: str,
    store: Path,
    config: EmbedConfig,
    *,
    notes: Path,
    sentences: Path | None = None,
) -> EmbedCost:
    """Say what `embed` would ask and cost; ask nothing. Notes on image files go to `notes`."""
    describe_teacher_spec(teacher_spec)
    classes = read_class_list(data.classes) if data.classes else None
    images = read_image_table(data, classes, notes) if data.data else _no_images(classes)
    flat = [text for of in prompts_of(classes, images, data.templates) for text in of]
    more = texts_of(sentences, data.templates) if sentences is not None else ()
    return embed_cost(load(teacher_spec, config), images, store, config, chain(flat, more))


def _no_images(classes: ClassList | None) -> ImageTable:
    names = () if classes is None else classes.names
    return ImageTable(
        paths=(), names=(), keys=(), labels=(), domains=(), captions=(), splits=(),
        class_names=names,
    )  # fmt: skip


def features_for_classes(
    run: RunFolder, classes: ClassList | None, teacher_spec: str | None = None
) -> tuple[tuple[str, ...], Tensor]:
    """Return names and class features [C, D] for a run's student: its own classes, or others.

    The run's store answers for texts it knows; the teacher is asked for the rest, once.

    Raises:
        UsageError: the run knows no classes, or new texts are asked and no teacher is known.
    """
    if classes is None:
        known = read_json(run.classes) if run.classes.is_file() else {"names": []}
        if not known["names"]:
            raise UsageError(f"{run.path} was made without classes: give --classes FILE")
        names, texts = tuple(known["names"]), known["texts"]
    else:
        names = classes.names
        texts = class_texts(classes, get_templates(run.option("templates") or "photo"))
    flat = [text for of_class in texts for text in of_class]
    path = Path(run.option("store") or run.store)
    spec = teacher_spec or run.option("teacher")
    if not Store.open(path).has_texts(flat).all():
        config = asking_of(run)
        teacher, _ = introduce(spec, path, needed=True, config=config)
        if teacher is None:
            raise UsageError(f"store {path} lacks texts of these classes; give --teacher")
        embed_texts(teacher, flat, path, config)
    return names, read_class_features(Store.open(path), texts)

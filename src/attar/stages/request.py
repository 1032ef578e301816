"""What can be refused before anything is computed or spent."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from attar.config import to_plain
from attar.data.classes import ClassList, read_class_list
from attar.data.domainbed import make_domainbed_splits
from attar.data.samplers import make_sampler
from attar.data.shards import is_tars
from attar.data.splits import Splits, make_splits, with_train_share
from attar.data.table import ImageTable
from attar.errors import AttarError, UsageError
from attar.evaluation.tasks import find_task
from attar.export.config import ExportConfig
from attar.methods.base import Method
from attar.methods.registry import find_method, method_options
from attar.prompts import get_templates
from attar.run import RunConfig, RunFolder, with_method_defaults
from attar.stages import white_box
from attar.students.student import check_student
from attar.teachers.registry import describe_teacher_spec


def resolve(config: RunConfig) -> RunConfig:
    """Fill in what the method sets where the user said nothing: its options, its training.

    Raises:
        UsageError: an unknown method or option.
    """
    method = find_method(config.method)
    filled = fill_sections(config)
    return replace(filled, method_options=to_plain(method_options(method, config.method_options)))


def fill_sections(config: RunConfig) -> RunConfig:
    """Fill in what the method, or else attar, sets about training and student.

    Raises:
        UsageError: an unknown method.
    """
    method = find_method(config.method)
    return replace(
        config,
        training=with_method_defaults(config.training, method.training, "--training."),
        student_config=with_method_defaults(config.student_config, method.student, "--student."),
    )


def check_names(config: RunConfig) -> tuple[Method, Any, ClassList | None]:
    """Resolve every name in the configuration, reading no image and loading no weights.

    What the method sets about training and student is judged too.

    Returns:
        The method, its options, and the class list if one was given.

    Raises:
        UsageError: an unknown teacher, student, method or option, a missing path, a broken class
            list, a teacher that is needed and not given, or a student that the method cannot train.
    """
    method, config = find_method(config.method), fill_sections(config)
    options = method_options(method, config.method_options)
    _check_student(config, method)
    get_templates(config.data.templates)
    if config.teacher is not None:
        describe_teacher_spec(config.teacher)
    elif "teacher" in method.needs and config.store is None:
        raise UsageError(
            f"method {method.name} needs a teacher: give --teacher (ViT-B-32/openai, "
            "local-dir:PATH, pocket, …), or --store with embeddings made before"
        )
    for path in config.data.data:
        if not is_tars(path) and not path.exists():
            raise UsageError(
                f"--data {path} does not exist; give a folder of images, a CSV or Parquet "
                "manifest, or tars"
            )
    if config.baseline is not None and not (config.baseline / "student").is_dir():
        raise UsageError(f"--baseline {config.baseline} holds no trained student")
    if config.start_from is not None and not (config.start_from / "student").is_dir():
        raise UsageError(f"--start-from {config.start_from} holds no trained student")
    if config.texts is not None and not config.texts.exists():
        raise UsageError(f"--texts {config.texts} does not exist; give a file of sentences")
    for task in config.evaluation.tasks:
        find_task(task)
    classes = read_class_list(config.data.classes) if config.data.classes else None
    return method, options, classes


def _check_student(config: RunConfig, method: Method) -> None:
    white_box.check(config, method)
    if not white_box.is_teacher(config):
        check_student(config.student, config.student_config, method.head)
    if method.paired_prompts and config.student_config.projector == "mlp":
        raise UsageError(
            "--student.projector mlp: its BatchNorm would mix statistics of whole images and of "
            f"the regions that method {method.name} compares; give --student.projector linear"
        )


def check_splits(splits: Splits, config: RunConfig) -> None:
    """Refuse choices that this division of the images cannot serve."""
    source, training = splits.source, config.training
    chosen_by = training.chooses_by_validation
    few_shot = source.few_shot if len(source.few_shot) else None
    sampler = make_sampler(
        training.sampler, source.train, few_shot, training.batch_size, training.seed
    )
    if config.student_config.projector == "mlp" and sampler.global_batch() < 2:
        raise UsageError(
            f"--training.batch-size {training.batch_size}: the BatchNorm of --student.projector "
            "mlp needs at least 2 images in a step"
        )
    if chosen_by and not len(source.val):
        raise UsageError(
            f"{chosen_by} needs validation images and the splits leave none "
            f"({splits.describe()}); raise --splits.val-fraction or leave it out"
        )


def check_export(
    config: ExportConfig, method: Method, class_names: Sequence[str], splits: Splits
) -> None:
    """Refuse an export that could only fail after the training."""
    if method.gives_several_labels:
        raise UsageError(f"--export: {no_bundle(method)}")
    if method.head == "embedding" and not class_names:
        raise UsageError("--export needs classes to write into the bundle; give --classes FILE")
    if config.int8 and not len(splits.source.val):
        raise UsageError(
            f"--export.int8 is judged on validation images and the splits leave none "
            f"({splits.describe()}); raise --splits.val-fraction or leave it out"
        )
    if config.vocabulary is None:
        return
    if method.head == "classes":
        raise UsageError(
            f"method {method.name} makes a plain classifier, which can use no vocabulary: leave "
            "--export.vocabulary out"
        )
    read_class_list(config.vocabulary)


def no_bundle(method: Method) -> str:
    """Return why a student with several labels an image cannot be exported."""
    return (
        f"method {method.name} gives several labels an image, and a bundle answers with one; "
        "measure it with attar evaluate, or use its RUN/student folder from Python"
    )


def divide(images: ImageTable, config: RunConfig) -> Splits:
    """Divide the images by the run's protocol."""
    if config.protocol == "folder":
        return make_splits(images, config.splits)
    if config.splits.held_out_domain is None:
        raise UsageError("DomainBed's protocol holds one domain out: give --held-out-domain")
    if config.splits.unseen_share or config.splits.unseen_classes is not None:
        raise UsageError("DomainBed's protocol has no unseen classes: use --protocol folder")
    if any(split is not None for split in images.splits):
        raise UsageError(
            "DomainBed's protocol makes its own splits: drop the split column; of folders named "
            "like splits give one, --data ROOT/train, or each by a --data of its own"
        )
    splits = make_domainbed_splits(
        images,
        config.splits.held_out_domain,
        trial_seed=config.splits.seed,
        held_out_part=config.splits.held_out_part,
    )
    return with_train_share(splits, config.splits)


def check_needs(
    method: Method, options: Any, images: ImageTable, texts: Path | None = None
) -> None:
    """Refuse data that lack what the method needs with these options, by name."""
    prompts = getattr(options, "class_prompts", False)
    has = {
        "teacher": True,
        "labels": images.has_labels and not images.has_label_sets,
        "label_sets": images.has_label_sets,
        "class_features": bool(images.class_names),
        "captions": any(caption is not None for caption in images.captions),
        "domains": images.has_domains,
        "text": texts is not None or bool(prompts),
    }
    ways = {
        "labels": "class/image folders, or a manifest with a label column",
        "label_sets": "a manifest with a labels column (a|b|c)",
        "class_features": "--classes FILE, or labelled images",
        "captions": "a manifest with a caption column",
        "domains": "domain/class/image folders, or a manifest with a domain column",
        "text": "--texts FILE with sentences, or --method.class-prompts with --classes",
    }
    for need in sorted(method.needs_with(options)):
        if not has[need]:
            raise UsageError(
                f"method {method.name} needs {need.replace('_', ' ')}, which this data lacks "
                f"({images.layout}): give {ways[need]}, or use --method feature-mse"
            )


@contextmanager
def logging_to(run: RunFolder) -> Iterator[None]:
    """Copy everything attar says, tracebacks included, to RUN/train.log.

    Raises:
        AttarError: the accelerator's memory ran out.
    """
    logger = logging.getLogger("attar")
    handler = logging.FileHandler(run.path / "train.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    except Exception as error:
        # To the file alone: on stderr one readable line is enough.
        place = (logger.name, logging.ERROR, __file__, 0)
        handler.handle(logger.makeRecord(*place, "the run failed", (), sys.exc_info()))
        where = f"traceback: {run.path / 'train.log'}"
        if isinstance(error, torch.OutOfMemoryError):
            raise AttarError(
                f"the accelerator's memory ran out ({where}): in a grid give fewer --jobs, and it "
                "goes on; or, into another folder, a smaller --training.batch-size or "
                "--student.image-size"
            ) from error
        error.add_note(where)
        raise
    finally:
        logger.removeHandler(handler)
        handler.close()

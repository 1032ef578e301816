"""The whole path, top to bottom. Read this first.

    data → teacher → store → student → method → training → evaluation → export → report

Every stage is a function from typed configuration and paths to a path, and has its own command.
Only this module and `attar.stages` know more than one of them.
"""

from collections.abc import Sequence
from pathlib import Path

from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.export.config import ExportConfig
from attar.files import write_json, write_text
from attar.methods.base import Method
from attar.run import DataConfig, RunConfig, RunFolder
from attar.stages import bundling, embedding, images, learning, measuring, planning, request
from attar.stages.embedding import Knowledge
from attar.stages.measuring import EvaluationRequest
from attar.store.config import EmbedConfig

__all__ = ["distill", "embed", "estimate", "evaluate", "export"]


def distill(config: RunConfig, out: Path, *, command: str = "attar.distill(...)") -> Path:
    """Distil a teacher into a student and measure it; return the run folder.

    A killed call made again goes on where it stopped and ends in the same result.

    Raises:
        UsageError: the request is wrong; nothing has been computed or spent.
        AttarError: a stage failed; the message names the file or value and the way out.
    """
    run = RunFolder(out)
    method, options, classes = request.check_names(config)
    run.open(config, command)
    if run.done.exists():
        return out
    with request.logging_to(run):
        table = images.read_image_table(config.data, classes, out)
        request.check_needs(method, table)
        splits = request.divide(table, config)
        texts = embedding.prompts_of(classes, table, config.data.templates)
        planning.check_disk(config, splits.source, run)
        table.save(run.images)
        write_json(run.classes, {"names": table.class_names, "texts": texts})

        knowledge = _consult(config, method, table, texts, run)
        student = learning.build(config, method, knowledge, table)
        measuring.build_references(student, splits.source, knowledge, config, run)
        learning.learn(student, (method, options), splits.source, knowledge, config, run)
        measuring.measure(splits, knowledge, config, run)
        write_text(run.done, "")
    return out


def _consult(
    config: RunConfig,
    method: Method,
    table: ImageTable,
    texts: Sequence[Sequence[str]],
    run: RunFolder,
) -> Knowledge | None:
    """Ask the teacher; a method that needs none goes on alone when none was given."""
    if config.teacher is None and config.store is None and "teacher" not in method.needs:
        return None
    return embedding.consult(config.teacher, table, texts, config.store or run.store, config.embed)


def embed(data: DataConfig, teacher: str, out: Path, config: EmbedConfig | None = None) -> Path:
    """Ask the teacher about every image and class of `data`, once ever; return the store."""
    return embedding.embed(data, teacher, out, config or EmbedConfig())


def estimate(config: RunConfig, out: Path) -> planning.Estimate:
    """Say what `distill` would cost in time, teacher queries and disk, and do none of it."""
    method, options, classes = request.check_names(config)
    table = images.read_image_table(config.data, classes, out)
    request.check_needs(method, table)
    texts = embedding.prompts_of(classes, table, config.data.templates)
    splits = request.divide(table, config)
    return planning.estimate(config, (method, options), table, splits.source, texts, RunFolder(out))


def evaluate(asked: EvaluationRequest) -> Path:
    """Measure a student beside its teacher and baselines on any images; return results.jsonl."""
    return measuring.evaluate(asked)


def export(
    run: Path, out: Path, config: ExportConfig | None = None, classes: Path | None = None
) -> Path:
    """Write the bundle for the device and prove that it gives the student's answers."""
    if not run.is_dir():
        raise UsageError(f"{run} is not a folder; give a run made by `attar distill`")
    return bundling.export(run, out, config or ExportConfig(), classes)

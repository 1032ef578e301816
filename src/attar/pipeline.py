"""The whole path, top to bottom. Read this first.

    data → teacher → store → student → method → training → evaluation → export → report

Every stage is a function from typed configuration and paths to a path, and has its own command.
No stage knows another: this module and `attar.stages` put them together, and `suites`, `bench` and
`demo` build on that.
"""

import logging
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from attar.device import Processes, prepare_process
from attar.errors import UsageError
from attar.evaluation.linear_probe_config import LinearProbeConfig
from attar.export.config import ExportConfig, OpenCLIPConfig
from attar.files import check_writable, write_json, write_text
from attar.run import DataConfig, RunConfig, RunFolder
from attar.stages import (
    bundling,
    class_space,
    embedding,
    further_texts,
    images,
    learning,
    measuring,
    openclip_folder,
    planning,
    recorded_views,
    request,
    several_labels,
    snapshots,
)
from attar.stages.comparing import Comparison
from attar.stages.embedding import Knowledge
from attar.stages.job import Job, captions_of
from attar.stages.measuring import EvaluationRequest
from attar.store.config import EmbedConfig
from attar.store.cost import EmbedCost
from attar.suites.config import SuiteConfig

log = logging.getLogger(__name__)

__all__ = [
    "distill",
    "embed",
    "embed_cost",
    "estimate",
    "evaluate",
    "evaluate_suite",
    "export",
    "export_openclip",
]


def distill(
    config: RunConfig,
    out: Path,
    *,
    command: str = "attar.distill(...)",
    estimated: bool = True,
    bundle: ExportConfig | None = None,
) -> Path:
    """Distil a teacher into a student and measure it; return the run folder.

    A killed call made again goes on where it stopped and ends in the same result. With `estimated`
    the cost of the whole job is measured and said before it begins. `bundle` also writes the bundle
    for the device, to OUT/bundle.

    Raises:
        UsageError: the request is wrong; nothing has been computed or spent.
        AttarError: a stage failed; the message names the file or value and the way out.
    """
    config, run = request.resolve(config), RunFolder(out)
    processes = Processes()
    if not run.is_done(config):
        _run(config, run, command, estimated, bundle)
    if bundle is not None and processes.is_main:
        bundling.export(out, run.bundle, bundle)
    processes.wait()
    return out


def _run(
    config: RunConfig, run: RunFolder, command: str, estimated: bool, bundle: ExportConfig | None
) -> None:
    prepare_process()
    processes, store = Processes(), config.store or run.store
    cost = None
    with run.lock() if processes.is_main else nullcontext():
        with processes.main_first():
            job = _prepare(config, run, run.path, bundle)
            if processes.is_main:
                cost = planning.estimate(job, store) if estimated else None
                check_writable(run.path, cost.disk_bytes if cost else 0)
                run.open(config, command)
                images.keep_with_splits(job.images, job.splits, run)
                write_json(run.classes, {"names": job.images.class_names, "texts": job.texts})
        with request.logging_to(run):
            if processes.is_main:
                log.info("data: %s; %s", job.images.layout, job.splits.describe())
                for note in job.splits.notes:
                    log.warning("data: %s", note)
                log.info("estimate: %s", cost or "not made")
            with processes.main_first():
                # The main process has asked by now; what the others need stands in the store.
                knowledge = _consult(job, store, asks=processes.is_main)
                measuring.build_references(job.student, job.source, knowledge, config, run)
            learning.learn(job, knowledge, run)
            if processes.is_main:
                measuring.measure(job.splits, knowledge, config, run)
                snapshots.measure_snapshots(job.splits, knowledge, config, run)
                write_text(run.done, "")
            processes.wait()


def _prepare(
    config: RunConfig, run: RunFolder, notes: Path, bundle: ExportConfig | None = None
) -> Job:
    """Read, divide and load everything, and refuse what cannot work; compute and ask nothing.

    What was found about the image files goes to the folder `notes`.
    """
    method, options, classes = request.check_names(config)
    domain, store = config.splits.held_out_domain, config.store or run.store
    table = images.read_image_table(
        config.data, classes, notes, held_out_domain=domain, store=store
    )
    request.check_needs(method, options, table, config.texts)
    splits = request.divide(table, config)
    if bundle is not None:
        request.check_export(bundle, method, table.class_names, splits)
    request.check_splits(splits, config)
    texts = embedding.prompts_of(classes, table, config.data.templates)
    needed = "teacher" in method.needs or config.store is not None
    asks = config.teacher is not None
    recorded_views.check(options, splits.source, store, config.embed, has_teacher=asks)
    teacher, info = embedding.introduce(config.teacher, store, needed=needed, config=config.embed)
    if info is not None:
        asked = "captions" in method.needs_with(options)
        captions = captions_of(splits.source) if asked else ()
        embedding.check_store(teacher, table, texts, store, config.embed, captions)
    job = Job(
        config=config,
        recipe=(method, options),
        images=table,
        splits=splits,
        texts=texts,
        plain_texts=embedding.texts_behind_context_of(classes, table),
        teacher=teacher,
        student=learning.build(config, method, info, splits.source.train.class_names, teacher),
        teacher_dim=None if info is None else info.dim,
    )
    further_texts.check(job, store)
    class_space.check(job)
    several_labels.check(job)
    return job


def _consult(job: Job, store: Path, *, asks: bool) -> Knowledge | None:
    """Ask the teacher, or without `asks` read what is in the store.

    A method that needs no teacher goes on alone when none was given.
    """
    if job.teacher is None and "teacher" not in job.recipe[0].needs and job.config.store is None:
        return None
    if asks:
        further_texts.consult(job, store)
    teacher = job.teacher if asks else None
    return embedding.consult(teacher, job.images, job.texts, store, job.config.embed, job.captions)


def embed(
    data: DataConfig,
    teacher: str,
    out: Path,
    config: EmbedConfig | None = None,
    texts: Path | None = None,
) -> Path:
    """Ask the teacher about every image and class of `data` and every sentence of the file `texts`.

    Once ever; returns the store.
    """
    prepare_process()
    return embedding.embed(data, teacher, out, config or EmbedConfig(), texts)


def embed_cost(
    data: DataConfig,
    teacher: str,
    out: Path,
    config: EmbedConfig | None = None,
    texts: Path | None = None,
) -> EmbedCost:
    """Say what `embed` would cost in queries, money, bytes and time, and ask nothing."""
    prepare_process()
    with TemporaryDirectory(prefix="attar-") as notes:
        return embedding.estimate_cost(
            data, teacher, out, config or EmbedConfig(), notes=Path(notes), sentences=texts
        )


def estimate(config: RunConfig, out: Path, bundle: ExportConfig | None = None) -> planning.Estimate:
    """Say what `distill` would cost in time, teacher queries and disk, and do none of it."""
    config, run = request.resolve(config), RunFolder(out)
    run.is_done(config)  # refuses a folder that the run could not use
    with TemporaryDirectory(prefix="attar-") as notes:
        prepare_process()
        embedding.refuse_to_pay(config.teacher, config.store or run.store)
        job = _prepare(config, run, Path(notes), bundle)
        return planning.estimate(job, config.store or run.store)


def evaluate(asked: EvaluationRequest) -> Path:
    """Measure a student beside its teacher and baselines on any images; return results.jsonl."""
    prepare_process()
    return measuring.evaluate(asked)


def evaluate_suite(
    comparison: Comparison, options: SuiteConfig, probe: LinearProbeConfig | None = None
) -> Path:
    """Measure a student and what stands beside it on a whole suite; return results.jsonl."""
    # On use: suites load SciPy, scikit-learn and torchvision's data sets.
    from attar.suites.registry import run_suite
    from attar.suites.request import SuiteRequest

    prepare_process()
    probe = probe or LinearProbeConfig()
    return run_suite(SuiteRequest(comparison=comparison, options=options, probe=probe))


def export(
    run: Path, out: Path, config: ExportConfig | None = None, classes: Path | None = None
) -> Path:
    """Write the bundle for the device and prove that it gives the student's answers."""
    if not run.is_dir():
        raise UsageError(f"{run} is not a folder; give a run made by `attar distill`")
    return bundling.export(run, out, config or ExportConfig(), classes)


def export_openclip(
    run: Path, out: Path, config: OpenCLIPConfig | None = None, samples: int = 16
) -> Path:
    """Write the student with its teacher's text tower as an OpenCLIP model, and prove it."""
    if not run.is_dir():
        raise UsageError(f"{run} is not a folder; give a run made by `attar distill`")
    return openclip_folder.export(run, out, config or OpenCLIPConfig(), samples)

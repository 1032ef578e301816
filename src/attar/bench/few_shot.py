"""Few-shot learning of classes that a finished run has never seen: k images, several draws.

Fine-tuning starts from the run's student and mixes the few new images with the old ones, at most
half and half. Retrieval trains nothing: the few images become keys (Tip-Adapter). Both are measured
on the other images of the new classes, ranked among those alone, beside the student as it was.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from attar import pipeline
from attar.bench.config import FewShotConfig
from attar.bench.markdown import markdown, mean_text, write_results
from attar.config import coerce_options, to_plain
from attar.data.splits import SplitConfig
from attar.device import prepare_process
from attar.errors import UsageError
from attar.records import Record, read_records
from attar.run import RunConfig, RunFolder, from_options
from attar.stages.embedding import consult, introduce, prompts_of
from attar.stages.images import read_image_table
from attar.stages.measuring import open_run
from attar.stages.request import check_names, divide
from attar.stages.retrieval import TASK, retrieve
from attar.stages.retrieval_config import RetrievalConfig
from attar.training.config import TrainingConfig

SPLITS = ("test_id", "unseen_classes", "test_ood", "further_unseen")
_METRIC = "mean_per_class_recall"


def run_few_shot(
    run: Path,
    config: FewShotConfig,
    training: Mapping[str, Any],
    retrieval: RetrievalConfig,
    out: Path,
) -> Path:
    """Learn a run's unseen classes from a few images, once for each seed; return the results.

    They are results.jsonl and table.md in OUT/finetune or OUT/retrieval. Each draw of a fine-tuning
    is a run folder there: killed and started again, only what is missing runs.

    Args:
        run: made by `attar distill`.
        config: how many images, drawn how often, and what is done with them.
        training: options that fine-tuning sets otherwise than the run and `FINE_TUNING` have them.
        retrieval: how keys are made and weighed.
        out: folder for all of it.

    Raises:
        UsageError: the run is not finished, or its splits have no unseen classes.
    """
    base = read_run(run)
    if not (base.splits.unseen_share or base.splits.unseen_classes or _is_manifest(base)):
        raise UsageError(f"{run} was trained on all of its classes: there is none to learn anew")
    records: list[Record] = []
    place = out / config.how
    seeds: Sequence[int | None] = config.seeds or (None,)
    for seed in seeds:
        folder = place / ("by-name" if seed is None else f"seed{seed}")
        splits = _splits(base, config, seed)
        if config.how == "finetune":
            tuned = fine_tuning(base.training, training)
            found = _fine_tune(replace(base, splits=splits, training=tuned), run, folder)
        else:
            found = _retrieve(replace(base, splits=splits), run, retrieval, folder)
        facts = {"how": config.how, "shots": config.shots, "few_shot_seed": seed}
        records += [replace(r, extra={**r.extra, **facts}) for r in found]
    write_results(records, place, few_shot_table(records))
    return place


FINE_TUNING: Mapping[str, Any] = {
    "sampler": "half-few-shot",
    "schedule": "one-cycle",
    "lr": 3e-4,
    "epochs": 20.0,
    "steps": None,
    "snapshots": 0,
}
"""What fine-tuning on few images sets otherwise than the run that it starts from."""


def fine_tuning(of_run: TrainingConfig, given: Mapping[str, Any]) -> TrainingConfig:
    """Return the run's own training options, then those of `FINE_TUNING`, then those given.

    Raises:
        UsageError: an option that does not exist, or a value of the wrong type.
    """
    options = {name.replace("-", "_"): value for name, value in given.items()}
    if "steps" in options:
        options.setdefault("epochs", None)
    values = {**to_plain(of_run), **FINE_TUNING, **options}
    return coerce_options(TrainingConfig, values, "--training.")


def read_run(path: Path) -> RunConfig:
    """Return the configuration of a finished run, with the store it used.

    Raises:
        UsageError: no run, or one that has not ended.
    """
    run = RunFolder(path)
    config = from_options(run.options())
    if not run.done.is_file():
        raise UsageError(f"{path} holds a run that is not finished; give its command again")
    return replace(config, store=config.store or run.store)


def _is_manifest(base: RunConfig) -> bool:
    return all(path.is_file() for path in base.data.data)


def _splits(base: RunConfig, config: FewShotConfig, seed: int | None) -> SplitConfig:
    """Return the run's own splits with a few images of the unseen classes moved to training."""
    return replace(
        base.splits,
        few_shot=config.shots,
        few_shot_share=config.share,
        few_shot_seed=seed,
    )


def _fine_tune(base: RunConfig, run: Path, folder: Path) -> list[Record]:
    """Go on from the run's student; `baseline` is what it said of the same images before."""
    config = replace(base, start_from=run, baseline=run, references=False)
    pipeline.distill(config, folder, command=f"attar few-shot {run}", estimated=False)
    return read_records(folder / "results.jsonl")


def _retrieve(base: RunConfig, run: Path, retrieval: RetrievalConfig, folder: Path) -> list[Record]:
    prepare_process()
    _, _, classes = check_names(base)
    table = read_image_table(base.data, classes, folder)
    texts = prompts_of(classes, table, base.data.templates)
    store = base.store or RunFolder(run).store
    teacher, _ = introduce(base.teacher, store, needed=True, config=base.embed)
    knowledge = consult(teacher, table, texts, store, base.embed)
    student = open_run(run, "student")
    return retrieve(student, divide(table, base), knowledge, base, retrieval, folder)


def few_shot_table(records: Iterable[Record]) -> str:
    """Return Markdown: mean per-class accuracy in %, mean ± deviation over the draws."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    count: dict[tuple[str, str], int] = {}
    for record in records:
        row = _row_of(record)
        if row is None or record.domain != "all" or _METRIC not in record.metrics:
            continue
        found[row, record.split].append(100 * record.metrics[_METRIC])
        count[row, record.split] = int(record.extra["num_classes"])
    splits = [s for s in SPLITS if _has(found, s)]
    body = []
    for row in dict.fromkeys(row for row, _ in found):
        texts = [_text(found.get((row, split), []), count.get((row, split), 0)) for split in splits]
        body.append([row, *texts])
    table = markdown(["", *splits], body)
    return f"{table}\n\nMean per-class accuracy in %, ranked among the split's own classes.\n"


def _has(found: Iterable[tuple[str, str]], split: str) -> bool:
    return any(key[1] == split for key in found)


def _row_of(record: Record) -> str | None:
    if record.task == TASK:
        return f"retrieval, keys of the {record.extra['keys']}"
    if record.task != "zeroshot_classification":
        return None
    if record.extra["how"] == "retrieval":
        return "zero-shot"
    return {"student": "fine-tuned", "baseline": "zero-shot, before", "teacher": "teacher"}.get(
        record.role
    )


def _text(values: Sequence[float], classes: int) -> str:
    return f"{mean_text(values)} ({classes} classes)" if values else mean_text(values)

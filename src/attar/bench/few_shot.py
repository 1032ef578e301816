"""Few-shot learning of classes that a finished run has never seen: k images, several draws.

Fine-tuning starts from the run's student and mixes the few new images with the old ones, at most
half and half. Retrieval trains nothing: the few images become keys (Tip-Adapter). Both are measured
on the other images of the new classes, ranked among those alone, beside the student as it was.
"""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from attar import pipeline
from attar.bench.config import FewShotConfig
from attar.data.splits import SplitConfig
from attar.device import prepare_process
from attar.errors import UsageError
from attar.files import write_text
from attar.records import Record, read_records
from attar.run import RunConfig, RunFolder, from_options
from attar.stages.embedding import consult, introduce, prompts_of
from attar.stages.images import read_image_table
from attar.stages.measuring import open_run
from attar.stages.request import check_names, divide
from attar.stages.retrieval import TASK, retrieve
from attar.stages.retrieval_config import RetrievalConfig
from attar.training.config import TrainingConfig

_METRIC = "mean_per_class_recall"


def run_few_shot(
    run: Path,
    config: FewShotConfig,
    training: TrainingConfig,
    retrieval: RetrievalConfig,
    out: Path,
) -> Path:
    """Learn a run's unseen classes from a few images, once for each seed; return `out`.

    Each draw is a folder of its own: killed and started again, only what is missing is done.
    Writes results.jsonl and table.md.

    Raises:
        UsageError: the run is not finished, or its splits have no unseen classes.
    """
    base = read_run(run)
    if not (base.splits.unseen_share or base.splits.unseen_classes or _is_manifest(base)):
        raise UsageError(f"{run} was trained on all of its classes: there is none to learn anew")
    records: list[Record] = []
    seeds: Sequence[int | None] = config.seeds or (None,)
    for seed in seeds:
        folder = out / config.how / ("by-name" if seed is None else f"seed{seed}")
        splits = _splits(base, config, seed)
        if config.how == "finetune":
            found = _fine_tune(replace(base, splits=splits), run, training, folder)
        else:
            found = _retrieve(replace(base, splits=splits), run, retrieval, folder)
        facts = {"how": config.how, "shots": config.shots, "few_shot_seed": seed}
        records += [replace(r, extra={**r.extra, **facts}) for r in found]
    lines = [json.dumps(asdict(record), ensure_ascii=False) for record in records]
    write_text(out / "results.jsonl", "".join(f"{line}\n" for line in lines))
    write_text(out / "table.md", few_shot_table(records))
    return out


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


def _fine_tune(base: RunConfig, run: Path, training: TrainingConfig, folder: Path) -> list[Record]:
    """Go on from the run's student; `baseline` is what it said of the same images before."""
    config = replace(base, training=training, start_from=run, baseline=run, references=False)
    pipeline.distill(config, folder, command=f"attar few-shot {run}", estimated=False)
    return read_records(folder / "results.jsonl")


def _retrieve(base: RunConfig, run: Path, retrieval: RetrievalConfig, folder: Path) -> list[Record]:
    prepare_process()
    _, _, classes = check_names(base)
    table = read_image_table(base.data, classes, folder)
    texts = prompts_of(classes, table, base.data.templates)
    store = base.store or RunFolder(run).store
    teacher, _ = introduce(base.teacher, store, needed=True)
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
    splits = [s for s in ("test_id", "unseen_classes", "further_unseen") if _has(found, s)]
    lines = ["| | " + " | ".join(splits) + " |", "| --- |" + " ---: |" * len(splits)]
    for row in dict.fromkeys(row for row, _ in found):
        texts = [_text(found.get((row, split), []), count.get((row, split), 0)) for split in splits]
        lines.append(f"| {row} | " + " | ".join(texts) + " |")
    lines += ["", "Mean per-class accuracy in %, ranked among the split's own classes."]
    return "\n".join(lines) + "\n"


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
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):.1f}"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean}{spread} ({classes} classes)"

"""`attar distill`: the whole path with one command."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from attar.cli.say import command_line, print_results
from attar.data.splits import SplitConfig
from attar.errors import UsageError
from attar.evaluation.config import EvaluationConfig
from attar.export.config import ExportConfig
from attar.run import DataConfig, RunConfig
from attar.store.config import EmbedConfig
from attar.students.config import StudentConfig
from attar.training.config import TrainingConfig


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DistillOptions:
    """What is distilled, into what, and where it goes."""

    out: Path
    """Run folder; an interrupted run in it goes on where it stopped."""
    teacher: str | None = None
    """OpenCLIP (`ViT-B-32/openai`, `hf-hub:org/name`, `local-dir:path`), Hugging Face (`hf:name`),
    or the offline `pocket`. Not needed with a --store that holds everything, or by `erm`."""
    student: str = "mobilenetv3_small_100"
    """Any timm model, as `timm/NAME` or `NAME`; or `teacher`, the teacher's own image encoder."""
    method: str = "vl2v-adip"
    """Distillation method; its own options are `--method.OPTION`."""
    store: Path | None = None
    """Folder of teacher embeddings to use and fill; OUT/store by default."""
    held_out_domain: str | None = None
    """Keep this domain out of training, selection and early stopping, and measure on it."""
    protocol: Literal["folder", "domainbed"] = "folder"
    """How images are divided: stratified fractions, or DomainBed's exact splits."""
    baseline: Path | None = None
    """Another run whose student is shown beside this one."""
    start_from: Path | None = None
    """A run whose trained student this one starts from, instead of pretrained weights."""
    texts: Path | None = None
    """For `dime-fm`: sentences that nothing pairs with the images: a text file (one a line),
    .jsonl, a .csv or .parquet with a column text or caption, or a store (all of its texts)."""
    references: bool = True
    """Also measure the untrained student, the mean embedding, and the backbone whose projection
    alone was fitted."""
    export: bool = False
    """Also write the bundle for the device to OUT/bundle."""
    dry_run: bool = False
    """Only print the estimate of time, teacher queries and disk."""


@dataclass(frozen=True, kw_only=True)
class Sections:
    """The dotted option groups, one for each stage."""

    student: Annotated[StudentConfig, Parameter(name="--student")] = StudentConfig()
    splits: Annotated[SplitConfig, Parameter(name="--splits")] = SplitConfig()
    training: Annotated[TrainingConfig, Parameter(name="--training")] = TrainingConfig()
    embed: Annotated[EmbedConfig, Parameter(name="--embed")] = EmbedConfig()
    evaluation: Annotated[EvaluationConfig, Parameter(name="--evaluation")] = EvaluationConfig()
    export: Annotated[ExportConfig, Parameter(name="--export")] = field(
        default_factory=ExportConfig
    )


def distill(
    *,
    data: Annotated[DataConfig, Parameter(name="*")],
    options: DistillOptions,
    method_options: Annotated[dict[str, str] | None, Parameter(name="--method")] = None,
    sections: Annotated[Sections, Parameter(name="*")] = Sections(),
) -> int:
    """Distil a teacher into a small student: data, embeddings, training, evaluation, report.

    Every teacher query is asked once, ever; a killed command goes on where it stopped.

    For example:

    `attar distill --data photos/ --classes classes.txt --teacher ViT-B-32/openai
    --student mobilenetv3_small_100 --method feature-mse --out runs/photos --export`

    `attar distill --data PACS/ --held-out-domain sketch --teacher pocket
    --student tf_efficientnet_lite0 --method vl2v-adip --training.steps 200 --out runs/sketch`

    `attar distill --config runs/sketch/config.yaml --training.lr 1e-4 --out runs/again`
    """
    from attar import pipeline
    from attar.stages.bundling import int8_refusal

    config = run_config(data, options, method_options, sections)
    bundle = sections.export if options.export else None
    if options.dry_run:
        print(pipeline.estimate(config, options.out, bundle))
        return 0
    run = pipeline.distill(config, options.out, command=command_line(), bundle=bundle)
    if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun starts one speaks
        print_results(run / "results.jsonl")
        print(run)
        if bundle is not None and int8_refusal(run / "bundle"):
            return 1  # it was asked for, and why there is none has been said
    return 0


def run_config(
    data: DataConfig,
    options: DistillOptions,
    method_options: dict[str, str] | None = None,
    sections: Sections = Sections(),
) -> RunConfig:
    """Gather what the command line's groups of options say.

    Raises:
        UsageError: the held-out domain is given under --splits.
    """
    if sections.splits.held_out_domain is not None:
        raise UsageError("give --held-out-domain, not --splits.held-out-domain")
    return RunConfig(
        data=data,
        teacher=options.teacher,
        student=options.student,
        method=options.method,
        method_options={k.replace("-", "_"): v for k, v in (method_options or {}).items()},
        store=options.store,
        splits=replace(sections.splits, held_out_domain=options.held_out_domain),
        protocol=options.protocol,
        student_config=sections.student,
        training=sections.training,
        embed=sections.embed,
        evaluation=sections.evaluation,
        references=options.references,
        baseline=options.baseline,
        start_from=options.start_from,
        texts=options.texts,
    )

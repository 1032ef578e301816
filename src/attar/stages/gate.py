"""The teacher gate: read the labelled images, ask the teacher once, judge, write it down."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from attar.data.classes import ClassList, read_class_list
from attar.data.table import ImageTable
from attar.device import pick_device
from attar.errors import UsageError, unknown_name
from attar.evaluation.features import features_of
from attar.evaluation.few_labels import draw_labels
from attar.evaluation.gate import GateImages, deciding_labels, judge
from attar.evaluation.gate_config import GateConfig
from attar.evaluation.gate_records import gate_records
from attar.evaluation.metrics import Indices
from attar.evaluation.models import Features, features_from_store, from_trunk
from attar.files import atomic_path, check_writable
from attar.prompts import get_templates
from attar.records import append_records
from attar.report.gate import write_gate_page
from attar.run import DataConfig
from attar.stages.embedding import Knowledge, check_store, consult, introduce, load, prompts_of
from attar.stages.images import read_image_table
from attar.store.config import EmbedConfig
from attar.store.cost import EmbedCost, embed_cost
from attar.students.config import StudentConfig
from attar.students.student import build_student, check_student
from attar.teachers.registry import describe_teacher_spec

log = logging.getLogger(__name__)

RESULTS, PAGE = "results.jsonl", "gate.html"
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class GateRequest:
    """What `attar gate` judges."""

    data: DataConfig
    teacher: str | None
    """None when `store` holds all it said."""
    out: Path
    store: Path | None = None
    """Where the teacher's embeddings are kept; OUT/store by default."""
    domains: tuple[str, ...] = ()
    """The domains to judge; all by default. Others still give labels."""
    student: str | None = None
    """A backbone whose own features are probed too, before it has learnt anything."""
    student_config: StudentConfig = field(default_factory=StudentConfig)
    config: GateConfig = field(default_factory=GateConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)

    @property
    def store_path(self) -> Path:
        """The store in use."""
        return self.store or self.out / "store"


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is about to be judged; nothing has been asked yet."""

    table: ImageTable
    """The labelled images that are judged or give a label."""
    images: GateImages
    judged: tuple[int, ...]
    """Indices of domains."""
    texts: list[list[str]]


def run_gate(asked: GateRequest) -> Path:
    """Judge a teacher on labelled images, before any training; return results.jsonl.

    Beside it lie `gate.html` and, unless another was given, the store with what the teacher said,
    which training then uses.

    Raises:
        UsageError: the request is wrong; the teacher has not been asked.
    """
    classes = _check(asked)
    check_writable(asked.out)
    plan = _plan(asked, classes, asked.out)
    teacher, _ = introduce(asked.teacher, asked.store_path, needed=True, config=asked.embed)
    check_store(teacher, plan.table, plan.texts, asked.store_path, asked.embed)
    knowledge = consult(teacher, plan.table, plan.texts, asked.store_path, asked.embed)
    features, answers = _teacher_side(knowledge, plan)
    of_models = {"teacher": features}
    if asked.student is not None:
        of_models["student"] = _student_features(asked, knowledge, plan)
    found = judge(plan.images, answers, of_models, plan.judged, asked.config)
    dataset = asked.data.name
    records = gate_records(found, knowledge.teacher, dataset, asked.config, asked.student)
    results = asked.out / RESULTS
    with atomic_path(results) as temporary:
        append_records(temporary, records)
    write_gate_page(results, asked.out / PAGE)
    return results


def gate_cost(asked: GateRequest) -> EmbedCost:
    """Say what `run_gate` would cost in queries, money, bytes and time, and ask nothing."""
    classes = _check(asked)
    if asked.teacher is None:
        raise UsageError("--dry-run says what a teacher would cost: give --teacher")
    with TemporaryDirectory(prefix="attar-") as notes:
        plan = _plan(asked, classes, Path(notes))
    flat = [text for of in plan.texts for text in of]
    teacher = load(asked.teacher, asked.embed)
    return embed_cost(teacher, plan.table, asked.store_path, asked.embed, flat)


def _check(asked: GateRequest) -> ClassList | None:
    """Refuse wrong names before an image is read; return the class list if one was given."""
    if asked.teacher is not None:
        describe_teacher_spec(asked.teacher)
    if asked.student is not None:
        check_student(asked.student, asked.student_config)
    get_templates(asked.data.templates)
    if not asked.data.data:
        raise UsageError("nothing to judge the teacher on: give --data with labelled images")
    for path in asked.data.data:
        if not path.exists():
            raise UsageError(f"--data {path} does not exist; give a folder of images or a manifest")
    return read_class_list(asked.data.classes) if asked.data.classes else None


def _plan(asked: GateRequest, classes: ClassList | None, notes: Path) -> _Plan:
    """Read the images and draw the labels; of images that play no part nothing will be asked."""
    table = _usable(read_image_table(asked.data, classes, notes, superset=True))
    labels, domains = np.asarray(table.labels), np.asarray(table.domains)
    drawn = draw_labels(
        table.keys,
        labels + len(table.class_names) * domains,
        asked.config.labels_per_class,
        asked.config.draws,
        asked.config.seed,
    )
    judged = _judged(asked.domains, table)
    takes_part = np.isin(domains, judged) | drawn.any(axis=0)
    images = GateImages(
        labels=labels[takes_part],
        domains=domains[takes_part],
        class_names=table.class_names,
        domain_names=table.domain_names,
        drawn=drawn[:, takes_part],
    )
    deciding_labels(images, asked.config)  # refuses what the data cannot serve
    return _Plan(
        table=table.select(np.flatnonzero(takes_part).tolist()),
        images=images,
        judged=judged,
        texts=prompts_of(classes, table, asked.data.templates),
    )


def _usable(table: ImageTable) -> ImageTable:
    """Return the labelled images, each file's bytes once, with a domain each or none at all.

    A copy of an image would let the probe see what it is asked about.
    """
    if table.has_label_sets:
        raise UsageError(
            f"the gate judges one label an image, and these have several ({table.layout})"
        )
    first: dict[str, int] = {}
    several = table.has_domains
    for row, key in enumerate(table.keys):
        if table.labels[row] >= 0 and (table.domains[row] >= 0 or not several):
            first.setdefault(key, row)
    if not first:
        raise UsageError(
            f"the gate needs labelled images, and there are none ({table.layout}): give "
            "class/image folders, or a manifest with a label column; a few images a class will do"
        )
    if len(first) < len(table):
        left_out = len(table) - len(first)
        log.info("%d images without a label or domain, or twice there, are left out", left_out)
    part = table.select(list(first.values()))
    if several:
        return part
    return replace(part, domains=(0,) * len(part), domain_names=("all",))


def _judged(names: Sequence[str], table: ImageTable) -> tuple[int, ...]:
    present = {table.domain_names[index]: index for index in sorted(set(table.domains))}
    for name in names:
        if name not in present:
            raise unknown_name("domain", name, present)
    return tuple(present[name] for name in dict.fromkeys(names)) or tuple(present.values())


def _teacher_side(knowledge: Knowledge, plan: _Plan) -> tuple[Features, Indices]:
    """Return the teacher's image features [N, D] and its zero-shot answers [N]."""
    features = features_from_store(knowledge.store, plan.table)
    if knowledge.class_features is None:
        raise UsageError("the gate needs classes to ask the teacher for: give --classes FILE")
    return features, (features @ knowledge.class_features.numpy().T).argmax(axis=1)


def _student_features(asked: GateRequest, knowledge: Knowledge, plan: _Plan) -> Features:
    """Return the pooled features [N, W] of the student's backbone as it would begin."""
    torch.manual_seed(asked.config.seed)
    student = build_student(asked.student or "", knowledge.teacher.dim, asked.student_config)
    student.to(pick_device())
    path = asked.out / "features" / "student.safetensors"
    workers = asked.embed.workers
    return features_of(from_trunk(student), plan.table, path, batch_size=_BATCH, workers=workers)

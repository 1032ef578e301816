"""What should stand for a class? The teacher's zero-shot accuracy under six class embeddings.

The study of Addepalli et al. (CVPR 2024), with each domain held out in turn; nothing is trained.
E4 and E6 are oracles: they are made of the held-out domain's own images and labels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from attar.bench.markdown import NOTHING, markdown, write_results
from attar.data.classes import read_class_list
from attar.data.domainbed import make_domainbed_splits
from attar.data.table import ImageTable
from attar.errors import UsageError, unknown_name
from attar.evaluation.class_embeddings import mean_cosines, neighbour_cosines
from attar.evaluation.metrics import Floats, unit
from attar.evaluation.models import features_from_store
from attar.evaluation.zero_shot import classification_metrics
from attar.prompts import domain_prompts, get_templates
from attar.records import Record
from attar.run import DataConfig
from attar.stages.class_embeddings import domains_of
from attar.stages.embedding import (
    Knowledge,
    check_store,
    consult,
    introduce,
    prompts_of,
    read_class_features,
)
from attar.stages.images import read_image_table
from attar.store.config import EmbedConfig

TASK = "class_embedding"


@dataclass(frozen=True, kw_only=True)
class EmbeddingsRequest:
    """What `attar bench embeddings` measures."""

    data: DataConfig
    teacher: str | None
    """None when `store` holds all it said."""
    out: Path
    store: Path | None = None
    """Where the teacher's embeddings are kept; OUT/store by default."""
    domains: tuple[str, ...] = ()
    """Held out in turn; all by default."""
    neighbours: int = 10
    seed: int = 0
    embed: EmbedConfig = field(default_factory=EmbedConfig)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """One domain held out: images to classify, and what the class embeddings are made of."""

    knowledge: Knowledge
    source: ImageTable
    """The training images of the other domains, labelled."""
    target: ImageTable
    """All labelled images of the held-out domain."""
    neighbours: int

    def features(self, table: ImageTable) -> Floats:
        """Return the teacher's unit features [N, D] of some of the images."""
        return unit(features_from_store(self.knowledge.store, table))

    def prompts(self) -> Floats:
        """Return cosines [N, C] with the run's prompts."""
        classes = self.knowledge.of_classes(self.target.class_names)
        assert classes is not None
        return self.features(self.target) @ unit(classes).T

    def source_domains(self) -> Floats:
        """Return cosines with the mean of "a {domain} of a {class}" over the source domains."""
        texts = domain_prompts(self.target.class_names, domains_of(self.source))
        classes = read_class_features(self.knowledge.store, texts)
        return self.features(self.target) @ unit(classes).T

    def means_of(self, images: ImageTable) -> Floats:
        """Return cosines with the class means of images."""
        return mean_cosines(
            self.features(self.target),
            self.features(images),
            np.asarray(images.labels),
            len(images.class_names),
        )

    def near(self, images: ImageTable) -> Floats:
        """Return cosines with the mean of the nearest images of each class."""
        return neighbour_cosines(
            (self.features(self.target), self.target.keys),
            (self.features(images), images.keys),
            np.asarray(images.labels),
            len(images.class_names),
            self.neighbours,
        )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One way to make class embeddings."""

    words: str
    cosines: Callable[[HeldOut], Floats]
    oracle: bool = False
    of_images: bool = False
    """Whether a class needs images, the held-out domain's for an oracle, else the source's."""

    def without_image(self, held_out: HeldOut) -> list[str]:
        """Return the classes that it cannot embed, and so never answers."""
        if not self.of_images:
            return []
        images = held_out.target if self.oracle else held_out.source
        present = set(images.labels)
        return [name for label, name in enumerate(images.class_names) if label not in present]


CHOICES: Mapping[str, Choice] = {
    "E1": Choice(words="the prompts", cosines=HeldOut.prompts),
    "E2": Choice(
        words='"a {domain} of a {class}", mean over source domains', cosines=HeldOut.source_domains
    ),
    "E3": Choice(
        words="mean image of the class, source",
        cosines=lambda h: h.means_of(h.source),
        of_images=True,
    ),
    "E4": Choice(
        words="mean image of the class, held-out domain",
        cosines=lambda h: h.means_of(h.target),
        oracle=True,
        of_images=True,
    ),
    "E5": Choice(
        words="mean of the nearest images, source",
        cosines=lambda h: h.near(h.source),
        of_images=True,
    ),
    "E6": Choice(
        words="mean of the nearest images, held-out domain",
        cosines=lambda h: h.near(h.target),
        oracle=True,
        of_images=True,
    ),
}
"""The paper's names of them."""


def run_embeddings(asked: EmbeddingsRequest) -> Path:
    """Measure all six on each held-out domain; return the folder of results.jsonl and table.md.

    A class without an image on one side has no embedding there: it is never answered, metrics
    count the images there are, and the result names it.

    Raises:
        UsageError: images without labels or with fewer than two domains, or an unknown domain.
    """
    get_templates(asked.data.templates)
    if asked.neighbours < 1:
        raise UsageError(f"--neighbours {asked.neighbours}: give 1 or more")
    classes = read_class_list(asked.data.classes) if asked.data.classes else None
    table = _labelled(read_image_table(asked.data, classes, asked.out))
    present = domains_of(table)
    if len(present) < 2:
        raise UsageError(
            f"holding a domain out needs labelled images of two or more ({table.layout})"
        )
    for name in asked.domains:
        if name not in present:
            raise unknown_name("domain", name, present)
    knowledge = _consult(asked, table, prompts_of(classes, table, asked.data.templates))
    records: list[Record] = []
    for domain in asked.domains or present:
        splits = make_domainbed_splits(table, domain, trial_seed=asked.seed)
        held_out = HeldOut(
            knowledge=knowledge,
            source=splits.source.train,
            target=splits.held_out,
            neighbours=asked.neighbours,
        )
        records += _measure(held_out, domain, asked.data.name)
    write_results(records, asked.out, _table(records))
    return asked.out


def _labelled(table: ImageTable) -> ImageTable:
    return table.select([row for row, label in enumerate(table.labels) if label >= 0])


def _consult(
    asked: EmbeddingsRequest, table: ImageTable, prompts: Sequence[Sequence[str]]
) -> Knowledge:
    store = asked.store or asked.out / "store"
    teacher, _ = introduce(asked.teacher, store, needed=True, config=asked.embed)
    of_domains = domain_prompts(table.class_names, domains_of(table))
    further = [text for of_class in of_domains for text in of_class]
    check_store(teacher, table, prompts, store, asked.embed, further)
    return consult(teacher, table, prompts, store, asked.embed, further)


def _measure(held_out: HeldOut, domain: str, dataset: str) -> Iterator[Record]:
    teacher, target = held_out.knowledge.teacher, held_out.target
    labels = np.asarray(target.labels)
    for name, choice in CHOICES.items():
        yield Record(
            dataset=dataset,
            model=teacher.name,
            pretrained="",
            task=TASK,
            metrics=classification_metrics(teacher.logit_scale * choice.cosines(held_out), labels),
            role="teacher",
            split="held_out",
            domain=domain,
            num_images=len(target),
            extra={
                "embedding": name,
                "words": choice.words,
                "oracle": choice.oracle,
                "held_out_domain": domain,
                "neighbours": held_out.neighbours,
                "classes_without_image": choice.without_image(held_out),
            },
        )


def _table(records: Sequence[Record]) -> str:
    domains = list(dict.fromkeys(record.domain for record in records))
    found = {(r.extra["embedding"], r.domain): 100 * r.metrics["acc1"] for r in records}
    body = []
    for name, choice in CHOICES.items():
        values = [found[name, domain] for domain in domains]
        mean = f"{sum(values) / len(values):.1f}" if values else NOTHING
        words = f"{name}: {choice.words}" + (" (oracle)" if choice.oracle else "")
        body.append([words, *(f"{value:.1f}" for value in values), mean])
    return (
        f"# Class embeddings of {records[0].model}\n\n"
        "Accuracy (%) of the teacher on each held-out domain, nothing trained. The oracles are "
        "made of the held-out domain's own labelled images.\n\n"
        f"{markdown(['class embedding', *domains, 'mean'], body)}\n{_notes(records)}"
    )


def _notes(records: Sequence[Record]) -> str:
    """Name the classes that some embeddings lack, one line a domain and side."""
    lacking: dict[tuple[str, bool, str], list[str]] = {}
    for record in records:
        extra = record.extra
        if extra["classes_without_image"]:
            side = record.domain, extra["oracle"], ", ".join(extra["classes_without_image"])
            lacking.setdefault(side, []).append(extra["embedding"])
    notes = []
    for (domain, oracle, names), embeddings in lacking.items():
        they = " and ".join(embeddings)
        notes.append(
            f"- {domain}: it has no image of {names}, which {they} therefore never answer; its "
            "numbers are over the classes that it has."
            if oracle
            else f"- {domain}: the source images show no {names}, which {they} therefore never "
            "answer."
        )
    return "\n" + "\n".join(notes) + "\n" if notes else ""

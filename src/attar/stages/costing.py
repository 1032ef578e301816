"""What models cost, measured where models of several makers stand side by side."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from attar.errors import AttarError
from attar.evaluation.config import EvaluationConfig
from attar.evaluation.cost import TASK as COST
from attar.evaluation.models import EvaluatedModel, from_store, from_teacher
from attar.store.store import Store
from attar.teachers.registry import load_teacher, parse_teacher_spec

log = logging.getLogger(__name__)


def wants_cost(config: EvaluationConfig, others: Sequence[str]) -> bool:
    """Say whether costs are measured: when asked, and wherever `others` are compared.

    Accuracy alone would be no choice between models of several makers.
    """
    return bool(others) or COST in config.tasks


def with_cost(config: EvaluationConfig, others: Sequence[str]) -> EvaluationConfig:
    """Return the configuration with the task that measures costs, where they are wanted."""
    if COST in config.tasks or not wants_cost(config, others):
        return config
    return replace(config, tasks=(*config.tasks, COST))


def teacher_of(store: Store, config: EvaluationConfig) -> EvaluatedModel:
    """Let the teacher in by its answers, and loaded where its cost is asked for and it runs here.

    One behind an address is never timed: every image would be asked for, and paid.
    """
    known = from_store(store)
    if COST not in config.tasks:
        return known
    try:
        if parse_teacher_spec(known.name)[0] == "remote":
            return known
        running = from_teacher(load_teacher(known.name))
    except AttarError as reason:
        log.warning("what the teacher costs is not measured: %s", reason)
        return known
    if running.identity != known.identity:
        log.warning("what the teacher costs is not measured: %s has other weights", known.name)
        return known
    return replace(known, prepare=running.prepare, encode=running.encode, network=running.network)

"""How well a teacher's text space tells classes apart, with and without descriptions."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attar.data.classes import ClassList
from attar.metrics import text_spectrum
from attar.prompts import class_texts, mean_class_features
from attar.teachers.base import Teacher
from attar.teachers.loading import FrozenTeacher

SHOWN_PAIRS = 10
_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class TextSpace:
    """C classes as a teacher's text tower sees them."""

    spectrum: tuple[float, ...]
    """The largest singular values, descending, of the mean-centred unit class features
    (Li et al. 2023, Figure 4)."""
    mean_cosine: float
    """Over all pairs of classes, not centred (Table 6)."""
    num_texts: int
    num_cut: int
    """How many of the texts are longer than the teacher's context, so that it reads a part."""
    num_near: int
    """Pairs of classes whose cosine is above the limit."""
    nearest: tuple[tuple[str, str, float], ...]
    """The nearest of these pairs with their cosines, at most `SHOWN_PAIRS`."""


def inspect_text_space(
    teacher: Teacher, classes: ClassList, templates: Sequence[str], limit: float = 0.95
) -> TextSpace:
    """Embed the prompts of C classes (at least 2) and measure how far apart they are.

    Args:
        teacher: asked for every text; nothing is stored.
        classes: their descriptions are used where there are any.
        templates: prompt templates with "{c}".
        limit: cosine above which two classes count as told apart badly.
    """
    texts = class_texts(classes, templates)
    flat = [text for of_class in texts for text in of_class]
    features = mean_class_features(
        teacher.encode_texts(flat).cpu(), [len(of_class) for of_class in texts]
    )
    spectrum, mean_cosine = text_spectrum(features)
    num_near, nearest = near_pairs(features, limit)
    return TextSpace(
        spectrum=tuple(spectrum),
        mean_cosine=mean_cosine,
        num_texts=len(flat),
        num_cut=teacher.count_cut(flat) if isinstance(teacher, FrozenTeacher) else 0,
        num_near=num_near,
        nearest=tuple((classes.names[i], classes.names[j], cosine) for i, j, cosine in nearest),
    )


def near_pairs(features: Tensor, limit: float) -> tuple[int, list[tuple[int, int, float]]]:
    """Return how many pairs i < j have a cosine above `limit`, and the nearest of them.

    Args:
        features: [C, D] unit rows.
        limit: exclusive.

    Returns:
        The count, and at most `SHOWN_PAIRS` tuples (i, j, cosine), the nearest first.
    """
    count, nearest = 0, list[tuple[int, int, float]]()
    for start in range(0, len(features), _ROWS):
        rows = features[start : start + _ROWS]
        cosines = rows @ features.T
        columns = torch.arange(len(features), device=features.device)
        later = columns[None, :] > start + torch.arange(len(rows), device=features.device)[:, None]
        cosines = torch.where(later, cosines, -2.0)
        count += int((cosines > limit).sum())
        values, places = cosines.flatten().topk(min(SHOWN_PAIRS, cosines.numel()))
        nearest += [
            (start + place // len(features), place % len(features), value)
            for value, place in zip(values.tolist(), places.tolist(), strict=True)
            if value > limit
        ]
        nearest = heapq.nlargest(SHOWN_PAIRS, nearest, key=lambda pair: pair[2])
    return count, nearest

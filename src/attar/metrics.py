"""How coherent a student's space is with its teacher's, as pure functions of features.

The metrics of Li et al., ICCV 2023 (arXiv 2307.03135). Torch features go in, Python floats come
out. Rows are L2-normalised inside; everything is computed in float64, where cosines of unit rows
are right to about 1e-15, and differences below `TIE` count as ties, which go to the lowest index:
equal rows are a tie however a matrix product rounds them.

Nothing is approximate. Beside its inputs a metric holds one float64 copy of the rows that are
searched, and `SCORES_AT_ONCE` scores, a few times over: for 100,000 x 768, about 1 GB.

Shapes in names: N images, C classes, D the joint embedding dimension, R rows at once.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.errors import AttarError, UsageError

TIE = 1e-12
"""Scores that differ by less are equal."""

SCORES_AT_ONCE = 16_000_000
"""Scores (128 MB) that are held at once, whole rows of them; fewer never change a result."""


def relative_coherence(student: Tensor, teacher: Tensor) -> float:
    """Share of images whose own teacher feature is the nearest one to the student's feature.

    M_rel (eq. 4): mean over i of 1[i = argmin_j ‖v_j - s_i‖²], j over all N images; higher is
    better, and chance is 1/N.

    Args:
        student: [N, D].
        teacher: [N, D].

    Raises:
        UsageError: no images, or shapes that differ.
    """
    _check_paired(student, teacher)
    gallery = _Gallery(teacher)
    hits = 0
    for rows in _blocks(len(student), len(teacher)):
        best_R1 = _nearest(gallery.closeness(_unit(student[rows])), 1)
        own_R = torch.arange(rows.start, rows.stop, device=best_R1.device)
        hits += int((best_R1[:, 0] == own_R).sum())
    return hits / len(student)


def neighborhood_overlap(student: Tensor, teacher: Tensor, k: int) -> float:
    """Share of the k nearest other images that student and teacher have in common.

    M_neigh (eq. 5): 1/(kN) Σ_i |kNN_S(i) ∩ kNN_T(i)|, neighbours taken in each model's own space,
    an image not being its own neighbour; higher is better, and chance is k/(N-1).

    Args:
        student: [N, D].
        teacher: [N, E]; E may differ from D.
        k: neighbours, at most N - 1.

    Raises:
        UsageError: other numbers of images, or a k that they do not have.
    """
    return neighborhood_overlaps(student, teacher, (k,))[0]


def neighborhood_overlaps(student: Tensor, teacher: Tensor, ks: Sequence[int]) -> list[float]:
    """Return `neighborhood_overlap` for each k; the images are searched once for all of them."""
    count = len(student)
    if len(teacher) != count:
        raise UsageError(f"student features of {count} images, teacher features of {len(teacher)}")
    for k in ks:
        if not 1 <= k < count:
            raise UsageError(
                f"k = {k} nearest other images: give 1 or more, and fewer than the {count} images"
            )
    # One space after the other: only one float64 copy is held.
    own_Nk = _neighbours(student, max(ks))
    wanted_Nk = _neighbours(teacher, max(ks)).to(own_Nk.device)
    shared = [0] * len(ks)
    for rows in _blocks(count, max(ks) ** 2):
        same_Rkk = own_Nk[rows, :, None] == wanted_Nk[rows, None, :]
        for place, k in enumerate(ks):
            shared[place] += int(same_Rkk[:, :k, :k].sum())
    return [number / (k * count) for number, k in zip(shared, ks, strict=True)]


def alignment_inversions(student: Tensor, teacher: Tensor, class_features: Tensor, k: int) -> float:
    """Pairs of the teacher's k nearest classes that the student puts the other way round.

    M_vlalign (eq. 7): list the k classes nearest to the teacher's image feature, nearest first, and
    the student's distances a_1 ... a_k to them; count i < j with a_i > a_j; mean over images. In
    0 ... k(k-1)/2; lower is better, and chance is half of that.

    Args:
        student: [N, D].
        teacher: [N, D].
        class_features: [C, D] the teacher's text features.
        k: how many classes, at most C.

    Raises:
        UsageError: no images, shapes that differ, or k below 1.
    """
    _check_paired(student, teacher)
    if k < 1:
        raise UsageError(f"k = {k} nearest classes: give 1 or more")
    if class_features.ndim != 2 or class_features.shape[1] != student.shape[1]:
        raise UsageError(
            f"class features {list(class_features.shape)} do not fit image features of "
            f"{student.shape[1]} numbers"
        )
    classes = _Gallery(class_features)
    k = min(k, len(class_features))
    inversions = 0
    for rows in _blocks(len(student), max(len(class_features), k * k, student.shape[1])):
        order_Rk = _nearest(classes.closeness(_unit(teacher[rows])), k)
        near_Rk = classes.closeness(_unit(student[rows])).gather(1, order_Rk)
        # Farther is less close: a_i > a_j says that near_i < near_j.
        swapped_Rkk = near_Rk[:, None, :] - near_Rk[:, :, None] > TIE
        inversions += int(swapped_Rkk.triu(diagonal=1).sum())
    return inversions / len(student)


def feature_gap(student: Tensor, teacher: Tensor) -> tuple[float, float]:
    """Mean squared distance, and mean angle in degrees, between paired features (Table 2).

    The first is the mean of ‖s - v‖² in 0 ... 4; the angles are 2 atan2(‖s - v‖, ‖s + v‖), which
    is right for small ones too.

    Args:
        student: [N, D].
        teacher: [N, D].

    Raises:
        UsageError: no images, or shapes that differ.
    """
    _check_paired(student, teacher)
    squares = angles = 0.0
    for rows in _blocks(len(student), student.shape[1]):
        s_RD, v_RD = _unit(student[rows]), _unit(teacher[rows])
        apart_R = (s_RD - v_RD).square().sum(dim=1)
        squares += float(apart_R.sum())
        together_R = (s_RD + v_RD).square().sum(dim=1)
        angles += float(torch.rad2deg(2 * torch.atan2(apart_R.sqrt(), together_R.sqrt())).sum())
    return squares / len(student), angles / len(student)


def text_spectrum(class_features: Tensor, top: int = 10) -> tuple[list[float], float]:
    """How spread out the classes are in the teacher's text space (Fig. 4, Table 6).

    Returns the `top` largest singular values of the mean-centred unit rows, descending (fewer where
    C or D is smaller), and the mean cosine over pairs i < j of the uncentred rows, NaN for a single
    class.

    Args:
        class_features: [C, D].
        top: how many singular values.

    Raises:
        UsageError: no classes.
    """
    count = len(class_features)
    if not count:
        raise UsageError("there are no classes whose text features could be compared")
    t_CD = _unit(class_features)
    values = torch.linalg.svdvals(t_CD - t_CD.mean(dim=0))[:top]
    if count == 1:
        return values.tolist(), float("nan")
    # Σ_{i≠j} t_i · t_j = ‖Σ t_i‖² - Σ ‖t_i‖²
    both_ways = t_CD.sum(dim=0).square().sum() - t_CD.square().sum()
    return values.tolist(), float(both_ways) / (count * (count - 1))


class _Gallery:
    """Rows that are searched, as unit rows in float64."""

    def __init__(self, features: Tensor) -> None:
        self.rows_ND = _unit(features)
        self.half_N = torch.linalg.vector_norm(self.rows_ND, dim=1).square() / 2

    def closeness(self, rows: Tensor) -> Tensor:
        """Return scores [R, N] of unit rows [R, D], r · x - ‖x‖²/2: ordered like -‖r - x‖²."""
        return torch.addmm(-self.half_N, rows, self.rows_ND.T)


def _check_paired(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape or student.ndim != 2:
        raise UsageError(
            f"student features {list(student.shape)} and teacher features {list(teacher.shape)} "
            "are no pairs"
        )
    if not len(student):
        raise UsageError("there are no images to compare")


def _unit(features: Tensor) -> Tensor:
    """Return unit rows in float64; a zero row stays zero.

    Raises:
        AttarError: a feature is not finite.
    """
    features = features.detach()
    if features.device.type == "mps":  # which has no float64
        features = features.cpu()
    rows = features.to(torch.float64, copy=True)
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    if not torch.isfinite(lengths).all():
        raise AttarError("features that are not finite cannot be compared")
    # In place: a second copy of a large gallery would take as much memory again.
    return rows.div_(lengths.clamp_min_(1e-12))


def _blocks(rows: int, width: int) -> Iterator[slice]:
    """Divide rows so that a block times `width` is about `SCORES_AT_ONCE`."""
    step = max(1, SCORES_AT_ONCE // max(width, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _neighbours(features: Tensor, k: int) -> Tensor:
    """Return the k nearest other rows of each row [N, k], nearest first."""
    gallery = _Gallery(features)
    parts = []
    for rows in _blocks(len(features), len(features)):
        scores_RN = gallery.closeness(gallery.rows_ND[rows])
        own_R = torch.arange(rows.start, rows.stop, device=scores_RN.device)
        scores_RN[own_R - rows.start, own_R] = -torch.inf
        parts.append(_nearest(scores_RN, k))
    return torch.cat(parts)


def _nearest(scores: Tensor, k: int) -> Tensor:
    """Return the k best columns [R, k] of scores [R, N], best first, ties to the lowest index.

    What is better than the k-th best score by more than `TIE` is in; the columns that tie with it
    fill the rest from the left.
    """
    best, columns_Rk = scores.topk(k, dim=1)
    floor_R1 = best[:, -1:] - TIE
    unclear_R = (scores >= floor_R1).sum(dim=1) > k
    if unclear_R.any():
        some, floor = scores[unclear_R], floor_R1[unclear_R]
        better = some > floor + 2 * TIE
        tied = (some >= floor) & ~better
        place = tied.cumsum(dim=1, dtype=torch.int32)
        chosen = better | (tied & (place <= k - better.sum(dim=1, keepdim=True)))
        columns_Rk[unclear_R] = chosen.nonzero()[:, 1].view(-1, k)
    return _in_order(scores, columns_Rk)


def _in_order(scores: Tensor, columns: Tensor) -> Tensor:
    """Sort chosen columns [R, k] by score, best first; runs of ties are sorted by index."""
    columns = columns.sort(dim=1).values
    values, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    columns = columns.gather(1, order)
    steps = (values[:, :-1] - values[:, 1:] > TIE).long().cumsum(dim=1)
    group = F.pad(steps, (1, 0))
    order = (group * scores.shape[1] + columns).argsort(dim=1)
    return columns.gather(1, order)

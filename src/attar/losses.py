"""Distillation losses as pure functions.

Feature arguments are unnormalised and L2-normalised inside; logit arguments are used as they are.
Every loss returns a 0-dim tensor, works in the dtype it is given and changes no input. A loss over
no sample at all is a zero that still back-propagates.

Where a paper's printed equation and its official code differ, the function's docstring says so and
its arguments reach both.

Shapes in names: B batch, C classes, D the joint embedding dimension.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.errors import UsageError, unknown_name

NO_LABEL = -1
Average = Literal["survivors", "batch"]


def feature_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over the batch of the squared distance between unit vectors, ‖s - v‖² = 2 - 2 cos.

    The squares are summed over D, not averaged, so the value lies in [0, 4].

    Args:
        student: [B, D] the student's image features.
        teacher: [B, D] the teacher's image features.
    """
    s_BD, v_BD = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    return (s_BD - v_BD).square().sum(dim=-1).mean()


def embedding_alignment(
    student: Tensor, image_features: Tensor, text_features: Tensor, image_weight: float = 0.5
) -> Tensor:
    """VL2V's loss: -(w · mean cos(student, image) + (1 - w) · mean cos(student, text)).

    Addepalli et al., CVPR 2024 (arXiv 2310.08255), L_ADiP and L_SD; w = 0.5 is the paper's.

    Args:
        student: [B, D] the student's projected image features.
        image_features: [B, D] the teacher's image features.
        text_features: [B, D] the teacher's text feature of each sample's class, already gathered.
        image_weight: w in [0, 1].
    """
    to_image = F.cosine_similarity(student, image_features, dim=-1).mean()
    to_text = F.cosine_similarity(student, text_features, dim=-1).mean()
    return -(image_weight * to_image + (1 - image_weight) * to_text)


def kl_distillation(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KL(softmax(teacher/T) ‖ softmax(student/T)) · T², summed over classes, mean over the batch.

    Hinton et al., 2015 (arXiv 1503.02531). T² keeps the gradient's scale independent of T; no other
    loss in this module has that factor.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C].
        temperature: T > 0.
    """
    log_p_BC = F.log_softmax(student_logits / temperature, dim=-1)
    log_q_BC = F.log_softmax(teacher_logits / temperature, dim=-1)
    kl = F.kl_div(log_p_BC, log_q_BC, reduction="batchmean", log_target=True)
    return kl * temperature**2


def classification(
    student: Tensor, class_features: Tensor, labels: Tensor, temperature: float = 0.07
) -> Tensor:
    """Cross-entropy over the classes' text features: mean of -log softmax_y(cos(s, t_y) / τ).

    Li et al., ICCV 2023 (arXiv 2307.03135), L_cls, eq. 1; paper and code agree. The mean is over
    labelled samples.

    Args:
        student: [B, D] the student's image features.
        class_features: [C, D] the teacher's text features; gradient reaches them if they ask for
            it (learnt prompts).
        labels: [B] index of each sample's class, -1 for none.
        temperature: τ > 0.
    """
    summed = F.cross_entropy(
        _cosines(student, class_features) / temperature,
        labels,
        ignore_index=NO_LABEL,
        reduction="sum",
    )
    return summed / (labels != NO_LABEL).sum().clamp_min(1)


def image_contrastive(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 0.07,
    bidirectional: bool = True,
    keep: Tensor | None = None,
) -> Tensor:
    """Find each image's teacher feature among the batch's: CE(M) with M = cos(s, v) / τ.

    Li et al., ICCV 2023 (arXiv 2307.03135), L_im-cst, eq. 3. The official code is the default:
    ½ CE(M) + ½ CE(Mᵀ). Eq. 3 as printed has -‖s - v‖² / τ, which is cos / (τ/2) and a constant, and
    one direction: halve the temperature and give `bidirectional=False`. All other images are
    negatives, those of the same class too.

    Args:
        student: [B, D] the student's image features.
        teacher: [B, D] the teacher's image features; no gradient reaches them.
        temperature: τ > 0.
        bidirectional: also find each teacher feature's image among the student's.
        keep: [B] bool; the others are neither asked about nor negatives (the paper's Table 9).
    """
    if keep is not None:
        student, teacher = student[keep], teacher[keep]
    logits_BB = _cosines(student, teacher.detach()) / temperature
    loss = _cross_entropy_of_pairs(logits_BB)
    return (loss + _cross_entropy_of_pairs(logits_BB.T)) / 2 if bidirectional else loss


def proximity(
    student: Tensor,
    teacher: Tensor,
    class_features: Tensor,
    labels: Tensor | None = None,
    k: int = 256,
    temperature: float = 0.07,
    average: Average = "survivors",
) -> Tensor:
    """KL(teacher ‖ student) over the k classes that the teacher finds nearest to each image.

    Li et al., ICCV 2023 (arXiv 2307.03135), L_vlprox, eq. 6 ("vlalign" in its code):
    I(x) · KL(P_T,topk ‖ P_S,topk) with P = softmax(cos / τ), both renormalised on the teacher's
    top k and summed over them, without a factor T². With labels, I(x) is `aligned`; without, 1.
    The official code takes the mean over the samples that I(x) leaves, as the default does; eq. 6
    divides by all B: `average="batch"`.

    Gradient reaches class features that ask for it through both sides of the divergence, as in the
    code with learnt prompts.

    Args:
        student: [B, D] the student's image features.
        teacher: [B, D] the teacher's image features; no gradient reaches them.
        class_features: [C, D] the teacher's text features.
        labels: [B] index of each sample's class; -1 for none, which is aligned with nothing.
        k: how many classes, at most C.
        temperature: τ > 0.
        average: what the sum over samples is divided by.

    Raises:
        UsageError: k below 1, or an unknown average.
    """
    if k < 1:
        raise UsageError(f"proximity to the k = {k} nearest classes: give 1 or more")
    if average not in get_args(Average):
        raise unknown_name("average", average, get_args(Average))
    own_BC = _cosines(student, class_features) / temperature
    wanted_BC = _cosines(teacher.detach(), class_features) / temperature
    if k < len(class_features):
        # A stable sort, so that equal classes go to the lowest index on any device.
        nearest_Bk = wanted_BC.sort(dim=-1, descending=True, stable=True).indices[:, :k]
        own_BC, wanted_BC = own_BC.gather(1, nearest_Bk), wanted_BC.gather(1, nearest_Bk)
    log_p, log_q = F.log_softmax(wanted_BC, dim=-1), F.log_softmax(own_BC, dim=-1)
    kl_B = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
    if labels is None:
        return kl_B.sum() / max(len(kl_B), 1)
    counted_B = aligned(teacher, class_features, labels)
    divisor = counted_B.sum() if average == "survivors" else torch.tensor(len(kl_B))
    return (kl_B * counted_B).sum() / divisor.clamp_min(1)


def caption_contrastive(
    student: Tensor,
    caption_features: Tensor,
    labels: Tensor,
    temperature: float = 0.07,
    positive_in_denominator: bool = True,
) -> Tensor:
    """Find each image's own caption among those of other classes, by cos(s, c) / τ.

    Li et al., ICCV 2023 (arXiv 2307.03135), L_cap, eq. 8: one direction, from image to caption,
    where captions of other images of the same class are no negatives. The official code is a plain
    cross-entropy, as the default, but on bare cosines: give `temperature=1.0` for it. Eq. 8 as
    printed has τ, and its denominator runs over the negatives alone:
    `positive_in_denominator=False`, which is unbounded below. A sample without any negative then
    does not count.

    Args:
        student: [B, D] the student's image features.
        caption_features: [B, D] the teacher's text feature of each image's caption; no gradient
            reaches them.
        labels: [B] index of each sample's class; -1 for none, which is nobody's class.
        temperature: τ > 0.
        positive_in_denominator: whether the image's own caption stands below the fraction too.
    """
    logits_BB = _cosines(student, caption_features.detach()) / temperature
    itself_BB = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    same_BB = (labels[:, None] == labels) & (labels != NO_LABEL) & ~itself_BB
    if positive_in_denominator:
        return _cross_entropy_of_pairs(logits_BB.masked_fill(same_BB, -torch.inf))
    negative_BB = ~(same_BB | itself_BB)
    counted_B = negative_BB.any(dim=1)
    negatives = logits_BB[counted_B].masked_fill(~negative_BB[counted_B], -torch.inf)
    positives = logits_BB.diagonal()[counted_B]
    return (negatives.logsumexp(dim=1) - positives).sum() / max(len(positives), 1)


def score_distillation(
    student: Tensor,
    teacher: Tensor,
    text_features: Tensor,
    temperature: float = 1.0,
    scale: float = 100.0,
) -> Tensor:
    """KL(teacher ‖ student) between images and sentences that nothing pairs, in both directions.

    Sun et al., ICCV 2023 (DIME-FM, arXiv 2303.18232), L_vl as its official code computes it: with
    P = softmax(scale · cos / T), the divergence of each image's distribution over the sentences,
    mean over images, plus that of each sentence's distribution over the images, mean over
    sentences. There is no factor T².

    Args:
        student: [B, D] the student's image features.
        teacher: [B, D] the teacher's image features; no gradient reaches them.
        text_features: [N, D] the teacher's text features; no gradient reaches them.
        temperature: T > 0.
        scale: what cosines are multiplied by, before T.
    """
    texts = text_features.detach()
    own_BN = _cosines(student, texts) * scale
    wanted_BN = _cosines(teacher.detach(), texts) * scale
    to_texts = _mean_divergence(wanted_BN, own_BN, temperature)
    return to_texts + _mean_divergence(wanted_BN.T, own_BN.T, temperature)


def pseudo_score_distillation(
    student: Tensor, teacher: Tensor, temperature: float = 3.0, scale: float = 100.0
) -> Tensor:
    """2 · KL(teacher ‖ student) where the teacher's image features stand in for sentences.

    Sun et al., ICCV 2023 (DIME-FM, arXiv 2303.18232), L_pvl as its official code computes it:
    cosines v vᵀ against u vᵀ, one direction, doubled, the diagonal included, without a factor T².

    Args:
        student: [B, D] the student's image features.
        teacher: [B, D] the teacher's image features; no gradient reaches them.
        temperature: T > 0.
        scale: what cosines are multiplied by, before T.
    """
    images = teacher.detach()
    own_BB, wanted_BB = _cosines(student, images), _cosines(images, images)
    return 2 * _mean_divergence(wanted_BB * scale, own_BB * scale, temperature)


def distance_preservation(
    student: Tensor, teacher: Tensor, temperature: float = 7.0, scale: float = 100.0
) -> Tensor:
    """2 · KL(teacher ‖ student) between the images' cosines under each of the two.

    Sun et al., ICCV 2023 (DIME-FM, arXiv 2303.18232), L_udist as its official code computes it:
    cosines v vᵀ against u uᵀ, doubled, the diagonal included, without a factor T².

    Args:
        student: [B, D] the student's image features.
        teacher: [B, D] the teacher's image features; no gradient reaches them.
        temperature: T > 0.
        scale: what cosines are multiplied by, before T.
    """
    images = teacher.detach()
    own_BB, wanted_BB = _cosines(student, student), _cosines(images, images)
    return 2 * _mean_divergence(wanted_BB * scale, own_BB * scale, temperature)


def aligned(teacher: Tensor, class_features: Tensor, labels: Tensor) -> Tensor:
    """Say for which samples the teacher's nearest class is their label: bool [B].

    Li et al., ICCV 2023 (arXiv 2307.03135), I(x) of eq. 6. Of equally near classes the lowest index
    counts; a sample without a label (-1) is not aligned.

    Args:
        teacher: [B, D] the teacher's image features.
        class_features: [C, D] the teacher's text features.
        labels: [B] index of each sample's class.
    """
    with torch.no_grad():
        return _cosines(teacher, class_features).argmax(dim=-1) == labels


def _cosines(rows: Tensor, columns: Tensor) -> Tensor:
    return F.normalize(rows, dim=-1) @ F.normalize(columns, dim=-1).T


def _cross_entropy_of_pairs(logits_BB: Tensor) -> Tensor:
    """Return the mean cross-entropy with the diagonal as the targets."""
    return -F.log_softmax(logits_BB, dim=1).diagonal().sum() / max(len(logits_BB), 1)


def _mean_divergence(wanted: Tensor, own: Tensor, temperature: float) -> Tensor:
    """Return KL(softmax(wanted/T) ‖ softmax(own/T)) over the columns, mean over the rows."""
    log_p = F.log_softmax(wanted / temperature, dim=1)
    log_q = F.log_softmax(own / temperature, dim=1)
    return (log_p.exp() * (log_p - log_q)).sum() / max(len(own), 1)

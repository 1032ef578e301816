"""Distillation losses as pure functions.

Feature arguments are unnormalised and L2-normalised inside; logit arguments are used as they are.
Every function returns a 0-dim tensor, works in the dtype it is given and changes no input.

Shapes in names: B batch, C classes, D the joint embedding dimension.
"""

import torch.nn.functional as F
from torch import Tensor


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

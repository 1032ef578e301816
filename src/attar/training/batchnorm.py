"""BatchNorm statistics of averaged weights, measured again on source images."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from attar.students.student import Student
from attar.training.feed import Feed, Place

BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
_STEPS = 50


def live_batchnorms(student: Student) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return the BatchNorm layers whose running statistics follow the data.

    Where they are frozen, the backbone's do not, but the projector's do.
    """
    live = student.projector if student.spec.freeze_bn else student
    if live is None:
        return []
    layers = (m for m in live.modules() if isinstance(m, BATCH_NORMS))
    return [layer for layer in layers if layer.track_running_stats]


@torch.no_grad()
def reestimate_batchnorm(student: Student, images: Iterable[Tensor]) -> int:
    """Replace the running statistics by their plain mean over batches of training images.

    An average of weights has no statistics of its own: an average of statistics describes other
    activations. `images` yields [B, 3, H, W] in [0, 1] on the student's device; only BatchNorm
    runs in training mode. Returns the number of layers measured (0 takes nothing from `images`).
    """
    layers = live_batchnorms(student)
    if not layers:
        return 0
    was_training, momenta = student.training, [layer.momentum for layer in layers]
    student.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the cumulative mean
        layer.train()
    for batch in images:
        student(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    student.train(was_training)
    return len(layers)


def reestimate_from(feed: Feed, student: Student, total_steps: int) -> int:
    """Re-estimate on the images of a run's first steps, at most 50 of its `total_steps`.

    They are read anew, in this process alone: the batches and random numbers of training stay as
    they are. Whenever it is called in a run, the same weights get the same statistics.
    """
    device = next(student.parameters()).device
    return reestimate_batchnorm(student, feed.images(min(_STEPS, total_steps), Place(device)))

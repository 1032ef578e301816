"""One step's loss and gradients of several methods, alone or as one of several processes.

As a script it is one of them: `joined_run.py IMAGES OUT`.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from small_run import CLASSES, DIM, make_feed, make_student
from torch import Tensor, nn

from attar.methods.base import ClassFeatures, Sizes
from attar.methods.registry import find_method, method_options
from attar.store.store import Store
from attar.store.writer import StoreWriter
from attar.training.config import TrainingConfig
from attar.training.feed import Place
from attar.training.step import StepModule
from attar.training.streams import TextStream
from attar.types import Batch


@dataclass(frozen=True)
class Case:
    """A method, and the student it trains: one without BatchNorm, or with frozen BatchNorm."""

    method: str
    student: str = "test_vit"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return " ".join([self.method, self.student, *(f"{k}={v}" for k, v in self.options.items())])


LI2023 = {"feature_mse": 0.5, "caption": 0.5}
CASES = (
    Case("dime-fm", options={"udist_weight": 0.2}),
    Case("dime-fm", "test_resnet", {"udist_weight": 0.2}),
    Case("attar"),
    Case("li2023", options=LI2023),
    Case("li2023", options={**LI2023, "preset": "paper", "filter_contrastive": True}),
    Case("li2023-multilabel", "test_resnet"),
)
STEP = 3


class Learnt(ClassFeatures):
    """Class features that are trained themselves, as a learnt context's are."""

    def __init__(self, count: int) -> None:
        super().__init__()
        start = torch.randn(count, DIM, generator=torch.Generator().manual_seed(1))
        self.rows = nn.Parameter(start)

    def forward(self) -> Tensor:
        return nn.functional.normalize(self.rows, dim=-1)


def add_sentences(store: Path, count: int = 25) -> Path:
    """Put random text features into a store."""
    generator = np.random.default_rng(5)
    with StoreWriter.open(store, Store.open(store).info.teacher) as writer:
        features = generator.standard_normal((count, DIM))
        writer.add_texts([f"sentence {i}" for i in range(count)], features)
    return store


def enriched(batch: Batch, several: bool) -> Batch:
    """Give a batch captions and lesser labels, as a function of each image: not all have them."""
    assert batch.labels is not None
    assert batch.image_features is not None
    # Half of the images are in the class nearest to the teacher's feature: filters pass some.
    nearest = (batch.image_features @ Learnt(CLASSES)().detach().T).argmax(dim=1)
    labels = torch.where(batch.image_features[:, 0] > 0, nearest, batch.labels)
    known = torch.tensor([int(key[:2], 16) % 4 > 0 for key in batch.keys])
    captions = batch.image_features.roll(1, dims=1) * known[:, None]
    labels = torch.where(known, labels, -1)
    if several:
        labels = nn.functional.one_hot(batch.labels, CLASSES).float()
    return replace(batch, labels=labels, caption_features=captions)


def gradients(images: Path, batch_size: int, text_batch: int) -> dict[str, Tensor]:
    """Return the loss and every gradient of one step of each case, all processes together."""
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    place = Place(accelerator.device, accelerator.process_index, accelerator.num_processes)
    config = TrainingConfig(batch_size=batch_size, workers=0, precision="fp32")
    stream = TextStream(
        Store.open(images / "store"), batch_size=text_batch, rank=place.rank, world=place.world
    )
    feed = make_feed(images, config, streams={"text": stream})
    (batch,) = feed.batches(range(STEP, STEP + 1), "clean", place)
    found = {}
    for case in CASES:
        method = find_method(case.method)
        sizes = Sizes(dim=DIM, trunk_width=1, num_classes=CLASSES, num_domains=1)
        (phase,) = method.phases(method_options(method, case.options), 10, sizes)
        count = CLASSES * (2 if method.paired_prompts else 1)
        classes = None if case.method == "dime-fm" else Learnt(count)
        student = make_student(case.student, freeze_bn=case.student == "test_resnet")
        module = StepModule(student, phase, classes, "fp32")
        module.set_modes()
        wrapped = accelerator.prepare(module)
        loss = wrapped(enriched(batch, method.gives_several_labels))
        accelerator.backward(loss.total)
        # Of a plain mean over images each process may have its own part.
        found[f"{case.name}: loss"] = accelerator.reduce(loss.total.detach(), reduction="mean")
        for key, parameter in module.named_parameters():
            if parameter.grad is not None:
                found[f"{case.name}: {key}"] = parameter.grad.contiguous()
        accelerator.free_memory()
    return found


if __name__ == "__main__":
    own = gradients(Path(sys.argv[1]), batch_size=3, text_batch=5)
    rank = Accelerator(cpu=True).process_index
    save_file(own, f"{sys.argv[2]}-{rank}.safetensors")

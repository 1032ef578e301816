"""One step of dime-fm's loss and gradients, alone or as one of several processes.

As a script it is one of them: `unpaired_run.py IMAGES OUT`.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from small_run import DIM, make_feed, make_student
from torch import Tensor

from attar.methods.base import Sizes
from attar.methods.registry import find_method, method_options
from attar.store.store import Store
from attar.store.writer import StoreWriter
from attar.training.config import TrainingConfig
from attar.training.feed import Place
from attar.training.step import StepModule
from attar.training.streams import TextStream

STUDENTS = {"test_vit": False, "test_resnet": True}
"""A network without BatchNorm, and one with: frozen or not."""
STEP = 3


def add_sentences(store: Path, count: int = 25) -> Path:
    """Put random text features into a store."""
    generator = np.random.default_rng(5)
    with StoreWriter.open(store, Store.open(store).info.teacher) as writer:
        features = generator.standard_normal((count, DIM))
        writer.add_texts([f"sentence {i}" for i in range(count)], features)
    return store


def gradients(images: Path, batch_size: int, text_batch: int) -> dict[str, Tensor]:
    """Return the loss and every gradient of one step of each student, all processes together."""
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    place = Place(accelerator.device, accelerator.process_index, accelerator.num_processes)
    config = TrainingConfig(batch_size=batch_size, workers=0, precision="fp32")
    method = find_method("dime-fm")
    options = method_options(method, {"udist_weight": 0.2})
    stream = TextStream(
        Store.open(images / "store"), batch_size=text_batch, rank=place.rank, world=place.world
    )
    feed = make_feed(images, config, streams={"text": stream})
    batch = next(iter(feed.batches(range(STEP, STEP + 1), "clean", place)))
    found = {}
    for name, frozen in STUDENTS.items():
        sizes = Sizes(dim=DIM, trunk_width=1, num_classes=1, num_domains=1)
        (phase,) = method.phases(options, 10, sizes)
        module = StepModule(make_student(name, freeze_bn=frozen), phase, None, "fp32")
        module.set_modes()
        wrapped = accelerator.prepare(module)
        loss = wrapped(batch)
        accelerator.backward(loss.total)
        found[f"{name} loss"] = loss.total.detach()
        for key, parameter in module.student.named_parameters():
            if parameter.grad is not None:
                found[f"{name} {key}"] = parameter.grad.contiguous()
        accelerator.free_memory()
    return found


if __name__ == "__main__":
    own = gradients(Path(sys.argv[1]), batch_size=3, text_batch=5)
    rank = Accelerator(cpu=True).process_index
    save_file(own, f"{sys.argv[2]}-{rank}.safetensors")

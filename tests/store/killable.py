"""An embedding run that another process may kill; it logs every picture the teacher is asked."""

import hashlib
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from attar.data.table import ImageTable
from attar.store.config import EmbedConfig
from attar.store.embed import embed_images
from attar.teachers.base import TeacherInfo

CONFIG = EmbedConfig(batch_size=4, workers=1, shard_rows=8)
DIM = 24


def prepare(image: Image.Image) -> torch.Tensor:
    pixels = np.asarray(image.resize((32, 32)), dtype=np.float32) / 255 - 0.5
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


class LoggingTeacher:
    """A small convolutional teacher that writes the hash of each picture before it answers."""

    def __init__(self, log: Path, pause: float = 0.0) -> None:
        self.info = TeacherInfo(name="conv", identity="12" * 32, dim=DIM, logit_scale=10.0)
        self.towers = None
        self.prepare = prepare
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._network = torch.nn.Sequential(
                torch.nn.Conv2d(3, 16, 4, stride=4),
                torch.nn.GELU(),
                torch.nn.Flatten(),
                torch.nn.Linear(16 * 8 * 8, DIM),
            ).eval()
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._pause = pause

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        lines = "".join(f"{picture_hash(one)}\n" for one in pixels)
        os.write(self._log, lines.encode())
        time.sleep(self._pause)
        with torch.no_grad():
            return self._network(pixels)

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        raise NotImplementedError("these runs embed images only")


def picture_hash(pixels: torch.Tensor) -> str:
    return hashlib.sha256(pixels.numpy().tobytes()).hexdigest()


def run(table: Path, store: Path, log: Path) -> None:
    torch.set_num_threads(1)
    # As in a command: a child of the server would start its reading workers through it too.
    multiprocessing.set_start_method("fork", force=True)
    embed_images(LoggingTeacher(log, pause=0.01), ImageTable.load(table), store, CONFIG)

"""The pictures that the pocket teacher's head is trained and scored on, and their features.

PACS images of odd parity and the Noto emoji are held out: scored, never trained on.  The backbone
sees every picture once a view; its features are kept in one .npz file that all heads share.
"""

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ImageOps

from attar.data.emoji import EMOJI_FAMILIES, HELD_OUT_FAMILY, emoji_concepts, extract_emoji
from attar.data.images import EXTENSIONS, read_image
from attar.files import atomic_path, sha256_file
from attar.teachers.pocket import image_transform, load_backbone

BATCH = 16
SAVE_EVERY = 2000
"""Pictures between two saves of the feature file: an interrupted pass goes on from there."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture and what it shows."""

    path: Path
    source: str
    """`pacs`, `imagenet` or `emoji`."""
    domain: str
    """A PACS domain, `photo` for ImageNet, the family of an emoji."""
    name: str
    """What it shows, as a caption says it."""
    keywords: tuple[str, ...] = ()
    held_out: bool = False
    """Odd parity or Noto: scored, never trained on."""

    @cached_property
    def digest(self) -> str:
        """The sha256 of the file's bytes."""
        return sha256_file(self.path)

    @property
    def group(self) -> tuple[str, str]:
        """Its source and domain."""
        return self.source, self.domain


def is_odd(relative: str) -> bool:
    """Return the parity of `domain/class/file`: the last bit of its sha256."""
    return bool(hashlib.sha256(relative.encode()).digest()[-1] & 1)


def read_pacs(root: Path) -> list[Picture]:
    """List PACS, `domain/class/file`; images of odd parity are held out."""
    paths = sorted(p for p in root.glob("*/*/*") if p.suffix.lower() in EXTENSIONS)
    return [
        Picture(
            path=path,
            source="pacs",
            domain=path.parts[-3],
            name=path.parts[-2].replace("_", " "),
            held_out=is_odd(path.relative_to(root).as_posix()),
        )
        for path in paths
    ]


def read_imagenet_sample(root: Path) -> list[Picture]:
    """List the ImageNet sample; `classes.tsv` names the class of each file `<wnid>.*`."""
    lines = (root / "classes.tsv").read_text(encoding="utf-8").splitlines()[1:]
    names = dict(line.split("\t")[:2] for line in lines if line.strip())
    paths = sorted(p for p in (root / "images").rglob("*") if p.suffix.lower() in EXTENSIONS)
    return [
        Picture(path=path, source="imagenet", domain="photo", name=names[path.stem.split("_")[0]])
        for path in paths
    ]


def read_emoji(folder: Path) -> list[Picture]:
    """List the shipped emoji, written to `folder`; Noto is held out."""
    extract_emoji(folder)
    return [
        Picture(
            path=folder / family / concept.name / f"{concept.id}.webp",
            source="emoji",
            domain=family,
            name=concept.name,
            keywords=concept.keywords,
            held_out=family == HELD_OUT_FAMILY,
        )
        for family in EMOJI_FAMILIES
        for concept in emoji_concepts()
    ]


VIEWS = {"clean": lambda image: image, "flip": ImageOps.mirror}
"""What the backbone sees of a picture; held-out pictures are only ever seen clean."""


class FeatureFile:
    """Backbone features by (sha256 of the file, view), in one .npz file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, NDArray[np.float32]] = {}
        if path.is_file():
            with np.load(path) as stored:
                self.rows = dict(zip(stored["keys"].tolist(), stored["features"], strict=True))

    def save(self) -> None:
        """Write the file atomically."""
        with atomic_path(self.path) as temporary, temporary.open("wb") as file:
            np.savez(
                file, keys=np.array(list(self.rows)), features=np.stack(list(self.rows.values()))
            )

    def compute(self, pictures: Iterable[Picture]) -> None:
        """Pass every picture through the backbone that the file lacks."""
        jobs = [
            (f"{picture.digest}/{view}", picture.path, view)
            for picture in pictures
            for view in (("clean",) if picture.held_out else VIEWS)
        ]
        jobs = [job for job in {job[0]: job for job in jobs}.values() if job[0] not in self.rows]
        backbone, transform = load_backbone().fold(), image_transform()
        start, unsaved = time.monotonic(), 0
        for first in range(0, len(jobs), BATCH):
            batch = jobs[first : first + BATCH]
            images = [VIEWS[view](read_image(path)) for _, path, view in batch]
            with torch.inference_mode():
                features = backbone(torch.stack([transform(image) for image in images])).numpy()
            self.rows.update((job[0], row) for job, row in zip(batch, features, strict=True))
            unsaved += len(batch)
            if unsaved >= SAVE_EVERY or first + BATCH >= len(jobs):
                self.save()
                unsaved, done = 0, first + len(batch)
                rate = done / (time.monotonic() - start)
                print(f"features: {done} of {len(jobs)}, {rate:.1f} a second", flush=True)

    def get(self, pictures: Sequence[Picture], view: str) -> torch.Tensor:
        """Return the features [N, 1280] of pictures in one view."""
        keys = [f"{picture.digest}/{view}" for picture in pictures]
        return torch.from_numpy(np.stack([self.rows[key] for key in keys]))

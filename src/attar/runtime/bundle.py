"""A bundle on disk: one folder that predicts without torch, every file of it checked on opening."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from attar.errors import AttarError, UsageError
from attar.files import read_json, sha256_file
from attar.runtime.preprocess import Preprocess
from attar.runtime.tensors import read_tensors

FORMAT_VERSION = 1
MODEL = "model.onnx"
MODEL_INT8 = "model-int8.onnx"
LABELS = "labels.safetensors"
LABELS_TEXT = "labels.txt"
PREPROCESS = "preprocess.json"
MANIFEST = "bundle.json"
CARD = "card.md"
VOCABULARY_TEXT = "vocabulary/texts.txt"
VOCABULARY = "vocabulary/vocabulary.safetensors"
REQUIRED = (MODEL, LABELS, LABELS_TEXT, PREPROCESS)
INPUT = "image"


@dataclass(frozen=True)
class TextStore:
    """Unit text features [T, D] float32 and the texts they belong to."""

    texts: tuple[str, ...]
    features: NDArray[np.float32]


@dataclass(frozen=True)
class Bundle:
    """An opened bundle; `manifest` is bundle.json as it is."""

    path: Path
    manifest: dict[str, Any]
    preprocess: Preprocess
    labels: TextStore
    """The class names, and what the model's output is compared with: [C, D] unit class features,
    or the identity [C, C] when the output already is one logit a class."""
    logit_scale: float
    """What cosines (or logits) are multiplied with before the softmax."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a bundle folder after checking its format version and every checksum.

        The card may be edited, as nothing is computed from it; any other change is refused.

        Raises:
            UsageError: no bundle there, or one of a newer format.
            AttarError: a file is missing or is not what was exported; it is named.
        """
        manifest = _read_manifest(path)
        _verify_files(path, manifest["files"])
        preprocess = Preprocess.from_json(read_json(path / PREPROCESS))
        names = _read_lines(path / LABELS_TEXT)
        tensors = read_tensors(path / LABELS)
        if manifest["head"] == "classes":
            features = np.eye(len(names), dtype=np.float32)
        else:
            features = tensors.require(path / LABELS, "class_features", width=manifest["dim"])
        if len(features) != len(names):
            raise AttarError(f"{path / LABELS} has {len(features)} classes, its text {len(names)}")
        scale = float(tensors.require(path / LABELS, "logit_scale")[0])
        return cls(path, manifest, preprocess, TextStore(names, features), scale)

    @property
    def head(self) -> Literal["embedding", "classes"]:
        """Whether the model gives unit embeddings or one logit a class."""
        head: Literal["embedding", "classes"] = self.manifest["head"]
        return head

    def model(self, *, int8: bool = False) -> Path:
        """Return the file of the model: in float32, or the smaller one in 8-bit integers.

        Raises:
            UsageError: there is none in integers; if it failed its gate, why.
        """
        if not int8:
            return self.path / MODEL
        if MODEL_INT8 not in self.manifest["files"]:
            why = self.manifest.get("int8", {}).get("reason")
            raise UsageError(
                f"{self.path} holds no {MODEL_INT8}: "
                + (f"{why}; leave --int8 out" if why else "export it with --int8, or leave it out")
            )
        return self.path / MODEL_INT8

    @property
    def dim(self) -> int:
        """The width of the model's output."""
        return int(self.manifest["dim"])

    @property
    def threshold(self) -> float:
        """The confidence below which the answer is "none of these"; 0 answers always.

        It was found for the bundle's own classes and means nothing among others.
        """
        return float(self.manifest["threshold"])

    @cached_property
    def vocabulary(self) -> TextStore | None:
        """The text store that came with `attar export --vocabulary`, or None."""
        if VOCABULARY not in self.manifest["files"]:
            return None
        path = self.path / VOCABULARY
        features = read_tensors(path).require(path, "text_features", width=self.dim)
        return TextStore(_read_lines(self.path / VOCABULARY_TEXT), features)


def _read_manifest(path: Path) -> dict[str, Any]:
    """Read bundle.json; refuse what is no bundle or comes from a newer attar."""
    if not (path / MANIFEST).is_file():
        raise UsageError(
            f"{path} is no bundle (it has no {MANIFEST}); make one with `attar export`"
        )
    manifest = read_json(path / MANIFEST)
    version = manifest.get("version") if isinstance(manifest, dict) else None
    if not isinstance(version, int):
        raise AttarError(f"{path / MANIFEST} names no format version; export the bundle again")
    if version > FORMAT_VERSION:
        raise UsageError(
            f"{path} has bundle format {version}, this attar reads up to {FORMAT_VERSION}; "
            f"upgrade attar to {manifest.get('attar_version', 'the one that wrote it')} or newer"
        )
    absent = [key for key in ("head", "dim", "threshold", "files") if key not in manifest]
    absent += [name for name in REQUIRED if name not in manifest.get("files", {})]
    if absent:
        raise AttarError(f"{path / MANIFEST} lacks {', '.join(absent)}; export the bundle again")
    return manifest


def _read_lines(path: Path) -> tuple[str, ...]:
    """Read one text a line; only newlines part them, whatever else the texts hold."""
    return tuple(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"))


def _verify_files(path: Path, files: dict[str, dict[str, Any]]) -> None:
    """Refuse a bundle in which a file is missing or changed, naming the file."""
    for name, recorded in files.items():
        file = path / name
        if name == CARD:
            continue
        if not file.is_file():
            raise AttarError(f"{file} is missing from the bundle; copy or export it again")
        if sha256_file(file) != recorded["sha256"]:
            raise AttarError(
                f"{file} is corrupted: its checksum is not the one in {MANIFEST}; "
                "copy or export the bundle again"
            )

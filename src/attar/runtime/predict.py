"""Predict with a bundle: numpy, pillow and onnxruntime, no torch.

The exception to "runtime imports only errors, files and records" is data.images and data.classes:
they need nothing but pillow, and reading a picture or a class list in two ways would be worse.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from attar.data.classes import make_class_list
from attar.errors import AttarError, UsageError
from attar.runtime.bundle import INPUT, Bundle, TextStore
from attar.runtime.config import PredictConfig
from attar.runtime.labels import find_features, read_labels
from attar.runtime.preprocess import find_images, load_inputs


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model says about one image."""

    path: Path
    top: tuple[tuple[str, float], ...] = ()
    """(label, confidence), most confident first; empty when the image could not be read."""
    abstained: bool = False
    """True when the top confidence is below the threshold: the answer is "none of these"."""
    error: str | None = None
    """Why the image could not be read, else None."""

    @property
    def label(self) -> str | None:
        """The answer: the top label, or None for "none of these" and for an unreadable image."""
        return None if self.abstained or not self.top else self.top[0][0]

    @property
    def confidence(self) -> float | None:
        """The top label's confidence in 0..1, or None for an unreadable image."""
        return self.top[0][1] if self.top else None


def open_session(model: Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """Open a model for the CPU with `threads` threads (0: onnxruntime chooses), warnings off."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        str(model), sess_options=options, providers=["CPUExecutionProvider"]
    )


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the softmax over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exponents = np.exp(shifted)
    return np.asarray(exponents / exponents.sum(axis=-1, keepdims=True), dtype=np.float64)


class Predictor:
    """A bundle ready to answer; confidence = softmax(logit_scale · cosine) over the classes.

    Args:
        bundle: the opened bundle.
        threshold: confidence in 0..1 below which the answer is "none of these". None takes the
            bundle's, which was found for the bundle's own classes: among other classes
            (`use_labels`) it says nothing, and the predictor then answers always.
        threads: threads of the model; 0 lets onnxruntime choose.
        int8: use the model in 8-bit integers, which the bundle must hold.
    """

    def __init__(
        self,
        bundle: Bundle,
        threshold: float | None = None,
        threads: int = 0,
        *,
        int8: bool = False,
    ) -> None:
        self.bundle = bundle
        self.labels = bundle.labels
        self.threshold = bundle.threshold if threshold is None else threshold
        self._threshold_given = threshold is not None
        if not 0 <= self.threshold <= 1:
            raise UsageError(f"the threshold {self.threshold} is not a confidence between 0 and 1")
        self._session = open_session(bundle.model(int8=int8), threads)

    def embed(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the model's output [N, D] for prepared images [N, 3, H, W] in [0, 1]."""
        output: NDArray[np.float32] = self._session.run(None, {INPUT: pixels})[0]
        return output

    def use_labels(self, labels: Sequence[str] | TextStore) -> None:
        """Answer among other classes: names that the bundle knows, or names with features [C, D].

        Unless a threshold was given, "none of these" is no longer an answer: confidence depends on
        what there is to choose from, and the bundle's threshold belongs to its own classes.

        Raises:
            UsageError: fewer than two classes, one given twice, or one that neither the bundle's
                labels nor its vocabulary hold.
        """
        if not isinstance(labels, TextStore):
            labels = find_features(self.bundle, make_class_list(labels))
        self.labels = labels
        if not self._threshold_given:
            own = set(labels.texts) == set(self.bundle.labels.texts)
            self.threshold = self.bundle.threshold if own else 0.0

    def scores(self, pixels: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the confidence of every class [N, C] for prepared images [N, 3, H, W]."""
        return softmax(self.bundle.logit_scale * (self.embed(pixels) @ self.labels.features.T))

    def predict(
        self, paths: Sequence[Path], top: int = 5, batch_size: int = 16
    ) -> list[Prediction]:
        """Return one prediction an image, in order; an unreadable one says so in `error`."""
        return list(self.stream(paths, top, batch_size))

    def stream(
        self, paths: Sequence[Path], top: int = 5, batch_size: int = 16
    ) -> Iterator[Prediction]:
        """Yield the predictions as they come, a batch at a time."""
        for start in range(0, len(paths), batch_size):
            batch = [Path(p) for p in paths[start : start + batch_size]]
            pixels, failures = load_inputs(batch, self.bundle.preprocess)
            scores = iter(() if pixels is None else self.scores(pixels))
            for position, path in enumerate(batch):
                if position in failures:
                    yield Prediction(path=path, error=failures[position])
                else:
                    yield self._prediction(path, next(scores), top)

    def _prediction(self, path: Path, scores: NDArray[np.float64], top: int) -> Prediction:
        order = np.argsort(-scores, kind="stable")[:top]
        ranked = tuple((self.labels.texts[i], float(scores[i])) for i in order)
        return Prediction(path=path, top=ranked, abstained=ranked[0][1] < self.threshold)


def run_predict(
    bundle: Path, inputs: Sequence[Path], config: PredictConfig, out: TextIO | None = None
) -> None:
    """Do what `attar predict` does: predict every image and write the answers to `out` (stdout).

    Raises:
        UsageError: wrong inputs, labels or settings, before anything is computed.
        AttarError: the bundle is damaged, or (after all answers) some images could not be read.
    """
    from attar.runtime.output import WRITERS

    _check(config)
    paths = find_images(inputs)
    opened = Bundle.open(bundle)
    predictor = Predictor(opened, config.threshold, config.threads, int8=config.int8)
    if config.labels is not None:
        predictor.use_labels(read_labels(opened, config.labels))
    failed: list[Prediction] = []

    def watched() -> Iterator[Prediction]:
        for prediction in predictor.stream(paths, config.top, config.batch_size):
            if prediction.error is not None:
                failed.append(prediction)
            yield prediction

    style = "json" if config.json else "csv" if config.csv else "table"
    WRITERS[style](watched(), out or sys.stdout)
    if failed:
        first = failed[0]
        raise AttarError(
            f"{len(failed)} of {len(paths)} images could not be read, "
            f"first {first.path} ({first.error}); the others were predicted"
        )


def _check(config: PredictConfig) -> None:
    """Refuse settings that make no sense, naming the value."""
    if config.json and config.csv:
        raise UsageError("--json and --csv cannot both be given; choose one")
    for name in ("top", "batch_size"):
        if getattr(config, name) < 1:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} {getattr(config, name)} is too small; give 1 or more")
    if config.threads < 0:
        raise UsageError(f"--threads {config.threads} is negative; give 0 or more")

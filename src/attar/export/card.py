"""The model card of a bundle: what it is, what was measured, what binds its use."""

import math
from collections.abc import Sequence
from typing import Any

import yaml

from attar.export.config import BundleFacts
from attar.export.parity import Parity
from attar.export.quantise import Int8
from attar.records import Record
from attar.runtime.bundle import MODEL_INT8
from attar.students.student import StudentSpec

_METRICS = {
    "acc1": "accuracy",
    "acc5": "top-5 accuracy",
    "mean_per_class_recall": "mean per class",
    "ece": "calibration error",
    "agreement": "agreement with the teacher",
    "mean_cosine": "mean cosine with the teacher",
}
"""Metrics that the card shows, in this order: key in the results -> words."""
_UNKNOWN = "–"


def card_text(
    spec: StudentSpec,
    facts: BundleFacts,
    proof: tuple[Parity, Int8 | None],
    class_names: Sequence[str],
    texts: int,
) -> str:
    """Return the card as Markdown with YAML front matter.

    Args:
        spec: the student.
        facts: its origin and results.
        proof: the measured agreement of the ONNX file with torch, and of int8 with that file.
        class_names: the bundle's classes.
        texts: how many texts its vocabulary holds, 0 for none.
    """
    parity, int8 = proof
    front = yaml.safe_dump(_front_matter(spec, facts), sort_keys=False, allow_unicode=True)
    sections = [
        f"# {spec.name}" + (f" distilled from {facts.teacher}" if facts.teacher else ""),
        _what(spec, facts, class_names, texts),
        "## Teacher and licence\n\n" + licence_text(facts),
        "## Data\n\n" + data_text(facts, spec),
        "## Measured results\n\n" + results_table(facts.metrics),
        "## Agreement with torch\n\n" + _parity(parity),
        *(["## In 8-bit integers\n\n" + _int8(int8)] if int8 else []),
        "## Limits\n\n" + _limits(spec, facts),
        "## How to use\n\n" + _usage(spec, texts, has_int8=int8 is not None and int8.written),
    ]
    return f"---\n{front}---\n\n" + "\n\n".join(sections) + "\n"


def _front_matter(spec: StudentSpec, facts: BundleFacts) -> dict[str, Any]:
    zero_shot = spec.head == "embedding"
    front: dict[str, Any] = {
        "library_name": "timm",
        "pipeline_tag": "zero-shot-image-classification" if zero_shot else "image-classification",
        "license": "other",
        "license_name": "see-card",
        "base_model": [f"timm/{spec.name}", *([facts.teacher] if facts.teacher else [])],
        "datasets": list(facts.datasets),
        "metrics": ["accuracy"],
        "tags": ["onnx", *(["knowledge-distillation"] if facts.teacher else [])],
    }
    return {key: value for key, value in front.items() if value != []}


def _what(spec: StudentSpec, facts: BundleFacts, class_names: Sequence[str], texts: int) -> str:
    shown = ", ".join(class_names[:20]) + (", …" if len(class_names) > 20 else "")
    how = f" with the method `{facts.method}`" if facts.method else ""
    if spec.head == "classes":
        kind = "It gives one logit for each of its classes, which are fixed."
    else:
        kind = (
            f"It gives a unit vector of {spec.dim} numbers in its teacher's joint space of images "
            "and texts; the answer is the class whose text features are nearest."
        )
    lines = [
        f"A small image model (`{spec.name}`, {spec.image_size} px, starting weights: "
        f"{spec.weights}) trained{how}. {kind}",
        f"Classes ({len(class_names)}): {shown}.",
    ]
    if texts:
        lines.append(f"A vocabulary of {texts:,} texts lets its classes be changed on the device.")
    return "\n\n".join(lines)


def licence_text(facts: BundleFacts) -> str:
    """Return what binds the use of a student, in a sentence or two."""
    if not facts.teacher:
        return "It was trained without a teacher; the licence of its starting weights applies."
    said = f"**{facts.licence}**" if facts.licence else "No restriction on its weights is known."
    return (
        f"Teacher: `{facts.teacher}`. {said} The licences of the teacher, of the starting weights "
        "and of the training data may each bind the use of this model."
    )


def data_text(facts: BundleFacts, spec: StudentSpec) -> str:
    """Return what a student was trained on and what its weights were before."""
    named = ", ".join(f"`{name}`" for name in facts.datasets) or "not named"
    return f"Trained on: {named}. Starting weights: {spec.weights}."


def results_table(records: Sequence[Record]) -> str:
    """Return the table of results, one row a record, only the columns that some row has."""
    # What has none of these columns (coherence with the teacher) is the report's to show.
    records = [record for record in records if not record.metrics.keys().isdisjoint(_METRICS)]
    if not records:
        return "None were measured before the export."
    keys = [key for key in _METRICS if any(key in record.metrics for record in records)]
    header = ["model", "data", "split", "domain", "images", *(_METRICS[key] for key in keys)]
    rows = [
        [
            record.role,
            record.dataset,
            record.split,
            record.domain,
            f"{record.num_images:,}" if record.num_images else _UNKNOWN,
            *(_number(key, record.metrics.get(key)) for key in keys),
        ]
        for record in records
    ]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(c) for c in line) + " |" for line in lines)


def _number(key: str, value: float | None) -> str:
    if value is None:
        return _UNKNOWN
    return f"{value:.3f}" if key in ("ece", "mean_cosine") else f"{100 * value:.1f} %"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _parity(parity: Parity) -> str:
    return (
        f"On {parity.images} real images `model.onnx` and the student in torch differ by at most "
        f"{parity.max_abs_difference:.1e} in any output, cosine at least "
        f"{_floor(parity.min_cosine, 6)}, same best class on "
        f"{parity.top1_agreement:.0%} (ties aside); the preprocessing differs by at most "
        f"{parity.max_pixel_difference * 255:.1f} of 255 levels."
    )


def _int8(int8: Int8) -> str:
    told = (
        f"`{MODEL_INT8}` is {int8.bytes_int8 / 1e6:.1f} MB instead of {int8.bytes_fp32 / 1e6:.1f}; "
        f"the ranges of its values were found on {int8.training_images} training images."
        if int8.written
        else f"There is no `{MODEL_INT8}`: {int8.reason}."
    )
    unrelated = (
        ""
        if int8.unrelated_cosine is None
        else f" (of different images: {int8.unrelated_cosine:.3f})"
    )
    accuracy = (
        ""
        if int8.accuracy_int8 is None or int8.accuracy_fp32 is None
        else f" Of the {int8.labelled_images} with a label int8 names {_share(int8.accuracy_int8)} "
        f"rightly, fp32 {_share(int8.accuracy_fp32)}."
    )
    return (
        f"{told} On {int8.validation_images} source validation images it has fp32's best class on "
        f"{_share(int8.top1_agreement)}, with a mean cosine of {_floor(int8.mean_cosine, 4)} to "
        f"fp32, at least {_floor(int8.min_cosine, 4)}{unrelated}.{accuracy} The results above are "
        "fp32's."
    )


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _floor(value: float, digits: int) -> str:
    """Return a cosine that is not rounded up, so that "at least" holds and 1 means 1."""
    return f"{math.floor(value * 10**digits) / 10**digits:.{digits}f}"


def _limits(spec: StudentSpec, facts: BundleFacts) -> str:
    lines = [
        "The results hold for the data in the table; on other kinds of pictures measure first.",
        "It answers among its classes only"
        + (
            f', and says "none of these" below a confidence of {facts.threshold:.2f}.'
            if facts.threshold > 0
            else ", whatever the picture shows, unless a threshold is given."
        ),
        "What its teacher, its starting weights and its data get wrong or leave out, it does too.",
    ]
    if spec.head == "embedding":
        lines.append("Classes it was not trained on may be answered less well; measure them too.")
    return "\n".join(f"- {line}" for line in lines)


def _usage(spec: StudentSpec, texts: int, *, has_int8: bool) -> str:
    commands = ["attar predict BUNDLE IMAGES", "attar latency BUNDLE"]
    if texts:
        commands.insert(1, "attar predict BUNDLE IMAGES --labels my_classes.txt")
    if has_int8:
        commands += ["attar predict BUNDLE IMAGES --int8", "attar latency BUNDLE --int8"]
    output = "embedding" if spec.head == "embedding" else "logits"
    return (
        "```\n" + "\n".join(commands) + "\n```\n\n"
        "From Python, without torch:\n\n"
        "```python\n"
        "from pathlib import Path\n\n"
        "from attar.runtime.bundle import Bundle\n"
        "from attar.runtime.predict import Predictor\n\n"
        'predictor = Predictor(Bundle.open(Path("BUNDLE")))\n'
        'print(predictor.predict([Path("image.jpg")])[0].label)\n'
        "```\n\n"
        f"In any ONNX runtime: `model.onnx` takes `image`, float32 [batch, 3, {spec.image_size}, "
        f"{spec.image_size}] in [0, 1] (see `preprocess.json`; mean and standard deviation are "
        f"inside), and gives `{output}` [batch, {spec.dim}]. Multiply "
        + (
            "its cosine with each row of `class_features` by `logit_scale` "
            "(both in `labels.safetensors`)"
            if spec.head == "embedding"
            else "it by `logit_scale` (in `labels.safetensors`)"
        )
        + " and take the softmax for confidences."
    )

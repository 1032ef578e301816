"""Swap the classes: find each name's text features in the bundle's labels or its vocabulary."""

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attar.data.classes import ClassList, make_class_list, normalise_name, read_class_list
from attar.errors import AttarError, UsageError
from attar.runtime.bundle import Bundle, TextStore
from attar.runtime.tensors import read_tensors

_TEMPLATE = re.compile(r"^(?:an? |the )?(?:\w+ )*?(?:photo|picture|image|drawing) of (.+)$")
_ARTICLE = re.compile(r"^(?:an?|the) ")


def bare(name: str) -> str:
    """Return what a template speaks of: "a photo of a dog." becomes "dog"; others: normalised."""
    text = normalise_name(name).rstrip(".")
    spoken = _TEMPLATE.match(text)
    return _ARTICLE.sub("", spoken.group(1)) if spoken else text


def find_features(bundle: Bundle, class_list: ClassList) -> TextStore:
    """Return the text features of other classes, from what the bundle carries.

    A name is looked up in the bundle's labels first, then in its vocabulary: as written, then
    "_", spaces and case aside, then without the template around it. A class whose name is not
    there takes the mean of its descriptions' features when all of them are.

    Raises:
        UsageError: a name that neither holds; the nearest ones are given.
    """
    sources = [bundle.labels, *([bundle.vocabulary] if bundle.vocabulary else [])]
    rows = _index(sources)
    features = [
        _class_feature(rows, sources, name, described)
        for name, described in zip(class_list.names, class_list.descriptions, strict=True)
    ]
    missing = [n for n, f in zip(class_list.names, features, strict=True) if f is None]
    if missing:
        raise _missing_names(bundle, missing)
    return TextStore(class_list.names, np.stack([f for f in features if f is not None]))


def read_labels(bundle: Bundle, path: Path) -> TextStore:
    """Return the classes that a `--labels` file asks for, with their features [C, D].

    A .safetensors file brings its own: a tensor `class_features` and a metadata entry `names`
    (a JSON list). Any other file is a class list for `find_features`.
    """
    if path.suffix != ".safetensors":
        return find_features(bundle, read_class_list(path))
    if bundle.head == "classes":
        raise UsageError(
            f"{bundle.path} is a plain classifier: it cannot take the classes of {path}"
        )
    if not path.is_file():
        raise UsageError(f"--labels {path} does not exist")
    tensors = read_tensors(path)
    features = tensors.require(path, "class_features", width=bundle.dim)
    try:
        names = tuple(str(name) for name in json.loads(tensors.metadata["names"]))
    except (KeyError, TypeError, ValueError) as error:
        raise AttarError(f"{path} has no metadata entry 'names' with a JSON list") from error
    if len(names) != len(features):
        raise AttarError(f"{path} has {len(names)} names for {len(features)} class features")
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise AttarError(f"{path} holds class features that are zero or not finite")
    return TextStore(make_class_list(names).names, features / norms)


def _index(sources: Sequence[TextStore]) -> dict[str, tuple[int, int]]:
    """Map every spelling to (source, row); exact wins over normalised, and that over bare."""
    rows: dict[str, tuple[int, int]] = {}
    for spelling in (str, normalise_name, bare):
        for number, source in enumerate(sources):
            for row, text in enumerate(source.texts):
                rows.setdefault(spelling(text), (number, row))
    return rows


def _class_feature(
    rows: dict[str, tuple[int, int]],
    sources: Sequence[TextStore],
    name: str,
    descriptions: Sequence[str],
) -> NDArray[np.float32] | None:
    """Return the feature [D] of one class, or None when the bundle knows nothing of it."""

    def look_up(text: str) -> NDArray[np.float32] | None:
        place = next((rows[s] for s in (text, normalise_name(text), bare(text)) if s in rows), None)
        return None if place is None else sources[place[0]].features[place[1]]

    own = look_up(name)
    if own is not None:
        return own
    described = [f for f in map(look_up, descriptions) if f is not None]
    if not described or len(described) < len(descriptions):
        return None
    mean = np.mean(described, axis=0, dtype=np.float32)
    return np.asarray(mean / np.linalg.norm(mean), dtype=np.float32)


def _missing_names(bundle: Bundle, missing: Sequence[str]) -> UsageError:
    known = list(bundle.labels.texts) + list(bundle.vocabulary.texts if bundle.vocabulary else ())
    spelled = {normalise_name(text): text for text in known}
    near = difflib.get_close_matches(normalise_name(missing[0]), spelled, n=3, cutoff=0.5)
    hint = f" (nearest: {', '.join(repr(spelled[n]) for n in near)})" if near else ""
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    if bundle.head == "classes":
        held, way_out = "this plain classifier", "it can only choose among its own labels"
    elif bundle.vocabulary is None:
        held, way_out = "its labels", "export with --vocabulary FILE to choose classes freely"
    else:
        held, way_out = "its labels or vocabulary", "export again with a vocabulary that has it"
    return UsageError(f"{bundle.path}: {missing[0]!r}{more} is not in {held}{hint}; {way_out}")

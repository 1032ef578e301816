"""From class names to prompts, and from the prompts' features to one feature per class."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.errors import UsageError, unknown_name

SLOT = "{c}"
"""Where the class name goes in a template, as CLIP_benchmark writes it."""


def _openai_imagenet() -> tuple[str, ...]:
    # Imported on use: the package that ships them takes seconds to load.
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    return tuple(template(SLOT) for template in OPENAI_IMAGENET_TEMPLATES)


def _dime_fm() -> tuple[str, ...]:
    return (f"{SLOT}.", *_openai_imagenet())


TEMPLATES: dict[str, tuple[str, ...] | Callable[[], tuple[str, ...]]] = {
    "plain": ("{c}",),
    "photo": ("a photo of a {c}",),
    "photo-no-article": ("a photo of {c}",),
    "openai-80": _openai_imagenet,
    "dime-fm-81": _dime_fm,
}
"""Named sets of templates; a function where the set is read from another package on use."""


class Classes(Protocol):
    """What this module needs of a class list: C names, and each one's descriptions (or none)."""

    @property
    def names(self) -> tuple[str, ...]:
        """[C] class names."""
        ...

    @property
    def descriptions(self) -> tuple[tuple[str, ...], ...]:
        """[C] the descriptions of each class; an empty tuple for a class that has none."""
        ...


def get_templates(name_or_path: str) -> tuple[str, ...]:
    """Return the templates of a name in `TEMPLATES`, or those in a file, one a line."""
    if name_or_path in TEMPLATES:
        found = TEMPLATES[name_or_path]
        return found() if callable(found) else found
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return read_templates(path)
    if path.suffix or len(path.parts) > 1:
        raise UsageError(f"template file {name_or_path} does not exist; or use {_known()}")
    raise unknown_name("template set", name_or_path, TEMPLATES)


def _known() -> str:
    return "one of " + ", ".join(TEMPLATES)


def read_templates(path: Path) -> tuple[str, ...]:
    """Read a CLIP_benchmark template file: one template a line, the class name at "{c}".

    Empty lines are skipped. Raises `UsageError` naming the line without "{c}", or an empty file.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"template file {path} cannot be read: {error}") from error
    templates = []
    for number, line in enumerate(lines, start=1):
        template = line.strip()
        if template and SLOT not in template:
            raise UsageError(
                f"{path} line {number}: {template!r} lacks {SLOT}, the place of the class name "
                f'(for example "a photo of a {SLOT}")'
            )
        if template:
            templates.append(template)
    if not templates:
        raise UsageError(f'{path} holds no template; write one a line, as "a photo of a {SLOT}"')
    return tuple(templates)


def class_texts(classes: Classes, templates: Sequence[str]) -> list[list[str]]:
    """Return each class's texts, [C] lists without duplicates, in the order of the templates.

    An underscore in a name reads as a space. A class with descriptions gets, for each template,
    every description: as it is where it names the class, else after the prompt
    ("a photo of a dog. <description>").
    """
    if not templates:
        raise UsageError(f"no template given; use {_known()}")
    return [
        _texts_of(_spaced(name), descriptions, templates)
        for name, descriptions in zip(classes.names, classes.descriptions, strict=True)
    ]


def texts_behind_context(classes: Classes) -> list[str]:
    """Return the text of each class that learnt prompt vectors stand before, [C].

    The name alone or "{name} . {description}" with the first description, as Li et al. (ICCV 2023)
    encode it. What a description itself begins with, the name or "a photo of {name}" up to a full
    stop, is left out: the learnt vectors take the place of these words.
    """
    return [
        _behind_context(_spaced(name), descriptions)
        for name, descriptions in zip(classes.names, classes.descriptions, strict=True)
    ]


def _behind_context(name: str, descriptions: Sequence[str]) -> str:
    if not descriptions:
        return name
    known = r"[\s_]+".join(map(re.escape, name.split()))
    prompt = rf"(?:a photo of (?:an? |the )?)?{known}\s*\.\s+"
    sentence = re.sub(rf"\A{prompt}", "", descriptions[0].strip(), flags=re.IGNORECASE)
    return f"{name} . {sentence}"


def domain_prompts(names: Sequence[str], domains: Sequence[str]) -> list[list[str]]:
    """Return [C][S] "a {domain} of a {class}"; underscores read as spaces."""
    classes, places = ([_spaced(word) for word in words] for words in (names, domains))
    return [[f"a {place} of a {name}" for place in places] for name in classes]


def _spaced(word: str) -> str:
    return word.replace("_", " ").strip()


def _texts_of(name: str, descriptions: Sequence[str], templates: Sequence[str]) -> list[str]:
    texts = []
    for template in templates:
        prompt = template.replace(SLOT, name)
        if not descriptions:
            texts.append(prompt)
        for description in (d.strip() for d in descriptions):
            named = f" {_words(name)} " in f" {_words(description)} "
            texts.append(description if named else f"{prompt.rstrip('. ')}. {description}")
    return list(dict.fromkeys(texts))


def _words(text: str) -> str:
    """Return the words alone: "Black-footed" is "black footed", and no "plant" has an "ant"."""
    return " ".join(re.findall(r"\w+", text.replace("_", " ").casefold()))


def mean_class_features(text_features: Tensor, counts: Sequence[int]) -> Tensor:
    """Ensemble prompts as CLIP does: per class normalise each text, average, normalise.

    c_k = normalise(mean_t normalise(f_kt)) (Radford et al. 2021, section 3.1.4).

    Args:
        text_features: [T, D], the texts of all classes one class after the other.
        counts: [C] how many of the T texts belong to each class; at least one each.

    Returns:
        [C, D] unit vectors in the dtype given.
    """
    if min(counts, default=0) < 1 or sum(counts) != len(text_features):
        raise ValueError(
            f"counts {list(counts)[:10]} must be at least 1 each and sum to the "
            f"{len(text_features)} texts"
        )
    groups = torch.split(F.normalize(text_features, dim=-1), list(counts))
    return F.normalize(torch.stack([group.mean(dim=0) for group in groups]), dim=-1)

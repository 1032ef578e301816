"""The rows of Li et al.'s tables as words: which terms train, and what enriches the language."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from attar.errors import UsageError, unknown_name
from attar.run import RunConfig

CLOSED_SET = "closed-set"
DESCRIPTIONS = "descriptions"

TERMS: Mapping[str, str] = {
    "classification": "classification",
    "feature-mse": "feature_mse",
    "image-contrastive": "image_contrastive",
    "proximity": "proximity",
    "caption": "caption",
}
"""Word of a row -> option of `li2023` that it sets to 1."""

ENRICHMENTS = (DESCRIPTIONS, "prompts")
_PROMPT_VECTORS = 8


def words_of(row: str) -> tuple[str, ...]:
    """Return the words of a row such as "classification+image-contrastive+descriptions".

    Raises:
        UsageError: an unknown word, one twice, or a row that would train nothing.
    """
    words = tuple(row.split("+"))
    for word in words:
        if word not in (*TERMS, *ENRICHMENTS, CLOSED_SET):
            raise unknown_name("word of a row", word, (*TERMS, *ENRICHMENTS, CLOSED_SET))
    if len(set(words)) < len(words):
        raise UsageError(f"row {row!r} names something twice")
    if CLOSED_SET in words:
        if len(words) > 1:
            raise UsageError(f"row {row!r}: a closed-set classifier takes no other word")
    elif not set(words) & TERMS.keys():
        raise UsageError(f"row {row!r} trains nothing: add one of {', '.join(TERMS)}")
    return words


def config_of(base: RunConfig, row: str, descriptions: Path | None) -> RunConfig:
    """Return the run of a row: `erm` for the closed set, else `li2023` with its terms.

    Raises:
        UsageError: as `words_of`, or a row with descriptions and none are given.
    """
    words = words_of(row)
    if CLOSED_SET in words:
        return replace(base, method="erm", method_options={})
    options: dict[str, float] = dict.fromkeys(TERMS.values(), 0.0)
    options |= {TERMS[word]: 1.0 for word in words if word in TERMS}
    if "prompts" in words:
        options["context"] = _PROMPT_VECTORS
    data = base.data
    if DESCRIPTIONS in words:
        if descriptions is None:
            raise UsageError(f"row {row!r} needs --descriptions FILE (see `attar describe`)")
        data = replace(data, classes=descriptions)
    return replace(base, data=data, method="li2023", method_options=options)

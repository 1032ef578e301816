"""WordNet's definitions of the 21,844 nouns of ImageNet, as timm ships them: no network needed."""

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from attar.data.classes import normalise_name
from attar.errors import AttarError, UsageError


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """One synset."""

    wnid: str
    """Part of speech and offset in WordNet 3.0, e.g. "n02012849"."""
    words: tuple[str, ...]
    """Its synonyms, the usual one first."""
    definition: str

    def __str__(self) -> str:
        return f"{self.wnid} {', '.join(self.words)}: {self.definition}"


class WordNet:
    """Looks meanings up by name or wnid."""

    def __init__(self, meanings: Iterable[Meaning]) -> None:
        self._by_wnid = {meaning.wnid: meaning for meaning in meanings}
        self._by_word: dict[str, list[Meaning]] = {}
        for meaning in self._by_wnid.values():
            for word in dict.fromkeys(map(_spelled, meaning.words)):
                self._by_word.setdefault(word, []).append(meaning)

    @classmethod
    def shipped(cls) -> "WordNet":
        """Read the tables in the timm that is installed; AttarError when they are not there."""
        spec = importlib.util.find_spec("timm")  # located, not imported: that would load torch
        folder = Path(next(iter((spec and spec.submodule_search_locations) or [""])))
        try:
            words, definitions = (
                _read_table(folder / "data" / "_info" / f"imagenet_synset_to_{what}.txt")
                for what in ("lemma", "definition")
            )
        except OSError as error:
            raise AttarError(
                f"the WordNet tables of timm cannot be read ({error}); install timm>=1.0.17 again"
            ) from error
        return cls(
            Meaning(wnid=wnid, words=tuple(lemmas.split(", ")), definition=definitions[wnid])
            for wnid, lemmas in words.items()
            if wnid in definitions
        )

    def __len__(self) -> int:
        return len(self._by_wnid)

    def meanings(self, name: str) -> list[Meaning]:
        """Return every synset that a class name may mean, the likeliest first.

        A name that is a wnid means that synset. Otherwise case, "_", "-" and spaces are alike, and
        a synset whose usual word is the name comes before one that lists it as a synonym; among
        equals the lower wnid comes first, which says nothing about how usual it is.
        """
        if name in self._by_wnid:
            return [self._by_wnid[name]]
        wanted = _spelled(name)
        found = self._by_word.get(wanted, [])
        return sorted(
            found, key=lambda meaning: (_spelled(meaning.words[0]) != wanted, meaning.wnid)
        )

    def pinned(self, pins: Iterable[str], names: Iterable[str]) -> Mapping[str, Meaning]:
        """Return {class: the meaning that a pin "CLASS=WNID" gives it}.

        Raises:
            UsageError: another form, a class not among `names`, or a wnid that is not known.
        """
        known = {normalise_name(name): name for name in names}
        chosen = {}
        for pin in pins:
            name, equals, wnid = (part.strip() for part in pin.rpartition("="))
            if not (name and equals and wnid):
                raise UsageError(f'--pin {pin!r} should read CLASS=WNID, e.g. "crane=n02012849"')
            if normalise_name(name) not in known:
                raise UsageError(f"--pin {pin!r}: the class list has no class {name!r}")
            if wnid not in self._by_wnid:
                there = "; ".join(map(str, self.meanings(name))) or "none of that name"
                raise UsageError(f"--pin {pin!r}: {wnid} is not among the meanings ({there})")
            chosen[known[normalise_name(name)]] = self._by_wnid[wnid]
        return chosen


def _spelled(word: str) -> str:
    return normalise_name(word.replace("-", " "))


def _read_table(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").split("\n")
    pairs = (line.partition("\t") for line in lines)
    return {wnid: text.strip() for wnid, tab, text in pairs if tab}

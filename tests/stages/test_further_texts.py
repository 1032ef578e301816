"""Texts beside the prompts are asked about with the run, each stage's own; and what changed since
a run began is noticed before it goes on."""

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.doubles import random_image
from tiny_runs import CLASSES, distil

from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.files import write_text
from attar.run import RunFolder
from attar.stages import further_texts
from attar.stages.opening import seen_keys
from attar.store.store import Store

RISE = {"anchors": ("bright photo", "dark photo")}


def test_texts_of_domains_are_asked_about(root: Path) -> None:
    run = distil(root, "rise", method="rise", method_options=RISE)
    wanted = [f"a {word} of a {name}" for word in RISE["anchors"] for name in CLASSES]
    features = Store.open(run / "store").text_features(wanted)  # an error where one is missing
    assert features.shape == (len(wanted), 32)


def test_a_store_without_them_is_refused_before_anything_is_computed(root: Path) -> None:
    run = distil(root, "without-texts")
    given = {"teacher": None, "store": run / "store"}
    with pytest.raises(UsageError, match=r"store .* lacks 6 of the texts to learn from"):
        distil(root, "asks-none", method="rise", method_options=RISE, **given)


def test_sentences_are_never_held_together(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be millions of them."""
    given: list[Iterable[str]] = []
    embed = further_texts.embed_texts

    def noting(teacher: object, texts: Iterable[str], *rest: object, **more: object) -> Path:
        given.append(texts)
        return embed(teacher, texts, *rest, **more)

    monkeypatch.setattr(further_texts, "embed_texts", noting)
    sentences = tmp_path / "sentences.txt"
    write_text(sentences, "a cat sleeps\na dog runs\na horse eats\na cat runs\n")
    distil(root, "sentences", method="dime-fm", texts=sentences)
    assert len(given) == 1
    assert not isinstance(given[0], (list, tuple))


def test_a_run_does_not_go_on_with_other_images(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "seen", tmp_path / "seen")
    (tmp_path / "teacher").symlink_to(root / "teacher")
    shutil.copy(root / "templates.txt", tmp_path)
    run = distil(tmp_path, "changed")
    (run / "done").unlink()  # as if it had been killed before its end
    new = tmp_path / "seen" / "cat" / "new.png"
    random_image(77, (40, 36)).save(new)
    with pytest.raises(UsageError, match=r"changed since .*changed began to train: .* new"):
        distil(tmp_path, "changed")
    shutil.rmtree(run / "checkpoints")  # as if it had been killed before it began
    shutil.rmtree(run / "student")
    distil(tmp_path, "changed")
    new.unlink()
    assert (run / "done").is_file()


def test_what_a_run_has_seen_is_what_it_was_trained_or_selected_on(
    run: Path, root: Path, tmp_path: Path
) -> None:
    table = ImageTable.load(RunFolder(run).images)

    def of(split: str) -> set[str]:
        return {key for key, own in zip(table.keys, table.splits, strict=True) if own == split}

    assert seen_keys([run]) == of("train") | of("val")
    assert seen_keys([run], ("train",)) == of("train")
    assert seen_keys([run, root]).isdisjoint(of("test_id"))
    assert seen_keys([root]) == frozenset()
    further = tmp_path / "further"  # as few-shot learning leaves it
    further.mkdir()
    shutil.copy(run / "config.yaml", further)
    splits = tuple("few_shot" if split == "test_id" else split for split in table.splits)
    replace(table, splits=splits).save(RunFolder(further).images)
    assert seen_keys([further]) == of("train") | of("val") | of("test_id")

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.doubles import random_image

from attar.cli.main import main
from attar.data.images import read_image
from attar.data.sentences import read_sentences
from attar.data.sources import read_sources
from attar.errors import AttarError, UsageError
from attar.language import captions
from attar.language.captions import (
    Captions,
    retrieve_captions,
    write_manifest,
)
from attar.store.config import EmbedConfig
from attar.teachers.base import Teacher

FAST = EmbedConfig(batch_size=4, workers=0, dtype="float32")
SENTENCES = [f"{what} number {n}" for n in range(9) for what in ("a cat", "two dogs", "red house")]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two class/image folders with the same names in both."""
    roots = (tmp_path / "one", tmp_path / "two")
    for place, root in enumerate(roots):
        for number in range(8):
            file = root / ("cat" if number % 2 else "guide dog") / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            random_image(100 * place + number, (40, 36)).save(file)
    return roots


def brute_force(teacher: Teacher, paths, sentences) -> np.ndarray:
    import torch

    pixels = torch.stack([teacher.prepare(read_image(path)) for path in paths])
    sides = [teacher.encode_images(pixels), teacher.encode_texts(sentences)]
    images, texts = (
        side.numpy() / np.linalg.norm(side.numpy(), axis=1, keepdims=True) for side in sides
    )
    return images @ texts.T


@pytest.mark.parametrize("chunks", [(3, 5), (2048, 8192)])
def test_retrieval_equals_brute_force(
    monkeypatch, tmp_path: Path, folders, teacher: Teacher, chunks: tuple[int, int]
) -> None:
    monkeypatch.setattr(captions, "_IMAGES", chunks[0])
    monkeypatch.setattr(captions, "_SENTENCES", chunks[1])
    table = read_sources(folders)
    found = retrieve_captions(teacher, table, SENTENCES, tmp_path / "store", FAST)
    cosines = brute_force(teacher, table.paths, SENTENCES)
    np.testing.assert_allclose(found.scores, cosines.max(axis=1), atol=1e-5)
    chosen = [SENTENCES.index(text) for text in found.texts]
    np.testing.assert_allclose(cosines[np.arange(16), chosen], cosines.max(axis=1), atol=1e-5)
    again = retrieve_captions(None, table, SENTENCES, tmp_path / "store", FAST)
    assert again == found, "the store knows everything"
    with pytest.raises(AttarError, match="a new one"):
        retrieve_captions(None, table, [*SENTENCES, "a new one"], tmp_path / "store", FAST)


def test_of_equally_near_sentences_the_first_is_taken(tmp_path, folders, teacher) -> None:
    table = read_sources(folders)
    same = ["a cat", "a CAT", "A cat"]  # one for the tokenizer
    found = retrieve_captions(teacher, table, same, tmp_path / "store", FAST)
    assert set(found.texts) == {"a cat"}


def test_an_image_without_an_embedding_has_no_caption(tmp_path, folders, teacher, caplog) -> None:
    table = read_sources(folders)
    Path(table.paths[3]).write_bytes(b"gone in the meantime")
    found = retrieve_captions(teacher, table, SENTENCES, tmp_path / "store", FAST)
    assert found.texts[3] is None
    assert found.scores[3] is None
    assert sum(text is None for text in found.texts) == 1
    assert "1 images have no embedding" in caplog.text


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("place", ["", "elsewhere/deep", "one"])
def test_a_manifest_is_read_back(tmp_path: Path, folders, suffix: str, place: str) -> None:
    table = read_sources(folders)
    texts = tuple(f'"{n}", a sentence' if n % 3 else None for n in range(len(table)))
    scores = tuple(None if text is None else 0.25 for text in texts)
    out = tmp_path / place / f"captions{suffix}"
    write_manifest(table, Captions(texts=texts, scores=scores), out)
    read = read_sources([out])
    assert (read.paths, read.keys, read.labels) == (table.paths, table.keys, table.labels)
    assert read.class_names == ("cat", "guide dog")
    assert read.captions == texts
    assert read.splits == table.splits
    if place != "elsewhere/deep":
        assert read.names[0] == Path(table.paths[0]).relative_to(out.parent).as_posix()


def test_domains_splits_and_several_labels_come_along(tmp_path: Path) -> None:
    for number in range(3):
        random_image(number, (20, 20)).save(tmp_path / f"{number}.png")
    lists = tmp_path / "list.csv"
    lists.write_text(
        "path,labels,domain,split\n0.png,cat|dog,art,train\n1.png,,,test\n2.png,owl,photo,\n"
    )
    table = read_sources([lists])
    write_manifest(table, Captions(texts=("a", None, "c")), tmp_path / "out.csv")
    read = read_sources([tmp_path / "out.csv"])
    for column in ("names", "label_sets", "class_names", "domains", "domain_names", "splits"):
        assert getattr(read, column) == getattr(table, column), column
    assert read.captions == ("a", None, "c")
    assert "caption_score" not in (tmp_path / "out.csv").read_text()


def test_unlabelled_images_have_no_label(tmp_path: Path, folders) -> None:
    table = read_sources(folders, unlabelled=True)
    write_manifest(table, Captions(texts=("a",) * 16), tmp_path / "out.csv")
    assert read_sources([tmp_path / "out.csv"]).labels == (-1,) * 16


def test_sentences(tmp_path: Path) -> None:
    file = tmp_path / "sentences.txt"
    file.write_bytes("A cat.\r\n\r\n A dog.\nA cat.\nIt\x85 is\n".encode())
    assert read_sentences(file) == ["A cat.", "A dog.", "It\x85 is"]
    file.write_text(" \n\n")
    with pytest.raises(UsageError, match="no sentence"):
        read_sentences(file)
    with pytest.raises(UsageError, match=r"missing\.txt"):
        read_sentences(tmp_path / "missing.txt")


def give(*words: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    return stopped.value.code


def test_the_command(tmp_path: Path, folders, teacher_folder: Path, teacher, capfd) -> None:
    sentences, out = tmp_path / "sentences.txt", tmp_path / "captions.csv"
    sentences.write_text("\n".join(SENTENCES))
    words = ["caption", "--data", folders[0], "--data", folders[1], "--source=retrieval"]
    words += ["--texts", sentences, "--store", tmp_path / "store", "--embed.workers=0"]
    assert give(*words, "--teacher", teacher_folder, "--out", out) == 0
    assert "16 of 16 images with a caption" in capfd.readouterr().out
    table = read_sources([out])
    assert set(table.captions) <= set(SENTENCES)
    cosines = brute_force(teacher, table.paths, SENTENCES)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) == {"path", "label", "domain", "split", "caption", "caption_score"}
    scores = [float(row["caption_score"]) for row in rows]
    np.testing.assert_allclose(scores, cosines.max(axis=1), atol=2e-3)  # float16 in the store
    before = out.read_bytes()
    shutil.copy(out, tmp_path / "kept.csv")
    assert give(*words, "--out", out) == 0, "no teacher is needed any more"
    assert out.read_bytes() == before
    assert give(*words, "--subset=odd", "--out", tmp_path / "odd.csv") == 0
    assert 0 < len(read_sources([tmp_path / "odd.csv"], superset=True)) < 16


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--source=retrieval", "--out=x.csv"], "--texts"),
        (["--source=retrieval", "--out=x.json"], ".csv or .parquet"),
        (["--source=model", "--out=x.csv"], "--model"),
        (["--source=guess", "--out=x.csv"], "guess"),
    ],
)
def test_wrong_use(
    tmp_path: Path, monkeypatch, folders, capfd, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert give("caption", "--data", folders[0], *words) == 2
    assert said in capfd.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}

"""dime-fm from files to a student: sentences are embedded once, streamed, and refused by name."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import distil

from attar import pipeline
from attar.errors import UsageError
from attar.files import write_json
from attar.run import DataConfig, RunFolder, from_options, to_options
from attar.store.config import EmbedConfig
from attar.store.store import Store
from attar.store.writer import StoreWriter

SENTENCES = ["A cat.", "Two dogs.", "A red house.", "A cat.", "Nothing at all."]


@pytest.fixture(scope="module")
def sentences(root: Path) -> Path:
    file = root / "sentences.txt"
    file.write_text("\n".join(SENTENCES) + "\n")
    return file


def test_sentences_of_a_file_and_prompts_of_classes(root: Path, sentences: Path) -> None:
    options = {"class_prompts": True, "text_batch": 3}
    run = distil(root, "unpaired", method="dime-fm", texts=sentences, method_options=options)
    store = Store.open(run / "store")
    assert store.has_texts(SENTENCES).all()
    assert store.num_texts == 4 + 6
    assert (run / "student" / "model.safetensors").is_file()
    assert "term/vl" in (run / "metrics.jsonl").read_text()
    # The same store answers without the teacher, as a file or whole.
    for number, texts in enumerate((sentences, run / "store")):
        distil(
            root,
            f"unpaired-{number}",
            method="dime-fm",
            texts=texts,
            teacher=None,
            store=run / "store",
        )
    (root / "more.txt").write_text("A cat.\nA new sentence.\n")
    only_store = {"method": "dime-fm", "teacher": None, "store": run / "store"}
    with pytest.raises(UsageError, match="lacks 1 of the texts to learn from"):
        distil(root, "unpaired-more", texts=root / "more.txt", **only_store)
    other = f"local-dir:{root / 'other-teacher'}"
    with pytest.raises(UsageError, match="holds embeddings of teacher"):
        distil(root, "unpaired-other", method="dime-fm", texts=run / "store", teacher=other)


def test_a_store_that_grows_is_learnt_from_as_it_was(
    root: Path, sentences: Path, tmp_path: Path
) -> None:
    run = distil(root, "before", method="dime-fm", texts=sentences)
    corpus, options = tmp_path / "corpus", {"method": "dime-fm", "teacher": None}
    shutil.copytree(run / "store", corpus)
    options |= {"texts": corpus, "store": run / "store"}
    whole = distil(root, "whole", **options)
    again = root / "again"
    (again).mkdir()
    shutil.copy(whole / "corpus.json", again)  # all that a run killed at its first step has left
    shutil.copy(whole / "config.yaml", again)
    teacher = Store.open(corpus).info.teacher
    with StoreWriter.open(corpus, teacher, Store.open(corpus).info.dtype) as writer:
        writer.add_texts(["Something new."], np.ones((1, teacher.dim), np.float32))
    distil(root, "again", **options)
    for name in ("model.safetensors", "config.json"):
        assert (again / "student" / name).read_bytes() == (whole / "student" / name).read_bytes()
    (whole / "done").unlink()
    shutil.rmtree(corpus)
    shutil.copytree(run / "store", corpus)
    write_json(whole / "corpus.json", {"texts": 1000})
    with pytest.raises(UsageError, match=r"and had 1,000 when the run began"):
        distil(root, "whole", **options)


def test_wrong_use_is_refused_by_name(root: Path, sentences: Path) -> None:
    with pytest.raises(UsageError, match=r"dime-fm needs text.*--texts FILE"):
        distil(root, "refused", method="dime-fm")
    with pytest.raises(UsageError, match="feature-mse learns from no sentences"):
        distil(root, "refused", texts=sentences)
    with pytest.raises(UsageError, match=r"missing\.txt does not exist"):
        distil(root, "refused", method="dime-fm", texts=root / "missing.txt")


def test_embedding_sentences_alone_and_class_names_alone(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text('"A cat."\n["A dog.", "A pet."]\n{"class": "guide_dog"}\n')
    teacher, fast = f"local-dir:{root / 'teacher'}", EmbedConfig(batch_size=2, workers=0)
    nothing = DataConfig(data=(), templates=str(root / "templates.txt"))
    out = pipeline.embed(nothing, teacher, tmp_path / "store", fast, file)
    store = Store.open(out)
    wanted = ["A cat.", "A dog.", "A pet.", "a drawing of a guide dog", "a guide dog on paper"]
    assert store.captions(store.text_rows(wanted)) == wanted
    assert store.num_texts == 5
    (tmp_path / "classes.txt").write_text("boat\ntree\n")
    pipeline.embed(replace(nothing, classes=tmp_path / "classes.txt"), teacher, out, fast, file)
    assert Store.open(out).num_texts == 9
    with pytest.raises(UsageError, match="give --data, --classes or --texts"):
        pipeline.embed(nothing, teacher, out, fast)


def test_the_estimate_counts_sentences(root: Path, sentences: Path, run: Path) -> None:
    options = {**RunFolder(run).options(), "method": "dime-fm", "texts": str(sentences)}
    config = from_options(options)
    assert config.texts == sentences
    found = pipeline.estimate(config, root / "estimated")
    assert found.teacher_texts == 6 + 4
    assert from_options(to_options(config)) == config

"""E1 to E6: each from what it may see, on a small world with three domains."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.doubles import make_openclip_folder, random_image

from attar.bench.embeddings import CHOICES, EmbeddingsRequest, run_embeddings
from attar.data.domainbed import make_domainbed_splits
from attar.errors import UsageError
from attar.records import read_records
from attar.run import DataConfig
from attar.stages.images import read_image_table
from attar.store.config import EmbedConfig
from attar.teachers.registry import load_teacher

DOMAINS, CLASSES = ("art", "photo", "sketch"), ("cat", "dog")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embeddings")
    make_openclip_folder(folder / "teacher", embed_dim=32, image_size=32, context_length=8)
    for place, (domain, label) in enumerate((d, c) for d in DOMAINS for c in CLASSES):
        for number in range(6):
            path = folder / "data" / domain / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            random_image(100 * (place % 2) + 7 * place + number, (36, 36)).save(path)
    return folder


@pytest.fixture(scope="module")
def asked(root: Path) -> EmbeddingsRequest:
    return EmbeddingsRequest(
        data=DataConfig(data=(root / "data",)),
        teacher=f"local-dir:{root / 'teacher'}",
        out=root / "out",
        neighbours=3,
        embed=EmbedConfig(workers=0),
    )


def test_six_embeddings_on_every_domain(asked: EmbeddingsRequest) -> None:
    out = run_embeddings(asked)
    records = read_records(out / "results.jsonl")
    assert [(r.domain, r.extra["embedding"]) for r in records] == [
        (domain, name) for domain in DOMAINS for name in ("E1", "E2", "E3", "E4", "E5", "E6")
    ]
    assert {r.extra["embedding"] for r in records if r.extra["oracle"]} == {"E4", "E6"}
    assert all(r.num_images == 12 and r.split == "held_out" for r in records)
    lines = (out / "table.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| E")]
    assert len(rows) == len(CHOICES)
    assert ["(oracle)" in row for row in rows] == [False, False, False, True, False, True]
    found = {(r.extra["embedding"], r.domain): r.metrics["acc1"] for r in records}
    mean = np.mean([100 * found["E3", domain] for domain in DOMAINS])
    assert rows[2].endswith(f"| {mean:.1f} |")


def test_texts_and_source_means_by_hand(asked: EmbeddingsRequest) -> None:
    records = read_records(run_embeddings(asked) / "results.jsonl")
    teacher = load_teacher(str(asked.teacher), torch.device("cpu"))
    table = read_image_table(asked.data, None, asked.out)
    splits = make_domainbed_splits(table, "sketch")

    def features(images) -> torch.Tensor:
        from attar.data.images import read_image

        pixels = torch.stack([teacher.prepare(read_image(path)) for path in images.paths])
        return F.normalize(teacher.encode_images(pixels), dim=-1)

    def texts(prompts: list[list[str]]) -> torch.Tensor:
        rows = [F.normalize(teacher.encode_texts(of), dim=-1).mean(dim=0) for of in prompts]
        return F.normalize(torch.stack(rows), dim=-1)

    source, labels = splits.source.train, torch.tensor(splits.source.train.labels)
    classes = {
        "E1": texts([[f"a photo of a {c}"] for c in CLASSES]),
        "E2": texts([[f"a {d} of a {c}" for d in ("art", "photo")] for c in CLASSES]),
        "E3": torch.stack([features(source)[labels == c].mean(dim=0) for c in (0, 1)]),
    }
    wanted = torch.tensor(splits.held_out.labels)
    for name, rows in classes.items():
        guess = (features(splits.held_out) @ F.normalize(rows, dim=-1).T).argmax(dim=1)
        record = next(r for r in records if (r.domain, r.extra["embedding"]) == ("sketch", name))
        assert record.metrics["acc1"] == pytest.approx((guess == wanted).float().mean().item())


def test_a_class_that_a_domain_lacks_is_named_and_the_others_count(
    asked: EmbeddingsRequest, root: Path, tmp_path: Path
) -> None:
    shutil.copytree(root / "data", tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "sketch" / "dog")
    for number in range(6):
        path = tmp_path / "data" / "photo" / "owl" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        random_image(900 + number, (36, 36)).save(path)
    data, out = DataConfig(data=(tmp_path / "data",)), tmp_path / "out"
    run_embeddings(replace(asked, data=data, out=out))
    found = {(r.domain, r.extra["embedding"]): r for r in read_records(out / "results.jsonl")}
    lacking = {at: r.extra["classes_without_image"] for at, r in found.items()}
    for name in ("E1", "E2", "E3", "E4", "E5", "E6"):
        oracle, texts = name in ("E4", "E6"), name in ("E1", "E2")
        assert lacking["art", name] == (["owl"] if oracle else [])
        assert lacking["photo", name] == ([] if oracle or texts else ["owl"])
        assert lacking["sketch", name] == (["dog", "owl"] if oracle else [])
    # All its images are cats, and a cat is all that the oracles of sketch can answer.
    assert found["sketch", "E4"].metrics["acc1"] == found["sketch", "E6"].metrics["acc1"] == 1
    assert found["sketch", "E4"].num_images == 6
    # Owls are a third of photo, and no source mean can answer them.
    assert found["photo", "E3"].metrics["acc1"] <= 2 / 3 + 1e-6
    table = (out / "table.md").read_text()
    assert "- sketch: it has no image of dog, owl, which E4 and E6 therefore never answer" in table
    assert "- photo: the source images show no owl, which E3 and E5 therefore never" in table


def test_wrong_use_is_refused(asked: EmbeddingsRequest, root: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'sketch'"):
        run_embeddings(replace(asked, domains=("sketches",)))
    with pytest.raises(UsageError, match="--neighbours 0"):
        run_embeddings(replace(asked, neighbours=0))
    flat = replace(asked, data=DataConfig(data=(root / "data" / "art",)))
    with pytest.raises(UsageError, match="labelled images of two or more"):
        run_embeddings(flat)

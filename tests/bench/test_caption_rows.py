"""Rows that learn from captions."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from tests.bench import small_grid
from tests.bench.small_classes import LR, base_config, write_root
from tests.bench.small_grid import write_pictures, write_teachers

from attar import pipeline
from attar.bench.classes import run_classes
from attar.bench.config import ClassesConfig, DomainsConfig
from attar.bench.domains import run_domains
from attar.errors import UsageError
from attar.files import read_json, write_json
from attar.run import DataConfig


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_root(tmp_path_factory.mktemp("captions"))


def test_captions_are_embedded_and_learnt_from(root: Path, tmp_path: Path) -> None:
    lines = ["path,label,caption"]
    for path in sorted((root / "pictures").glob("*/*.png")):
        caption = "" if path.stem == "9" else f"{path.parent.name} number {path.stem}"
        lines.append(f"{path},{path.parent.name},{caption}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    config = replace(
        base_config(root),
        data=DataConfig(data=(tmp_path / "list.csv",)),
        method="li2023",
        method_options={"caption": 1.0},
    )
    run = pipeline.distill(config, tmp_path / "run")  # with its estimate
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("term/caption" in line for line in logged)
    with pytest.raises(UsageError, match="needs captions"):
        pipeline.distill(replace(config, data=base_config(root).data), tmp_path / "no-captions")


def test_a_row_is_known_by_the_captions_it_learns_from(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(rows: tuple[str, ...], word: str) -> Path:
        lines = ["path,label,caption"]
        for path in sorted((root / "pictures").glob("*/*.png")):
            lines.append(f"{path},{path.parent.name},{word} {path.stem}")
        manifest = tmp_path / "list.csv"
        manifest.write_text("\n".join(lines) + "\n")
        base = replace(base_config(root), data=DataConfig(data=(manifest,)))
        return run_classes(base, ClassesConfig(rows=rows, lrs=(LR,)), tmp_path / "out")

    plain, learns = "image-contrastive", "image-contrastive+caption"
    out = run((plain, learns), "number")
    monkeypatch.setattr(pipeline, "distill", None)  # would fail when called
    run((plain, learns), "number")
    run((plain,), "picture")  # learns from none
    with pytest.raises(UsageError, match="captions"):
        run((learns,), "picture")
    cell = out / "cells" / learns / "seed0" / f"lr{LR:g}.json"
    older = read_json(cell)
    cell.unlink()  # its run folder lies there, done with the other captions
    with pytest.raises(
        UsageError, match=rf"{re.escape(str(cell.with_suffix('')))} was run on other"
    ):
        run((learns,), "picture")
    del older["config"]["captions"]
    write_json(cell, older)
    run((learns,), "picture")  # of a time when cells did not know their captions


def test_a_grid_of_domains_knows_the_captions_too(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures")
    write_teachers(tmp_path)
    variants = tmp_path / "variants.yaml"
    variants.write_text("captions: {method: li2023, method.caption: 1}\n")

    def run(word: str) -> Path:
        lines = ["path,label,domain,caption"]
        for path in sorted((tmp_path / "pictures").glob("*/*/*.png")):
            label, domain = path.parent.name, path.parent.parent.name
            lines.append(f"{path},{label},{domain},{word} {path.stem}")
        manifest = tmp_path / "list.csv"
        manifest.write_text("\n".join(lines) + "\n")
        base = replace(small_grid.base_config(tmp_path), data=DataConfig(data=(manifest,)))
        config = DomainsConfig(methods=("erm",), variants=variants, lrs=(LR,), domains=("art",))
        return run_domains(base, config, tmp_path / "out")

    out = run("number")
    assert run("number") == out
    with pytest.raises(UsageError, match="captions"):
        run("picture")

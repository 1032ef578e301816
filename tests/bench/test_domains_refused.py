"""Grids of held-out domains that are refused before anything runs."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tests.bench.small_grid import base_config, grid_config, write_pictures, write_teachers

from attar.bench.domains import run_domains
from attar.errors import UsageError
from attar.run import DataConfig


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and teachers, and no run."""
    folder = tmp_path_factory.mktemp("grid")
    write_pictures(folder / "pictures")
    write_teachers(folder)
    return folder


REFUSED: dict[str, tuple[dict[str, object], dict[str, object], str]] = {
    "method": ({}, {"methods": ("erm", "feature-mes")}, "'feature-mes': did you mean 'feature-mse"),
    "domain": ({}, {"domains": ("art", "skech")}, "domain 'skech': did you mean 'sketch'"),
    "domain of the learning rate": ({}, {"lr_domain": "foto"}, "'foto': did you mean 'photo'"),
    "strict teacher": (
        {},
        {"strict_teacher": "pocket-without:{domain}s"},
        "domain of a strict head 'arts'",
    ),
    "student": ({"student": "test_resnett"}, {}, "'test_resnett'.*'test_resnet'"),
    # `erm` alone would not notice a teacher that the next method cannot use.
    "teacher": ({"teacher": "poket"}, {}, "'poket'.*'pocket'"),
    "no teacher": ({"teacher": None}, {}, "feature-mse needs a teacher: give --teacher"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unknown_names_are_refused_before_anything_runs(
    root: Path, ran: list[str], tmp_path: Path, case: str
) -> None:
    of_base, of_grid, message = REFUSED[case]
    base = replace(base_config(root), **of_base)
    with pytest.raises(UsageError, match=message):
        run_domains(base, grid_config(root, **of_grid), tmp_path / "out")
    assert ran == []
    assert not (tmp_path / "out" / "cells").exists()


@pytest.mark.parametrize("domains", ["none", "one"])
def test_one_domain_cannot_be_left_out(
    root: Path, ran: list[str], tmp_path: Path, domains: str
) -> None:
    folder = tmp_path / "pictures"
    art = root / "pictures" / "art"
    shutil.copytree(art, folder if domains == "none" else folder / "art")
    base = replace(base_config(root), data=DataConfig(data=(folder,)))
    with pytest.raises(UsageError, match="needs two or more domains"):
        run_domains(base, grid_config(root), tmp_path / "out")
    assert ran == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ()}, "--methods must name at least one"),
        ({"methods": ("erm", "erm")}, "--methods .* none twice"),
        ({"seeds": (1, 1)}, "--seeds .* none twice"),
        ({"lrs": ()}, "--lrs must name at least one"),
        ({"lrs": (1e-3, -1e-3)}, "--lrs -0.001: must be above 0"),
        ({"lrs": (float("nan"),)}, "--lrs nan: must be above 0"),
        ({"strict_teacher": "pocket-without:{name}"}, r"without:\{name\}: write \{domain\}"),
        ({"strict_teacher": "pocket-without:{"}, r"write \{domain\}"),
    ],
)
def test_a_grid_that_means_nothing_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        grid_config(tmp_path, **changes)

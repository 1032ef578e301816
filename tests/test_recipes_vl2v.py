"""The recipes of VL2V are files that attar reads, and what they say of themselves is true."""

import re
import shlex
from pathlib import Path

import pytest
import timm
import yaml

from attar.bench.config import DomainsConfig
from attar.bench.rows import make_rows
from attar.cli.config_file import expand_config_file
from attar.cli.distill import run_config
from attar.cli.main import app
from attar.methods.base import Sizes
from attar.methods.registry import find_method, method_options
from attar.run import DataConfig, RunConfig
from attar.stages.request import resolve

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "recipes" / "vl2v"
TAGS = {
    "deit_small_distilled_patch16_224": "deit_small_distilled_patch16_224.fb_in1k",
    "resnet50": "resnet50.tv_in1k",
    "self-distillation": "teacher",
    "vit_base_patch16_224": "vit_base_patch16_224.augreg_in21k_ft_in1k",
    "vit_small_patch16_224": "vit_small_patch16_224.augreg_in21k_ft_in1k",
}


def recipe(name: str) -> Path:
    return FOLDER / f"{name}.yaml"


def comment(name: str) -> str:
    lines = recipe(name).read_text().partition("\n\n")[0].splitlines()
    assert all(line.startswith("#") for line in lines)
    return "\n".join(line[1:] for line in lines)


def parsed(words: list[str]) -> RunConfig:
    _, bound, *_ = app.parse_args(expand_config_file(words), exit_on_error=False, print_error=False)
    return run_config(**bound.arguments)


def commands(name: str) -> list[list[str]]:
    text = comment(name).replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("   attar ")]


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_there_is_one_for_each_backbone() -> None:
    files = {path.stem for path in FOLDER.glob("*.yaml")}
    assert files == {*TAGS, "ablations"}
    page = (FOLDER / "README.md").read_text()
    assert all(f"({name}.yaml)" in page for name in files)


@pytest.mark.parametrize("name", TAGS)
def test_a_recipe_is_the_official_codes(name: str) -> None:
    config = resolve(parsed(commands(name)[0]))
    assert (config.student, config.teacher) == (TAGS[name], "ViT-B-16/openai")
    assert config.method == ("vl2v-sd" if TAGS[name] == "teacher" else "vl2v-adip")
    assert config.method_options["image_weight"] == 0.5
    assert config.method_options["views"] == "online"
    assert (config.protocol, config.splits.held_out_domain) == ("domainbed", "sketch")
    training = config.training
    assert (training.optimizer, training.lr, training.weight_decay) == ("adam", 5e-5, 0.0)
    assert (training.schedule, training.warmup) == ("constant", 0.0)
    assert (training.sampler, training.batch_size) == ("per-domain", 32)
    assert (training.validate_every, training.average) == (200, "swad-code")
    assert (training.swad_converge, training.swad_tolerance) == (3, 6)
    method = find_method(config.method)
    sizes = Sizes(dim=512, trunk_width=8, num_classes=7, num_domains=3)
    phases = method.phases(method_options(method, config.method_options), training.steps, sizes)
    assert [phase.steps for phase in phases] == [5001] * len(phases)
    assert len(phases) == (1 if TAGS[name] == "teacher" else 2)


@pytest.mark.parametrize("name", [name for name in TAGS if TAGS[name] != "teacher"])
def test_the_tags_are_timms(name: str) -> None:
    architecture, _, tag = TAGS[name].partition(".")
    assert architecture in timm.list_models(architecture)
    assert f"{architecture}.{tag}" in timm.list_pretrained(f"{architecture}.*")


def test_the_encoder_that_is_refined_is_timms() -> None:
    assert "vit_base_patch16_clip_quickgelu_224" in recipe("self-distillation").read_text()
    assert timm.is_model("vit_base_patch16_clip_quickgelu_224")


@pytest.mark.parametrize("name", TAGS)
def test_the_commands_of_a_recipe_are_commands(name: str) -> None:
    first, clean = (parsed(words) for words in commands(name))
    assert clean.method_options["views"] == "clean"
    assert (clean.method, clean.student) == (first.method, first.student)
    assert clean.store is not None


@pytest.mark.parametrize("name", TAGS)
def test_the_cost_follows_from_the_recipe(name: str) -> None:
    training = parsed(commands(name)[0]).training
    text = " ".join(comment(name).split())
    assert training.steps is not None
    images = training.steps * 3 * training.batch_size
    assert f"student {images:,} images ({training.steps:,} steps of 3 x 32)" in text
    assert f"the same {images:,} images" in text
    found = re.search(r"32\): (\d+) PFLOP at (\d+) GFLOP an image trained(?: and (\d+))?", text)
    assert found is not None
    told, trained, frozen = (int(part or 0) for part in found.groups())
    aligned = images // 2 if frozen else 0
    expected = (aligned * frozen + (images - aligned) * trained) / 1e6
    assert told == pytest.approx(expected, abs=0.51)
    asked = re.search(r"(\d+) PFLOP at 35 GFLOP an image; with views clean", text)
    assert asked is not None
    assert int(asked[1]) == pytest.approx(images * 35 / 1e6, abs=0.51)


def test_the_ablations_are_rows_of_a_grid(tmp_path: Path) -> None:
    data, teacher = DataConfig(data=(tmp_path,)), "ViT-B-32/openai"
    base = RunConfig(data=data, teacher=teacher, student="test_resnet")
    grid = DomainsConfig(methods=("vl2v-adip",), variants=FOLDER / "ablations.yaml")
    rows, _ = make_rows(base, grid)
    names = set(yaml.safe_load((FOLDER / "ablations.yaml").read_text()))
    assert {row.name for row in rows} == {"vl2v-adip", *names}
    plain = resolve(rows[0].config)
    for row in rows[1:]:
        assert resolve(row.config) != plain, row.name

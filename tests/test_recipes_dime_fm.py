"""The recipes of DIME-FM's two students are files that attar reads, and their comments are true."""

import re
import shlex
from pathlib import Path

import pytest
import timm
import torch
import yaml

from attar.cli.config_file import expand_config_file
from attar.cli.distill import run_config
from attar.cli.main import app
from attar.prompts import get_templates
from attar.run import RunConfig
from attar.stages.request import resolve

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "recipes" / "dime-fm"
RECIPES = ("vit_base_patch32_clip_quickgelu_224", "swin_tiny_patch4_window7_224")
IMAGES, SENTENCES, PROCESSES = 40_000_000, 28_400_000, 8


def comment(name: str) -> str:
    """Return the opening comment without its marks."""
    text = (FOLDER / f"{name}.yaml").read_text().partition("\n\n")[0]
    return re.sub(r"^# ?", "", text, flags=re.MULTILINE)


def commands(name: str) -> list[list[str]]:
    """Return the words behind `attar` of each command in the opening comment."""
    text = comment(name).replace("\\\n", " ")
    lines = [shlex.split(line) for line in text.splitlines() if line.startswith("  ")]
    return [words[words.index("attar") + 1 :] for words in lines if "attar" in words]


def parse(words: list[str]) -> dict:
    _, bound, *_ = app.parse_args(expand_config_file(words), exit_on_error=False, print_error=False)
    return bound.arguments


def configured(name: str) -> RunConfig:
    return resolve(run_config(**parse(commands(name)[2])))


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where the commands are given


def test_there_is_one_for_each_student() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_official_codes(name: str) -> None:
    config = configured(name)
    assert (config.student, config.teacher, config.method) == (name, "ViT-L-14/openai", "dime-fm")
    weights = ("vl_weight", "pvl_weight", "udist_weight")
    assert [config.method_options[one] for one in weights] == [0.7, 0.3, 0.0]
    temperatures = ("vl_temperature", "pvl_temperature", "udist_temperature", "scale")
    assert [config.method_options[one] for one in temperatures] == [1.0, 3.0, 7.0, 100.0]
    student, training = config.student_config, config.training
    assert (student.weights, student.image_size, student.crop_pct) == ("none", 224, 1.0)
    assert student.projection_bias is False
    assert student.drop_path == (0.2 if name.startswith("swin") else None)
    assert (training.epochs, training.batch_size * PROCESSES) == (100, 4096)
    assert (training.optimizer, training.lr, training.weight_decay) == ("adamw", 8e-4, 0.05)
    assert (training.schedule, training.warmup, training.augmentation) == (
        "cosine",
        0.04,
        "flip-crop",
    )
    assert config.data.unlabelled
    assert len(get_templates(config.data.templates)) == 81


def test_the_students_are_the_papers() -> None:
    with torch.device("meta"):  # shapes alone
        vit, swin = (timm.create_model(name, num_classes=768) for name in RECIPES)
    assert (len(vit.blocks), vit.embed_dim, vit.patch_embed.patch_size) == (12, 768, (32, 32))
    assert type(vit.blocks[0].mlp.act).__name__ == "QuickGELU"
    assert vit.head.weight.shape == (768, 768)
    assert [len(stage.blocks) for stage in swin.layers] == [2, 2, 6, 2]
    assert [stage.blocks[0].attn.num_heads for stage in swin.layers] == [3, 6, 12, 24]
    assert swin.layers[0].blocks[0].window_size == (7, 7)
    assert swin.head.fc.weight.shape == (768, 768)


@pytest.mark.parametrize("name", RECIPES)
def test_the_commands_of_a_recipe_belong_together(name: str) -> None:
    embed, select, distill, export = commands(name)
    assert (embed[0], select[0], distill[0], export[0]) == (
        "embed",
        "select-texts",
        "distill",
        "export",
    )
    asked, chosen, config = parse(embed), parse(select), configured(name)
    assert asked["teacher"] == config.teacher
    assert asked["sources"].data == config.data.data
    assert asked["out"] == chosen["store"] == config.store
    assert chosen["options"].count == SENTENCES
    assert config.texts == chosen["out"] / "texts.jsonl"
    assert export[1] == distill[distill.index("--out") + 1]
    assert parse(export)["format"] == "openclip"
    assert f"--nproc-per-node {PROCESSES} -m attar distill" in comment(name)


@pytest.mark.parametrize("name", RECIPES)
def test_the_cost_follows_from_the_recipe(name: str) -> None:
    text = " ".join(comment(name).split())
    training = configured(name).training
    assert training.epochs is not None
    visits = round(IMAGES * training.epochs)
    steps = training.total_steps(IMAGES, training.batch_size * PROCESSES)
    assert f"teacher {IMAGES:,} images" in text
    assert f"student {visits:,} images ({IMAGES:,} x 100 epochs, {steps:,} steps)" in text
    assert f"reading takes {visits / 100 / 3600:,.0f} core-hours" in text
    costs = re.findall(r"([\d,]+) PFLOP at (\d+) GFLOP", text)
    counts = (IMAGES, SENTENCES, visits)
    assert len(costs) == len(counts)
    for (peta, giga), count in zip(costs, counts, strict=True):
        assert float(peta.replace(",", "")) == pytest.approx(count * int(giga) / 1e6, rel=0.03)
    gigabytes = [round(count * 768 * 2 / 1e9) for count in (IMAGES, SENTENCES)]
    assert "{} GB and {} GB of embeddings".format(*gigabytes) in text


def test_the_recipes_differ_in_the_student_alone() -> None:
    first, second = (yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in RECIPES)
    assert first.pop("student") != second.pop("student")
    assert first == second

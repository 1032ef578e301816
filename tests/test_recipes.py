"""Every recipe is a file that `attar distill --config` reads, and its comments are true of it."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from attar.cli.config_file import expand_config_file
from attar.cli.distill import run_config
from attar.cli.main import app
from attar.run import RunConfig
from attar.stages.request import resolve

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "recipes" / "li2023"
TABLE_13 = {
    "birds": (4122, 1740, 5926, 100, 100),
    "cars": (2874, 1164, 4106, 98, 98),
    "flowers102": (3112, 1303, 3774, 51, 51),
    "food101": (35700, 15300, 50000, 51, 50),
    "sun397": (38663, 16444, 53647, 200, 197),
    "tiered-imagenet": (314108, 134587, 124261, 351, 97),
}
SMALL = ("birds", "cars", "flowers102")
BACKBONES = ("resnet18", "vit_base_patch32_224")
RECIPES = [(dataset, backbone) for dataset in TABLE_13 for backbone in BACKBONES]


def recipe(dataset: str, backbone: str) -> Path:
    return FOLDER / f"{dataset}-{backbone}.yaml"


def comments(path: Path) -> list[str]:
    """Return the lines of the opening comment without their marks."""
    lines = path.read_text().partition("\n\n")[0].splitlines()
    assert all(line.startswith("#") for line in lines)
    return [line[1:] for line in lines]


def commands(path: Path) -> list[list[str]]:
    """Return the words of each attar command in the opening comment."""
    text = "\n".join(comments(path)).replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("   attar ")]


def parsed(words: list[str]) -> RunConfig:
    _, bound, *_ = app.parse_args(expand_config_file(words), exit_on_error=False, print_error=False)
    return run_config(**bound.arguments)


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where the commands are given


def test_there_is_one_for_each_dataset_and_backbone() -> None:
    assert {path.name for path in FOLDER.glob("*.yaml")} == {recipe(*one).name for one in RECIPES}


@pytest.mark.parametrize(("dataset", "backbone"), RECIPES)
def test_a_recipe_is_li_et_als(dataset: str, backbone: str) -> None:
    words = ["distill", "--config", str(recipe(dataset, backbone)), "--data=m.csv", "--out=runs/x"]
    config = resolve(parsed(words))
    assert (config.student, config.teacher, config.method) == (
        backbone,
        "ViT-L-14/openai",
        "li2023",
    )
    assert (config.student_config.weights, config.student_config.image_size) == ("none", 224)
    weights = {
        "classification": 1.0,
        "image_contrastive": 1.0,
        "proximity": 1.0,
        "feature_mse": 0.0,
        "caption": 0.0,
        "temperature": 0.07,
        "nearest": 256,
    }
    assert {name: config.method_options[name] for name in weights} == weights
    training = config.training
    assert (training.batch_size, training.selection) == (128, "last")
    if backbone == "resnet18":
        assert training.epochs == (450 if dataset in SMALL else 90)
        assert (training.optimizer, training.lr, training.weight_decay) == ("sgd", 0.05, 1e-4)
        assert (training.schedule, training.warmup) == ("step", 0.0)
        assert training.milestones == pytest.approx((1 / 3, 2 / 3), abs=1e-3)
    else:
        assert training.epochs == (450 if dataset in SMALL else 270)
        assert (training.optimizer, training.lr, training.weight_decay) == ("adamw", 1e-4, 0.01)
        assert training.schedule == "one-cycle"


@pytest.mark.parametrize(("dataset", "backbone"), RECIPES)
def test_the_commands_of_a_recipe_are_commands(dataset: str, backbone: str) -> None:
    path = recipe(dataset, backbone)
    lists, distill, shots = commands(path)
    _, bound, *_ = app.parse_args(lists, exit_on_error=False, print_error=False)
    assert lists[0] == "lists"
    share = bound.arguments.get("test_share")
    assert share == (0.3 if dataset == "tiered-imagenet" else None)
    place = bound.arguments["out"]
    first, second = parsed(distill), parsed(shots)
    for words, config in ((distill, first), (shots, second)):
        assert words[:3] == ["distill", "--config", str(path.relative_to(ROOT))]
        assert config.data.data == (place / "manifest.csv",)
        assert config.data.classes == place / "classes.txt"
        assert config.store == place / "store"
    assert first.start_from is None
    assert str(second.start_from) == distill[distill.index("--out") + 1]
    assert (second.splits.few_shot, second.training.sampler) == (5, "half-few-shot")
    assert second.training.schedule == "one-cycle"
    vit = backbone != "resnet18"
    assert second.training.lr == (2e-4 if vit else 1e-3)
    assert second.training.epochs == (100 if dataset in SMALL else 60 if vit else 20)


@pytest.mark.parametrize(("dataset", "backbone"), RECIPES)
def test_the_cost_follows_from_the_recipe(dataset: str, backbone: str) -> None:
    path = recipe(dataset, backbone)
    train, test_id, unseen, seen_classes, unseen_classes = TABLE_13[dataset]
    training = parsed(["distill", f"--config={path}", "--data=m.csv", "--out=x"]).training
    text = " ".join(" ".join(comments(path)).split())
    queries = (
        f"teacher {train + test_id + unseen:,} images and {seen_classes + unseen_classes} prompts"
    )
    assert queries in text
    assert training.epochs is not None
    images = round(train * training.epochs)
    steps = training.total_steps(train, training.batch_size)
    told = f"student {images:,} images ({train:,} x {training.epochs:g} epochs, {steps:,} steps)"
    assert told in text
    found = [
        (float(peta.replace(",", "")), int(giga))
        for peta, giga in re.findall(r"([\d,.]+) PFLOP at (\d+) GFLOP", text)
    ]
    expected = [train + test_id + unseen, images]
    assert len(found) == 2
    for (told_peta, giga), count in zip(found, expected, strict=True):
        assert told_peta == pytest.approx(count * giga / 1e6, rel=0.03, abs=0.5)


def test_the_recipes_differ_where_the_datasets_do_only() -> None:
    """What makes two files of one backbone differ is the number of epochs."""
    for backbone in BACKBONES:
        values = [yaml.safe_load(recipe(dataset, backbone).read_text()) for dataset in TABLE_13]
        for value in values:
            del value["training"]["epochs"]
        assert all(value == values[0] for value in values)

"""A run's config.yaml is itself a file for `--config`: reading it back gives the same run."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tests.cli.commands import Give, World

from attar.cli.config_file import expand_config_file
from attar.cli.distill import run_config
from attar.cli.main import app
from attar.config import dump_yaml
from attar.data.splits import SplitConfig
from attar.errors import UsageError
from attar.evaluation.config import EvaluationConfig
from attar.methods.registry import METHODS
from attar.run import DataConfig, RunConfig, to_options
from attar.stages.request import resolve
from attar.store.config import EmbedConfig
from attar.students.config import StudentConfig
from attar.training.config import TrainingConfig


def config_from(*words: str) -> RunConfig:
    """Return the configuration that `attar distill WORDS` asks for."""
    tokens = expand_config_file(["distill", "--out", "run", *words])
    _, bound, *_ = app.parse_args(tokens, exit_on_error=False, print_error=False)
    return run_config(**bound.arguments)


PLAIN = RunConfig(data=DataConfig(data=(Path("photos"),)), teacher="pocket", student="resnet18")
EVERYTHING = RunConfig(
    data=DataConfig(
        data=(Path("photos"), Path("more photos/x=y.csv")),
        classes=Path("classes.txt"),
        templates="openai-80",
        unlabelled=True,
        subset="odd",
        strict=True,
    ),
    teacher="local-dir:teachers/a b",
    student="timm/tf_efficientnet_lite0",
    method="vl2v-adip",
    method_options={"image_weight": "0.25", "align_share": "1e-3"},
    store=Path("the store"),
    splits=SplitConfig(seed=3, val_fraction=0.25, held_out_domain="no", few_shot=2),
    protocol="domainbed",
    student_config=StudentConfig(weights="none", image_size=96, freeze_bn=True),
    training=TrainingConfig(
        steps=7,
        lr=1e-5,
        clip_norm=0.5,
        ema=0.999,
        optimizer="sgd",
        precision="bf16",
        sampler="per-domain",
        workers=0,
        weight_decay=0.0,
    ),
    embed=EmbedConfig(views=2, view_recipe="none", dtype="float32", commit_seconds=1.5),
    evaluation=EvaluationConfig(tasks=("fidelity",), predictions=False, workers=0),
    references=False,
    baseline=Path("-runs/erm"),
)


@pytest.mark.parametrize(
    "config",
    [
        PLAIN,
        EVERYTHING,
        replace(PLAIN, teacher=None, method="erm", method_options={"label_smoothing": "0.1"}),
        replace(PLAIN, training=TrainingConfig(epochs=1e20)),
    ],
    ids=["plain", "everything", "no teacher", "large number"],
)
def test_a_written_configuration_is_read_back(tmp_path: Path, config: RunConfig) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(to_options(config)))
    assert config_from("--config", str(file)) == config
    # What a run writes is resolved: everything its method sets is in it.
    resolved = resolve(config)
    file.write_text(dump_yaml(to_options(resolved)))
    assert resolve(config_from("--config", str(file))) == resolved


@pytest.mark.parametrize("method", METHODS)
def test_the_configuration_of_every_method_is_read_back(tmp_path: Path, method: str) -> None:
    of_method = {"rise": {"anchors": "[bright photo, 'dark: photo']"}, "li2023": {"caption": "1"}}
    config = replace(PLAIN, method=method, method_options=of_method.get(method, {}))
    resolved = resolve(config)
    (tmp_path / "config.yaml").write_text(dump_yaml(to_options(resolved)))
    assert resolve(config_from("--config", str(tmp_path / "config.yaml"))) == resolved


def test_a_flag_of_a_method_on_the_line_wins(tmp_path: Path) -> None:
    config = resolve(replace(PLAIN, method="dime-fm"))
    assert config.method_options["class_prompts"] is False
    (tmp_path / "config.yaml").write_text(dump_yaml(to_options(config)))
    words = ("--config", str(tmp_path / "config.yaml"), "--method.class-prompts=true")
    assert resolve(config_from(*words)).method_options["class_prompts"] is True


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--training.lr=0.1"], {"training": replace(EVERYTHING.training, lr=0.1)}),
        (["--training.batch_size", "5"], {"training": replace(EVERYTHING.training, batch_size=5)}),
        (["--training.epochs=2"],
         {"training": replace(EVERYTHING.training, steps=None, epochs=2.0)}),
        (["--student=resnet10t"], {"student": "resnet10t"}),
        (["--student.no-freeze-bn"],
         {"student_config": replace(EVERYTHING.student_config, freeze_bn=False)}),
        (["--evaluation.predictions"],
         {"evaluation": replace(EVERYTHING.evaluation, predictions=True)}),
        (["--references"], {"references": True}),
        (["--no-strict"], {"data": replace(EVERYTHING.data, strict=False)}),
        (["--data=others"], {"data": replace(EVERYTHING.data, data=(Path("others"),))}),
        (["--evaluation.tasks=zero_shot"],
         {"evaluation": replace(EVERYTHING.evaluation, tasks=("zero_shot",))}),
        (["--method.image-weight=0.75"],
         {"method_options": {"image_weight": "0.75", "align_share": "1e-3"}}),
        (["--held-out-domain=sketch"],
         {"splits": replace(EVERYTHING.splits, held_out_domain="sketch")}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_options_on_the_line_win(tmp_path: Path, words: list[str], expected: dict) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(to_options(EVERYTHING)))
    found = config_from("--config", str(file), *words)
    assert found == config_from(*words, f"--config={file}")
    assert dict(found.method_options) == expected.get("method_options", EVERYTHING.method_options)
    wanted = replace(EVERYTHING, **expected)
    assert replace(found, method_options={}) == replace(wanted, method_options={})


def test_two_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--config is given twice"):
        expand_config_file(["distill", "--config=a.yaml", "--config", "b.yaml"])


def test_a_run_is_repeated_from_its_configuration(
    give: Give, world: World, finished: Path, tmp_path: Path
) -> None:
    again = give("distill", "--config", finished / "config.yaml", "--out", tmp_path / "again")
    assert again.status == 0, again.err
    first, second = ((run / "config.yaml").read_text() for run in (finished, tmp_path / "again"))
    assert first == second
    weights = "student/model.safetensors"
    assert (finished / weights).read_bytes() == (tmp_path / "again" / weights).read_bytes()
    written = yaml.safe_load(first)
    assert written["data"] == [str(world.photos)]
    assert written["student"]["name"] == "mobilenetv3_small_050"

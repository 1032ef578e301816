"""What a method sets about training and student holds only where the user said nothing."""

from dataclasses import fields
from pathlib import Path

import pytest

from attar.methods.registry import METHODS
from attar.run import DataConfig, RunConfig
from attar.stages.request import fill_sections
from attar.students.config import StudentConfig
from attar.training.config import TrainingConfig

SECTIONS = {"training": TrainingConfig, "student": StudentConfig}


def filled(method: str, **training: float) -> RunConfig:
    config = RunConfig(
        data=DataConfig(data=(Path("pictures"),)),
        teacher=None,
        student="resnet18",
        method=method,
        training=TrainingConfig(**training),
    )
    return fill_sections(config)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_sets_only_what_nobody_can_have_meant(name: str) -> None:
    for section, kind in SECTIONS.items():
        defaults = {field.name: field.default for field in fields(kind)}
        for option in getattr(METHODS[name], section):
            assert defaults[option] is None, f"{section}.{option}"


@pytest.mark.parametrize("name", METHODS)
def test_nothing_is_left_open(name: str) -> None:
    config = filled(name)
    for section in (config.training, config.student_config):
        assert not [option for option in section.UNSET if getattr(section, option) is None]


def test_a_given_value_that_is_also_the_default_is_kept() -> None:
    assert filled("text2concept").training.lr == 1e-4
    assert filled("text2concept", lr=1e-3).training.lr == 1e-3
    assert filled("erm").training.lr == 1e-3
    assert filled("dime-fm", warmup=0.05).training.warmup == 0.05
    assert filled("miro", objective_lr_factor=1.0).training.objective_lr_factor == 1.0
    assert filled("erm").training.of("lr") == TrainingConfig().of("lr") == 1e-3

"""The demo, with a small teacher and a small student: the whole path, offline."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.doubles import make_openclip_folder

from attar.data.emoji import EMOJI_FAMILIES, HELD_OUT_FAMILY
from attar.demo import DemoConfig, DemoResult, run_demo
from attar.errors import UsageError
from attar.records import read_records
from attar.run import RunFolder
from attar.runtime.predict import predict

CONCEPTS = 6


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DemoConfig:
    teacher = make_openclip_folder(
        tmp_path_factory.mktemp("models") / "teacher",
        embed_dim=32,
        image_size=32,
        context_length=8,
    )
    return DemoConfig(
        teacher=f"local-dir:{teacher}",
        student="mobilenetv3_small_050",
        concepts=CONCEPTS,
        steps=3,
        image_size=32,
    )

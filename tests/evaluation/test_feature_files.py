"""Feature files: computed once, used again only when they are whole and of the same thing."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from colours import COLOURS, IMAGES, ColourModel, colour_model
from tests.dead_workers import Killer

from attar.errors import AttarError
from attar.evaluation import features
from attar.evaluation.features import compute_features, features_of, image_batches, read_features


def test_features_come_in_the_tables_order(table, tmp_path):
    out = compute_features(colour_model(), table, tmp_path / "f.safetensors", batch_size=3)
    stored = read_features(out)
    assert stored.dtype == np.float32
    assert np.allclose(stored, COLOURS, atol=1e-6)


def test_a_file_of_the_same_model_and_images_is_used_again(table, tmp_path):
    network, out = ColourModel(), tmp_path / "f.safetensors"
    for _ in range(2):
        compute_features(colour_model(network=network), table, out, batch_size=3, workers=0)
    assert network.images_seen == len(IMAGES)


@pytest.mark.parametrize("change", ["model", "images", "order"])
def test_a_file_of_something_else_is_computed_anew(table, tmp_path, change):
    out = compute_features(colour_model(), table, tmp_path / "f.safetensors")
    network, images, expected = ColourModel(), table, COLOURS
    if change == "model":
        network, expected = ColourModel((2, 1, 0)), COLOURS[:, ::-1]
    elif change == "images":
        images, expected = table.select([0, 1]), COLOURS[:2]
    else:
        images, expected = table.select(range(7, -1, -1)), COLOURS[::-1]
    got = features_of(colour_model(network=network), images, out)
    assert network.images_seen == len(images)
    assert np.allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "nonsense"])
def test_a_damaged_file_is_computed_anew(table, tmp_path, damage):
    out = compute_features(colour_model(), table, tmp_path / "f.safetensors")
    whole, right = out.read_bytes(), read_features(out)
    out.write_bytes(
        {
            "cut": whole[:-5],
            "flipped": whole[:-1] + bytes([whole[-1] ^ 255]),
            "emptied": b"",
            "nonsense": b"not a safetensors file at all",
        }[damage]
    )
    network = ColourModel()
    compute_features(colour_model(network=network), table, out, workers=0)
    assert network.images_seen == len(IMAGES)
    assert (read_features(out) == right).all()


def test_workers_read_the_same_as_this_process(table):
    prepare = colour_model().prepare
    here, apart = (list(image_batches(table, prepare, 3, workers)) for workers in (0, 2))
    assert [len(b) for b in here] == [3, 3, 2]
    assert all(torch.equal(a, b) for a, b in zip(here, apart, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_has_gone_bad_is_named_in_one_line(table, tmp_path, workers):
    path = table.paths[4]
    Path(path).write_bytes(b"broken")
    out = tmp_path / "f.safetensors"
    with pytest.raises(AttarError) as raised:
        compute_features(colour_model(), table, out, batch_size=3, workers=workers)
    assert path in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not out.exists()


def test_features_that_are_not_finite_stop_the_evaluation(table, tmp_path):
    def encode(pixels):
        values = ColourModel()(pixels)
        return torch.where(values[:, :1] > 0.5, torch.nan, values)

    with pytest.raises(AttarError, match=r"colour .*not finite for 1 image.*photo/red/0.png"):
        compute_features(
            colour_model(encode=encode), table, tmp_path / "f.safetensors", batch_size=4, workers=0
        )


def test_an_empty_table_is_an_error(table, tmp_path):
    with pytest.raises(AttarError, match="no images"):
        compute_features(colour_model(), table.select([]), tmp_path / "f.safetensors")


def test_reading_features_leaves_torchs_generator_alone(table):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    list(image_batches(table, colour_model().prepare, 3, 2))
    assert torch.equal(torch.rand(1), expected)


def test_many_images_are_shown_with_rate_and_eta(table, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(features, "_SHOW_PROGRESS_ABOVE", 4)
    compute_features(colour_model(), table, tmp_path / "f.safetensors", workers=0)
    shown = capsys.readouterr()
    assert "8/8" in shown.err
    assert "images/s" in shown.err
    assert shown.out == ""


def die(image):
    """What the system does to a worker that takes the memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_while_reading_is_named(table):
    batches = image_batches(table, die, 2, 1)
    with pytest.raises(AttarError, match=r"a process that reads images died .*fewer workers"):
        list(batches)


def test_a_worker_that_dies_while_the_model_computes_is_named(table, tmp_path):
    killer = Killer()

    class Struck(ColourModel):
        def forward(self, pixels):
            killer.strike()
            return super().forward(pixels)

    model, out = colour_model(network=Struck()), tmp_path / "f.safetensors"
    with pytest.raises(AttarError, match=r"a process that reads images died .*fewer workers"):
        compute_features(model, table, out, batch_size=2, workers=1)
    assert not out.exists()

"""WiSE-FT in the loop: what is validated and saved lies between the start and the live weights."""

import torch
from torch import nn

from attar.training.averaging import build_averager, validated_weights
from attar.training.config import TrainingConfig


class Weights(nn.Module):
    """A model that is one vector, with a counter as BatchNorm has."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.tensor(values))
        self.register_buffer("steps", torch.tensor(0))

    def become(self, *values: float) -> None:
        with torch.no_grad():
            self.vector.copy_(torch.tensor(values))
        self.steps += 1


def test_the_share_of_the_way_from_the_start() -> None:
    model = Weights(1.0, -2.0)
    averager = build_averager(TrainingConfig(), model, 10, share=0.25)
    assert averager is not None
    assert not averager.judges_live
    assert torch.equal(averager.weights()["vector"], torch.tensor([1.0, -2.0]))
    for value in (3.0, 5.0):
        model.become(value, 2.0)
        averager.update(model)
    # 0.75 · (1, -2) + 0.25 · (5, 2)
    assert torch.equal(averager.weights()["vector"], torch.tensor([2.0, -1.0]))
    assert averager.weights()["steps"] == 2
    with validated_weights(model, averager):
        assert torch.equal(model.vector, torch.tensor([2.0, -1.0]))
    assert torch.equal(model.vector, torch.tensor([5.0, 2.0]))


def test_nothing_is_kept_where_the_whole_way_is_gone() -> None:
    assert build_averager(TrainingConfig(), Weights(1.0), 10, share=1.0) is None


def test_another_average_takes_the_place_of_the_live_weights() -> None:
    model = Weights(0.0)
    config = TrainingConfig(average="tail", tail_share=0.5)
    averager = build_averager(config, model, 4, share=0.5)
    assert averager is not None
    for value in (8.0, 1.0, 2.0, 4.0):
        model.become(value)
        averager.update(model)
    assert averager.weights()["vector"].item() == 0.5 * 3.0


def test_swad_still_judges_the_live_weights() -> None:
    model = Weights(2.0)
    averager = build_averager(TrainingConfig(average="swad"), model, 10, share=0.5)
    assert averager is not None
    assert averager.judges_live
    for number, loss in enumerate((3.0, 2.0, 1.0, 2.0, 2.0), start=1):
        model.become(float(number))
        averager.update(model)
        averager.validated(number, {"loss": loss})
    inner = build_averager(TrainingConfig(average="swad"), Weights(0.0), 10)
    assert inner is not None
    other = Weights(0.0)
    for number, loss in enumerate((3.0, 2.0, 1.0, 2.0, 2.0), start=1):
        other.become(float(number))
        inner.update(other)
        inner.validated(number, {"loss": loss})
    expected = 0.5 * 2.0 + 0.5 * inner.weights()["vector"]
    torch.testing.assert_close(averager.weights()["vector"], expected)


def test_it_goes_on_from_a_saved_state_with_the_first_start() -> None:
    config, model = TrainingConfig(average="ema", ema=0.5), Weights(1.0)
    whole = build_averager(config, model, 10, share=0.5)
    assert whole is not None
    model.become(2.0)
    whole.update(model)
    state = {name: value.clone() for name, value in whole.state_dict().items()}
    resumed = build_averager(config, model, 10, share=0.5)  # built at the weights of a later step
    assert resumed is not None
    resumed.load_state_dict(state)
    for averager in (whole, resumed):
        model.vector.data.fill_(2.0)
        model.become(7.0)
        averager.update(model)
    assert torch.equal(whole.weights()["vector"], resumed.weights()["vector"])
    assert whole.weights()["vector"].item() < 4.0

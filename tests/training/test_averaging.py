"""Averages of the weights: SWAD's window against a plain replay, the tail, and exact resuming."""

import logging
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from attar.errors import AttarError
from attar.training.averaging import TailAverage, build_averager, validated_weights
from attar.training.checkpoint import read_tensors, save_tensors
from attar.training.config import TrainingConfig

LATE = [3, 2.5, 2, 1.5, 1.2, 1, 1.05, 1.1, 1.1, 1.1, 1.1, 1.1]
AT_ONCE = [1, 1.1, 1.2, 1.1, 1.1, 1.1, 1.1, 1.1]
OVER = [3, 2, 1.2, 1.2, 1.1, 1, 1.05, *[1.1] * 6, *[5] * 7]
NEVER = [5, 4, 3, 2, 1]
WINDOWS = [
    # losses, each evaluation of the window once, what the official class averages
    (LATE, range(5, 13), [6, 6, *range(7, 13)]),
    (AT_ONCE, range(1, 9), [2, 3, 1, 1, 1, *range(2, 9)]),
    (OVER, range(3, 14), [4, 5, 6, *range(6, 14)]),
    (NEVER, [5], [5]),
]


def replay_window(losses: Sequence[float], wait: int, tolerance: int, ratio: float) -> list[int]:
    """Return the evaluations, from 1, that the definition of the window names."""
    for i in range(len(losses) - wait + 1):
        if losses[i] == min(losses[i : i + wait]):
            break
    else:
        return [len(losses)]
    limit = (1 + ratio) * sum(losses[i : i + wait]) / wait
    first = i
    while first > max(0, i + wait - tolerance) and losses[first - 1] <= limit:
        first -= 1
    last = i
    for j in range(i, len(losses)):
        if j - last > tolerance:  # so many in a row were above
            break
        if losses[j] <= limit:
            last = j
    return list(range(first + 1, last + 2))


def replay_official(losses: Sequence[float], wait: int, tolerance: int, ratio: float) -> list[int]:
    """Return what the official class averages, with repetitions; a copy counts until replaced."""
    taken: list[int] = []
    start, limit, seen, dead = None, 0.0, [], False
    for number in range(1, len(losses) + 1):
        if dead:
            break
        seen.append(number)
        valley, queue = seen[-wait:], seen[-tolerance:]
        if start is None:
            if len(valley) < wait or losses[valley[0] - 1] != min(losses[n - 1] for n in valley):
                continue
            start = valley[0]
            limit = (1 + ratio) * sum(losses[n - 1] for n in valley) / wait
            if tolerance < wait:
                taken += valley[1 : 1 + wait - tolerance]
            elif tolerance > wait:
                front, cut = queue[: tolerance - wait + 1], 0
                for i in range(len(front) - 1, -1, -1):
                    if losses[front[i] - 1] > limit:
                        cut = i + 1
                        break
                taken += front[cut + 1 :]
        elif queue[0] >= start:
            if min(losses[n - 1] for n in queue) > limit:
                dead = True
            else:
                taken.append(queue[0])
    if start is None:
        return seen[-1:]
    rest = seen[-tolerance:][1:]
    while not dead and rest and min(losses[n - 1] for n in rest) <= limit:
        taken.append(rest.pop(0))
    return taken or [start]


class Weights(nn.Module):
    """A model that is one vector."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(size, dtype=torch.float64))
        self.register_buffer("steps", torch.tensor(0))

    def become(self, number: int) -> None:
        """Point into one direction, so that an average tells whom it is of."""
        with torch.no_grad():
            self.vector.zero_()[number] = 1
            self.steps.fill_(number)


def swad(model: nn.Module, average: str = "swad", steps: int = 100, **options):
    config = TrainingConfig(average=average, **options)
    averager = build_averager(config, model, steps)
    assert averager is not None
    return averager


def replay(losses: Sequence[float], average: str, **options) -> torch.Tensor:
    """Return the average of one step a validation, as shares of the evaluations from 1."""
    model = Weights(len(losses) + 1)
    averager = swad(model, average, **options)
    for number, loss in enumerate(losses, start=1):
        model.become(number)
        averager.update(model)
        averager.validated(number, {"loss": loss})
    return averager.weights()["vector"]


def shares(taken: Sequence[int], count: int) -> torch.Tensor:
    counted = Counter(taken)
    numbers = [counted[n] / len(taken) for n in range(count + 1)]
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize(("losses", "once", "official"), WINDOWS)
def test_the_published_sequences(
    losses: list[float], once: Sequence[int], official: Sequence[int]
) -> None:
    assert replay_window(losses, 3, 6, 0.3) == list(once)
    assert sorted(replay_official(losses, 3, 6, 0.3)) == sorted(official)
    for average, taken in (("swad", once), ("swad-code", official)):
        found = replay(losses, average)
        torch.testing.assert_close(found, shares(list(taken), len(losses)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("average", ["swad", "swad-code"])
def test_any_sequence_and_setting(average: str) -> None:
    reference = replay_window if average == "swad" else replay_official
    generator = random.Random(0)
    dead = settled = 0
    for _ in range(400):
        wait, tolerance = generator.randint(1, 5), generator.randint(1, 7)
        ratio = generator.choice([0.0, 0.1, 0.3])
        low = generator.randint(0, 12)
        length = generator.randint(1, 30)
        losses = [1 + abs(n - low) / 10 + generator.random() / 5 for n in range(length)]
        taken = reference(losses, wait, tolerance, ratio)
        options = {
            "swad_converge": wait,
            "swad_tolerance": tolerance,
            "swad_ratio": ratio,
        }
        found = replay(losses, average, **options)
        torch.testing.assert_close(found, shares(taken, length), rtol=1e-12, atol=1e-12)
        settled += len(taken) > 1
        dead += max(taken) < length
    assert settled > 100
    assert dead > 50


def test_a_segment_is_the_mean_of_its_steps() -> None:
    model = Weights(5)
    averager = swad(model)
    for number in (1, 2, 3, 4):
        model.become(number)
        averager.update(model)
    averager.validated(4, {"loss": 1.0})
    averager.validated(4, {"loss": 0.0})  # no step since: nothing to average
    assert averager.weights()["vector"].tolist() == [0, 0.25, 0.25, 0.25, 0.25]
    assert int(averager.weights()["steps"]) == 4


def test_segments_of_vl2vs_code_overlap() -> None:
    every, total = 200, 4400
    model = Weights(1)
    averager = swad(model, "swad-code", swad_segments="vl2v")
    segments, under_way = [], []
    losses = []
    for step in range(1, total + 1):
        nn.init.constant_(model.vector, step)
        averager.update(model)
        under_way.append(step)
        if step % every == 0:
            losses.append(1 + abs(step - 2000) / 1000)
            averager.validated(step, {"loss": losses[-1]})
            segments.append(sum(under_way) / len(under_way))
            if step % 1000 == 0 and step > 2500:
                under_way = []
    assert segments[:2] == [100.5, 200.5]
    taken = replay_official(losses, 3, 6, 0.3)
    expected = sum(segments[n - 1] for n in taken) / len(taken)
    assert averager.weights()["vector"].item() == pytest.approx(expected, rel=1e-12)


def test_the_tail_is_a_plain_mean() -> None:
    model = Weights(11)
    averager = swad(model, "tail", steps=10, tail_share=0.3)
    assert isinstance(averager, TailAverage)
    for number in range(1, 11):
        model.become(number)
        averager.update(model)
        averager.validated(number, {})
        if number <= 7:
            assert averager.weights()["vector"].argmax() == number
    expected = torch.zeros(11, dtype=torch.float64)
    expected[8:] = 1 / 3
    torch.testing.assert_close(averager.weights()["vector"], expected)


@pytest.mark.parametrize("average", ["ema", "tail", "swad", "swad-code"])
@pytest.mark.parametrize("losses", [LATE, AT_ONCE, OVER, NEVER], ids=range(4))
def test_a_saved_state_goes_on_as_if_unbroken(
    tmp_path: Path, average: str, losses: list[float]
) -> None:
    steps = 2 * len(losses)

    def go_on(model: Weights, averager, start: int, stop: int) -> None:
        for step in range(start, stop):
            model.become(step)
            averager.update(model)
            if step % 2:
                averager.validated(step, {"loss": losses[step // 2]})

    whole = Weights(steps)
    unbroken = swad(whole, average, steps)
    go_on(whole, unbroken, 0, steps)
    for cut in range(1, steps):
        model = Weights(steps)
        first = swad(model, average, steps)
        go_on(model, first, 0, cut)
        save_tensors(tmp_path / "average.safetensors", first.state_dict())
        second = swad(model, average, steps)
        second.load_state_dict(read_tensors(tmp_path, "average"))
        go_on(model, second, cut, steps)
        for name, value in unbroken.weights().items():
            assert torch.equal(second.weights()[name], value), f"{name} after a cut at {cut}"


def test_only_swad_has_the_live_weights_validated() -> None:
    model = Weights(3)
    for average, seen in (("tail", [0, 0.5, 0.5]), ("swad", [0, 0, 1])):
        averager = swad(model, average, steps=2, tail_share=0.9)
        for number in (1, 2):
            model.become(number)
            averager.update(model)
        with validated_weights(model, averager):
            assert model.vector.tolist() == seen
        assert model.vector.tolist() == [0, 0, 1]


def test_swad_needs_a_finite_loss_and_says_when_it_found_no_valley(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Weights(2)
    averager = swad(model)
    averager.update(model)
    for metrics in ({}, {"loss": float("nan")}):
        with pytest.raises(AttarError, match=r"step 7 gave no finite loss.*--training\.average"):
            averager.validated(7, metrics)
    averager.validated(7, {"loss": 1.0})
    with caplog.at_level(logging.WARNING, logger="attar"):
        averager.weights()
    assert "not settled after 1 validations" in caplog.text

"""Probes of images with several classes each: a sigmoid a class, chosen by average precision."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from attar.errors import UsageError
from attar.evaluation import linear_probe
from attar.evaluation.linear_probe import learn_probe, zero_probe, zero_shot_probe
from attar.evaluation.linear_probe_config import LinearProbeConfig
from attar.evaluation.linear_solvers import Setting, fit_exactly, fit_minibatches
from attar.evaluation.metrics import (
    average_precision_11_points,
    mean_average_precision_11_points,
    unit,
)
from attar.evaluation.probe_labels import (
    can_be_learnt,
    draw_folds,
    draw_shots,
    likelihood,
    smallest_class,
)

CLASSES, DIM = 3, 6


def images(count: int, seed: int = 0):
    """Return features [N, D] and [N, C] what they show: some nothing, some everything."""
    random = np.random.default_rng(seed)
    directions = np.random.default_rng(99).normal(size=(CLASSES, DIM))
    shown = random.random((count, CLASSES)) < (0.5, 0.3, 0.1)
    features = shown @ directions * 2 + random.normal(size=(count, DIM))
    return (features * np.linspace(0.1, 5, DIM) + 3).astype(np.float32), shown


def test_the_exact_solver_stands_in_the_minimum_of_the_objective() -> None:
    features, shown = images(200)
    z, decay = StandardScaler().fit_transform(features.astype(np.float64)), 0.05
    found = fit_exactly(z, shown, CLASSES, decay)
    weight = torch.tensor(found.weights[0], requires_grad=True)
    bias = torch.tensor(found.biases[0], requires_grad=True)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.from_numpy(z) @ weight.T + bias, torch.from_numpy(shown.astype(float))
    )
    # torch takes the mean over classes too, where J has their sum.
    (CLASSES * loss + decay / 2 * weight.square().sum()).backward()
    assert weight.grad.abs().max() < 2e-3
    assert bias.grad.abs().max() < 2e-3


def test_minibatches_come_to_the_same_minimum() -> None:
    features, shown = images(300)
    z = StandardScaler().fit_transform(features.astype(np.float64))
    exact = fit_exactly(z, shown, CLASSES, 0.1)
    start = (np.zeros((CLASSES, DIM)), np.zeros(CLASSES))
    found = fit_minibatches(z, shown, start, [Setting(0.1, 0.03)], epochs=100, batch_size=50)
    assert np.abs(found.weights[0] - exact.weights[0]).max() < 0.05
    assert np.abs(found.biases[0] - exact.biases[0]).max() < 0.05


def test_a_probe_is_one_logistic_regression_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    (features, shown), (new, answers) = images(150), images(80, seed=1)
    monkeypatch.setattr(linear_probe, "WEIGHT_DECAYS", np.array([0.01]))
    learnt = learn_probe(features, shown, zero_probe(CLASSES, DIM), LinearProbeConfig())
    logits = learnt.probe.logits(new)
    scaler = StandardScaler().fit(features.astype(np.float64))
    for number in range(CLASSES):
        theirs = LogisticRegression(C=1 / (0.01 * 150), tol=1e-8, max_iter=5000)
        theirs.fit(scaler.transform(features.astype(np.float64)), shown[:, number])
        wanted = theirs.decision_function(scaler.transform(new.astype(np.float64)))
        assert np.abs(logits[:, number] - wanted).max() < 2e-2, "of logits up to 8"
    assert mean_average_precision_11_points(logits, answers) > 0.7
    assert learnt.num_images == 150


def test_what_is_held_back_chooses_by_average_precision() -> None:
    features, shown = images(200)
    held_back = np.arange(200) >= 150
    config = LinearProbeConfig()
    start = zero_probe(CLASSES, DIM)
    learnt = learn_probe(features, shown, start, config, validation=held_back)
    standard = (features[:150].mean(0), features[:150].std(0))
    z = (features.astype(np.float64) - standard[0]) / standard[1]
    scores = {}
    for decay in linear_probe.WEIGHT_DECAYS:
        weight, bias = (part[0] for part in fit_exactly(z[:150], shown[:150], CLASSES, decay))
        logits = z[150:] @ weight.T + bias
        scores[float(decay)] = mean_average_precision_11_points(logits, shown[150:])
    # The coordinates there differ (all 200 images standardise), so by a little the scores too.
    assert learnt.val_score == pytest.approx(scores[learnt.setting.weight_decay], abs=0.01)
    assert learnt.val_score >= max(list(scores.values())[::16]) - 0.01
    opposite = np.where(held_back[:, None], ~shown, shown)
    against = learn_probe(features, opposite, start, config, validation=held_back)
    # Of the images in which a class is missing, it is now the other ranking that would be right.
    assert against.val_score < learnt.val_score


def test_a_class_that_nothing_or_everything_shows_disturbs_no_other() -> None:
    features, shown = images(100)
    z = StandardScaler().fit_transform(features.astype(np.float64))
    extremes = np.column_stack([shown, np.zeros(100, bool), np.ones(100, bool)])
    found, alone = fit_exactly(z, extremes, 5, 0.1), fit_exactly(z, shown, CLASSES, 0.1)
    assert np.array_equal(found.weights[0, :CLASSES], alone.weights[0])
    assert found.biases[0, 3:].tolist() == [-np.inf, np.inf]
    assert np.isfinite(likelihood(z @ found.weights[0].T + found.biases[0], extremes))


def test_labels_that_tell_nothing_apart_are_refused() -> None:
    everything = np.ones((10, CLASSES), bool)
    assert not can_be_learnt(everything)
    with pytest.raises(UsageError, match="tell classes apart; these 10 do not"):
        learn_probe(np.eye(10), everything, zero_probe(CLASSES, 10), LinearProbeConfig())


def test_shots_show_every_class_often_enough_and_grow_into_more_shots() -> None:
    _, shown = images(300)
    keys = [str(row) for row in range(300)]
    few, more = (set(draw_shots(shown, keys, shots, seed=0).tolist()) for shots in (5, 20))
    assert few < more < set(range(300))
    assert shown[sorted(few)].sum(axis=0).min() >= 5
    # No image could be left out: each was drawn for a class that lacked one.
    assert len(few) <= 5 * CLASSES
    rare, count = smallest_class(shown, keys)
    assert (rare, count) == (2, int(shown[:, 2].sum()))
    assert smallest_class(np.array([0, 0, 0, 1, 1]), ["a", "a", "a", "b", "c"]) == (0, 1)
    with pytest.raises(UsageError, match=f"class 2 has {count} images"):
        draw_shots(shown, keys, count + 1, seed=0)


def test_folds_share_the_rarest_class_evenly() -> None:
    _, shown = images(300)
    folds = draw_folds(shown, seed=0)
    assert set(folds.tolist()) == {0, 1, 2, 3, 4}
    rare = [int(shown[folds == fold, 2].sum()) for fold in range(5)]
    assert max(rare) - min(rare) <= 1
    sizes = np.bincount(folds)
    assert sizes.max() - sizes.min() <= 1


def test_the_likelihood_by_hand() -> None:
    logits, shown = np.array([[0.0, np.log(3)]]), np.array([[True, False]])
    assert likelihood(logits, shown) == pytest.approx(np.log(0.5) + np.log(0.25))


def test_a_class_that_training_never_shows_scores_as_guessing_in_any_order() -> None:
    features, shown = images(200)
    train = np.flatnonzero(~shown[:, 2])[:80]
    learnt = learn_probe(
        features[train], shown[train], zero_probe(CLASSES, DIM), LinearProbeConfig()
    )
    logits = learnt.probe.logits(features)[:, 2]
    assert len(set(logits.tolist())) == 1
    for order in (np.argsort(shown[:, 2]), np.argsort(~shown[:, 2])):
        found = average_precision_11_points(logits[order], shown[order, 2])
        assert found == pytest.approx(shown[:, 2].mean())


def test_text_is_a_start_that_says_no_as_often_as_the_images_do() -> None:
    random = np.random.default_rng(0)
    texts = unit(random.normal(size=(CLASSES, 40)) + 1)  # all cosines are positive, as CLIP's are
    shown = random.random((300, CLASSES)) < (0.5, 0.3, 0.1)
    features = unit(shown @ texts + 0.3 * random.normal(size=(300, 40)) + 0.3)
    start, config = zero_shot_probe(texts, 100.0), LinearProbeConfig(start="text", epochs=5)
    learnt = learn_probe(features[:200], shown[:200], start, config)
    assert learnt.solver == "minibatch"
    logits = learnt.probe.logits(features[200:])
    zero_shot = mean_average_precision_11_points(start.logits(features[200:]), shown[200:])
    assert mean_average_precision_11_points(logits, shown[200:]) >= zero_shot - 0.02
    said = (logits > 0).mean(axis=0)
    assert np.abs(said - shown[200:].mean(axis=0)).max() < 0.25
    assert (start.logits(features[200:]) > 0).all(), "which without other biases says yes to all"

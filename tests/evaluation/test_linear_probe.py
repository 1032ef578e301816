"""Linear probes on synthetic features: the numbers alone, no model."""

import inspect
import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from attar.errors import UsageError
from attar.evaluation import linear_probe
from attar.evaluation.linear_probe import (
    WEIGHT_DECAYS,
    Probe,
    learn_probe,
    search,
    solver_of,
    zero_probe,
    zero_shot_probe,
)
from attar.evaluation.linear_probe_config import LinearProbeConfig
from attar.evaluation.linear_solvers import Setting, fit_logistic, fit_minibatches
from attar.evaluation.metrics import unit
from attar.evaluation.probe_labels import draw_folds, draw_shots

CLASSES, DIM = 3, 6


def images(count: int, seed: int = 0, classes: int = CLASSES, dim: int = DIM):
    """Return features [N, D] in overlapping clusters of uneven scale, and labels [N]."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    labels = random.integers(0, classes, count)
    features = centres[labels] + random.normal(size=(count, dim))
    return (features * np.linspace(0.1, 5, dim) + 3).astype(np.float32), labels


def objective(weight, bias, z, labels, decay, start=0.0) -> float:
    logits = torch.from_numpy(z @ weight.T + bias)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    return float(loss) + decay / 2 * float(((weight - start) ** 2).sum())


def standardised(features):
    return StandardScaler().fit_transform(features.astype(np.float64))


def only(probe_config: LinearProbeConfig, decay: float, monkeypatch) -> LinearProbeConfig:
    monkeypatch.setattr(linear_probe, "WEIGHT_DECAYS", np.array([decay]))
    return probe_config


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("decay", [1e-3, 1e-1])
def test_the_exact_solver_stands_in_the_minimum_of_the_objective(classes, decay) -> None:
    features, labels = images(200, classes=classes)
    z = standardised(features)
    found = fit_logistic(z, labels, classes, decay)
    weight = torch.tensor(found.weights[0], requires_grad=True)
    bias = torch.tensor(found.biases[0], requires_grad=True)
    logits = torch.from_numpy(z) @ weight.T + bias
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    (loss + decay / 2 * weight.square().sum()).backward()
    assert weight.grad.abs().max() < 2e-3
    assert bias.grad.abs().max() < 2e-3


@pytest.mark.parametrize("classes", [2, 3])
def test_a_probe_is_scikit_learns_on_standardised_features(classes, monkeypatch) -> None:
    features, labels = images(150, classes=classes)
    new, _ = images(80, seed=1, classes=classes)
    decay = 0.01
    config = only(LinearProbeConfig(), decay, monkeypatch)
    learnt = learn_probe(features, labels, zero_probe(classes, DIM), config)
    scaler = StandardScaler().fit(features.astype(np.float64))
    strength = (2 if classes == 2 else 1) / (decay * 150)
    theirs = LogisticRegression(C=strength, tol=1e-8, max_iter=5000)
    theirs.fit(scaler.transform(features.astype(np.float64)), labels)
    logits = learnt.probe.logits(new)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wanted = theirs.predict_proba(scaler.transform(new.astype(np.float64)))
    assert learnt.solver == "scikit-learn"
    assert np.abs(chances - wanted).max() < 5e-3
    assert (logits.argmax(axis=1) == theirs.predict(scaler.transform(new))).mean() > 0.98


@pytest.mark.parametrize("decay", [1e-2, 1.0])
def test_minibatches_come_to_the_minimum_that_scikit_learn_finds(decay) -> None:
    features, labels = images(300)
    z = standardised(features)
    exact = fit_logistic(z, labels, CLASSES, decay)
    setting = Setting(decay, 0.03)
    start = (np.zeros((CLASSES, DIM)), np.zeros(CLASSES))
    by_batches = fit_minibatches(z, labels, start, [setting], epochs=100, batch_size=50)
    least = objective(exact.weights[0], exact.biases[0], z, labels, decay)
    found = objective(by_batches.weights[0], by_batches.biases[0], z, labels, decay)
    assert found - least < 1e-3 * least
    assert np.abs(by_batches.weights[0] - exact.weights[0]).max() < 0.05


def test_classifiers_side_by_side_do_not_disturb_each_other() -> None:
    features, labels = images(100)
    z = standardised(features)
    start = (np.ones((CLASSES, DIM)) * 0.1, np.zeros(CLASSES))
    settings = [Setting(1e-3, 0.1), Setting(10.0, 0.01), Setting(1e6, 0.1)]
    together = fit_minibatches(z, labels, start, settings, epochs=2, batch_size=16)
    for number, setting in enumerate(settings):
        alone = fit_minibatches(z, labels, start, [setting], epochs=2, batch_size=16)
        assert np.allclose(together.weights[number], alone.weights[0], atol=1e-5)
        assert np.allclose(together.biases[number], alone.biases[0], atol=1e-5)
    assert np.abs(together.weights[2] - start[0]).max() < 1e-4, "held at the start"


def test_a_probe_that_starts_from_text_is_the_zero_shot_classifier_before_the_first_step() -> None:
    features, labels = images(40)
    rows = unit(features)
    class_features = np.random.default_rng(3).normal(size=(CLASSES, DIM))
    start = zero_shot_probe(class_features, 100.0)
    assert np.allclose(start.logits(rows), 100 * rows @ unit(class_features).T)
    space = linear_probe._Coordinates(rows)
    found = fit_minibatches(
        space.into(rows), labels, space.start_of(start), [Setting(1.0, 0.1)], epochs=0
    )
    probe = space.probe_of(start, found.weights[0], found.biases[0])
    new = unit(images(30, seed=5)[0])
    assert np.allclose(probe.logits(new), start.logits(new), atol=1e-4)


def test_a_start_from_text_that_is_held_there_keeps_its_answers(monkeypatch) -> None:
    features, labels = images(60)
    rows = unit(features)
    class_features = np.stack([rows[labels == label].mean(axis=0) for label in range(CLASSES)])
    start = zero_shot_probe(class_features, 100.0)
    config = only(LinearProbeConfig(start="text", epochs=5), 1e6, monkeypatch)
    learnt = learn_probe(rows, labels, start, config)
    assert learnt.solver == "minibatch"
    assert np.allclose(learnt.probe.weight, start.weight, atol=1e-3)


def test_text_helps_where_few_images_are_there() -> None:
    random = np.random.default_rng(0)
    texts = unit(random.normal(size=(10, 32)))
    labels = np.repeat(np.arange(10), 60)
    features = unit(texts[labels] + 0.45 * random.normal(size=(600, 32)))
    shots = draw_shots(labels, [str(i) for i in range(600)], 2, seed=0)
    accuracy = {}
    for start in (zero_probe(10, 32), zero_shot_probe(texts, 20.0)):
        config = LinearProbeConfig(start="text" if start.weight.any() else "zero")
        learnt = learn_probe(features[shots], labels[shots], start, config, thorough=True)
        accuracy[config.start] = (learnt.probe.logits(features).argmax(1) == labels).mean()
    zero_shot = ((features @ texts.T).argmax(1) == labels).mean()
    assert accuracy["text"] > accuracy["zero"] + 0.03
    assert accuracy["text"] > zero_shot - 0.05


def test_few_images_of_many_features_are_rotated_without_a_change(monkeypatch) -> None:
    random = np.random.default_rng(2)
    labels = np.arange(24) % CLASSES
    features = random.normal(size=(24, 90)) + 0.8 * labels[:, None]
    new = random.normal(size=(40, 90)) + 0.8
    config = only(LinearProbeConfig(), 0.1, monkeypatch)
    learnt = learn_probe(features, labels, zero_probe(CLASSES, 90), config)
    scaler = StandardScaler().fit(features)
    theirs = LogisticRegression(C=1 / (0.1 * 24), tol=1e-9, max_iter=5000)
    theirs.fit(scaler.transform(features), labels)
    wanted = theirs.decision_function(scaler.transform(new))
    ours = learnt.probe.logits(new)
    ours -= ours.mean(axis=1, keepdims=True)
    assert np.abs(ours - (wanted - wanted.mean(axis=1, keepdims=True))).max() < 0.02


def test_no_test_image_can_reach_the_choice() -> None:
    arguments = set(inspect.signature(learn_probe).parameters)
    assert arguments == {"features", "labels", "start", "config", "validation", "seed", "thorough"}


def test_validation_images_choose_and_the_fit_before_does_not_see_them() -> None:
    features, labels = images(120)
    mask = np.arange(120) >= 90
    # Labels that contradict the others: whoever learnt from them would get them right.
    turned = np.where(mask, (labels + 1) % CLASSES, labels)
    config = LinearProbeConfig()
    honest = learn_probe(features, labels, zero_probe(CLASSES, DIM), config, validation=mask)
    against = learn_probe(features, turned, zero_probe(CLASSES, DIM), config, validation=mask)
    assert honest.val_score > 0.6
    assert against.val_score < 0.5, "no better than the most frequent class"
    assert honest.setting != against.setting


def test_the_choice_has_the_best_validation_accuracy_of_all_that_was_tried(monkeypatch) -> None:
    features, labels = images(60, dim=40)
    mask = draw_folds(labels, seed=0) == 0
    learnt = learn_probe(features, labels, zero_probe(CLASSES, 40), LinearProbeConfig())
    space = linear_probe._Coordinates(features.astype(np.float64))
    z = space.into(features)
    for decay in WEIGHT_DECAYS[::16]:
        found = fit_logistic(z[~mask], labels[~mask], CLASSES, float(decay))
        answers = (z[mask] @ found.weights[0].T + found.biases[0]).argmax(axis=1)
        assert learnt.val_score >= (answers == labels[mask]).mean()


def test_the_search_halves_its_way_to_the_top() -> None:
    asked: list[Setting] = []

    def score(settings):
        asked.extend(settings)
        return [(-abs(np.log10(s.weight_decay) + 1.1) - abs((s.lr or 0) - 0.01), 0.0)
                for s in settings]  # fmt: skip

    setting, _ = search(score, (0.001, 0.01, 0.1))
    assert setting.lr == 0.01
    best = min(WEIGHT_DECAYS, key=lambda decay: abs(np.log10(decay) + 1.1))
    assert setting.weight_decay == pytest.approx(best)
    assert len(asked) == len(set(asked)) <= 7 * 3 + 8


def test_equal_accuracies_are_told_apart_by_the_likelihood() -> None:
    setting, _ = search(lambda settings: [(1.0, -s.weight_decay) for s in settings], (None,))
    assert setting == Setting(float(WEIGHT_DECAYS[0]), None)


@pytest.mark.parametrize("shots", [2, 5])
def test_shots_are_counted_exactly_and_drawn_by_the_seed(shots: int) -> None:
    labels = np.random.default_rng(0).integers(0, 4, 200)
    keys = [f"{number:x}" for number in range(200)]
    drawn = draw_shots(labels, keys, shots, seed=0)
    assert np.bincount(labels[drawn]).tolist() == [shots] * 4
    assert drawn.tolist() == draw_shots(labels, keys, shots, seed=0).tolist()
    assert drawn.tolist() != draw_shots(labels, keys, shots, seed=1).tolist()
    order = np.random.default_rng(5).permutation(200)
    mixed = draw_shots(labels[order], [keys[i] for i in order], shots, seed=0)
    assert {keys[i] for i in drawn} == {keys[order[i]] for i in mixed}, "whatever their order"
    assert set(drawn) <= set(draw_shots(labels, keys, shots + 3, seed=0))


def test_copies_and_images_without_a_label_are_no_further_shots() -> None:
    labels = np.array([0, 0, 0, 1, 1, -1])
    keys = ["a", "a", "b", "c", "d", "e"]
    for seed in range(5):
        drawn = draw_shots(labels, keys, 2, seed)
        assert sorted(keys[i] for i in drawn) == ["a", "b", "c", "d"]
    with pytest.raises(UsageError, match="2 images, too few for 3 shots"):
        draw_shots(labels, keys, 3, seed=0)


def test_folds_are_stratified_and_leave_no_class_unlearnt() -> None:
    labels = np.array([0] * 10 + [1] * 5 + [2] * 2 + [3])
    folds = draw_folds(labels, seed=0)
    assert folds[-1] == -1
    for label, counts in ((0, [2] * 5), (1, [1] * 5)):
        assert np.bincount(folds[labels == label], minlength=5).tolist() == counts
    for fold in range(5):
        assert set(labels[folds != fold]) == {0, 1, 2, 3}


def test_a_class_without_training_images_is_never_the_answer() -> None:
    features, labels = images(60)
    learnt = learn_probe(features, labels, zero_probe(CLASSES + 1, DIM), LinearProbeConfig())
    logits = learnt.probe.logits(features)
    assert np.isneginf(logits[:, CLASSES]).all()
    assert (logits.argmax(axis=1) == labels).mean() > 0.6


def test_the_solver_follows_size_and_start() -> None:
    auto = LinearProbeConfig()
    assert solver_of(auto, (1000, 512), starts_at_zero=True) == "scikit-learn"
    assert solver_of(auto, (50_000, 512), starts_at_zero=True) == "minibatch"
    assert solver_of(auto, (1000, 512), starts_at_zero=False) == "minibatch"
    with pytest.raises(UsageError, match="cannot start from text"):
        solver_of(LinearProbeConfig(solver="scikit-learn"), (9, 9), starts_at_zero=False)


def test_minibatches_reach_what_scikit_learn_reaches_with_their_own_search() -> None:
    features, labels = images(400)
    new, truth = images(400, seed=7)
    accuracy = {}
    for solver in ("scikit-learn", "minibatch"):
        config = LinearProbeConfig(solver=solver)
        learnt = learn_probe(features, labels, zero_probe(CLASSES, DIM), config)
        assert learnt.solver == solver
        accuracy[solver] = (learnt.probe.logits(new).argmax(axis=1) == truth).mean()
    assert abs(accuracy["minibatch"] - accuracy["scikit-learn"]) < 0.02


def test_the_same_seed_gives_the_same_probe() -> None:
    features, labels = images(90)
    config = LinearProbeConfig(solver="minibatch", epochs=2, search_epochs=1)
    start = Probe(weight=np.zeros((CLASSES, DIM)), bias=np.zeros(CLASSES))
    one, two = (learn_probe(features, labels, start, config, seed=3) for _ in range(2))
    assert (one.probe.weight == two.probe.weight).all()
    assert one.setting == two.setting


def test_a_constant_feature_is_left_alone() -> None:
    features, labels = images(60)
    features[:, 2] = 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learnt = learn_probe(features, labels, zero_probe(CLASSES, DIM), LinearProbeConfig())
    assert np.isfinite(learnt.probe.weight).all()


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 0, 0], "these 3 do not"), ([0, 1], "too few to learn")],
)
def test_too_little_is_refused(labels, message) -> None:
    features = np.random.default_rng(0).normal(size=(len(labels), 4))
    with pytest.raises(UsageError, match=message):
        learn_probe(features, labels, zero_probe(2, 4), LinearProbeConfig())


@pytest.mark.parametrize(
    "wrong",
    [{"shots": (1,)}, {"seeds": ()}, {"shots": (), "full": False}, {"epochs": 0},
     {"test_fraction": 1.0}],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong) -> None:
    with pytest.raises(UsageError):
        LinearProbeConfig(**wrong)

import numpy as np
from sklearn.linear_model import Ridge

from attar.evaluation.few_labels import PENALTIES, draw_labels, probe_answers, probe_correct

KEYS = [f"{number:064x}" for number in range(30)]
GROUPS = np.repeat([0, 1, 5], [20, 9, 1])


def test_each_group_gives_as_many_as_asked_and_at_most_half():
    drawn = draw_labels(KEYS, GROUPS, 5, 4)
    assert drawn.shape == (4, 30)
    for draw in drawn:
        assert [int(draw[group == GROUPS].sum()) for group in (0, 1, 5)] == [5, 4, 1]


def test_the_draws_differ_and_depend_on_the_keys_alone():
    drawn = draw_labels(KEYS, GROUPS, 5, 4, seed=3)
    assert len({tuple(draw) for draw in drawn}) == 4
    order = np.random.default_rng(0).permutation(30)
    again = draw_labels([KEYS[row] for row in order], GROUPS[order], 5, 4, seed=3)
    assert (again == drawn[:, order]).all()
    assert (draw_labels(KEYS, GROUPS, 5, 4, seed=4) != drawn).any()
    # Other groups make no difference.
    some = GROUPS != 1
    part = draw_labels(
        [k for k, there in zip(KEYS, some, strict=True) if there], GROUPS[some], 5, 4, 3
    )
    assert (part == drawn[:, some]).all()


def clouds(each=12, spread=0.5):
    random = np.random.default_rng(2)
    labels = np.repeat([0, 1, 2], each)
    return np.eye(3, 6)[labels] + spread * random.normal(size=(3 * each, 6)), labels


def test_the_probe_is_ridge_regression_with_the_best_leave_one_out_penalty():
    features, labels = clouds()
    learn = np.zeros(36, dtype=bool)
    learn[[0, 1, 2, 3, 12, 13, 14, 15, 24, 25, 26, 27]] = True
    rows = features / np.linalg.norm(features, axis=1, keepdims=True)
    x, y = rows[learn], 2.0 * np.eye(3)[labels[learn]] - 1

    def left_out_error(penalty):
        errors = []
        for row in range(len(x)):
            others = np.arange(len(x)) != row
            model = Ridge(alpha=penalty).fit(x[others], y[others])
            errors.append((model.predict(x[row : row + 1]) - y[row]) ** 2)
        return np.mean(errors)

    best = min(PENALTIES, key=left_out_error)
    wanted = Ridge(alpha=best).fit(x, y).predict(rows[~learn]).argmax(axis=1)
    assert (probe_answers(features, labels, learn, ~learn) == wanted).all()


def test_the_length_of_features_says_nothing():
    features, labels = clouds()
    learn = np.arange(36) % 3 == 0
    longer = features * np.linspace(0.1, 9, 36)[:, None]
    one, other = (probe_answers(rows, labels, learn, ~learn) for rows in (features, longer))
    assert (one == other).all()


def test_a_probe_of_one_class_knows_no_other():
    features, labels = clouds()
    learn = labels == 2
    assert (probe_answers(features, labels, learn, ~learn) == 2).all()


def test_an_image_is_not_asked_about_where_its_own_label_was_learnt():
    features, labels = clouds(spread=0.01)
    judged = labels < 2
    learn = np.zeros((2, 36), dtype=bool)
    learn[0, [0, 12, 24]] = True
    learn[1, [1, 24]] = True
    correct = probe_correct(features, labels, learn, judged)
    assert correct.shape == (2, 24)
    assert np.flatnonzero(np.isnan(correct[0])).tolist() == [0, 12]
    assert np.nanmean(correct[0]) == 1
    # The second draw knows nothing of class 1.
    assert np.nanmean(correct[1][:12]) == 1
    assert np.nanmean(correct[1][12:]) == 0

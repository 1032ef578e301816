import math

import numpy as np
import pytest
import torch
from colours import CLASS_FEATURES, ColourModel, colour_model, unlabelled, write_images
from PIL import Image

from attar.data.images import read_image
from attar.errors import AttarError, UsageError
from attar.evaluation.retrieval import augmented_keys, tip_adapter_logits


def reference(queries, keys, labels, class_features, alpha, beta, scale):
    """The sum of the definition, one number at a time."""

    def cosine(a, b):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(x * x for x in b))

    rows = []
    for q in queries.tolist():
        row = []
        for c, text in enumerate(class_features.tolist()):
            logit = scale * cosine(q, text)
            for key, label in zip(keys.tolist(), labels.tolist(), strict=True):
                if label == c:
                    logit += alpha * math.exp(-beta * (1 - cosine(q, key)))
            row.append(logit)
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize(
    ("n", "m", "c", "d", "alpha", "beta", "scale"),
    [
        (5, 12, 4, 6, 1.0, 5.5, 1.0),
        (1, 1, 1, 3, 2.0, 1.0, 100.0),
        (3, 0, 2, 4, 1.0, 5.5, 1.0),
        (7, 20, 3, 5, 0.5, 0.0, 10.0),
        (4, 9, 5, 2, 0.0, 5.5, 1.0),
    ],
)
def test_logits_agree_with_the_definition(n, m, c, d, alpha, beta, scale):
    random = np.random.default_rng(n * 100 + m)
    queries, keys = random.normal(size=(n, d)), random.normal(size=(m, d))
    labels, texts = random.integers(0, c, m), random.normal(size=(c, d))
    expected = reference(queries, keys, labels, texts, alpha, beta, scale)
    found = tip_adapter_logits(queries, keys, labels, texts, alpha, beta, scale)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    tensors = [torch.from_numpy(x) for x in (queries, keys, labels, texts)]
    np.testing.assert_array_equal(tip_adapter_logits(*tensors, alpha, beta, scale), found)


def test_the_defaults_are_the_official_codes():
    random = np.random.default_rng(0)
    queries, keys, texts = (random.normal(size=(k, 4)) for k in (3, 6, 2))
    labels = np.array([0, 1, 0, 1, 1, 0])
    expected = reference(queries, keys, labels, texts, 1.0, 5.5, 1.0)
    np.testing.assert_allclose(tip_adapter_logits(queries, keys, labels, texts), expected)


def test_a_key_that_equals_the_query_gives_its_class_alpha():
    one = np.array([[3.0, 0.0]])
    logits = tip_adapter_logits(one, one * 5, np.array([1]), np.array([[0.0, 1.0], [0.0, 2.0]]))
    np.testing.assert_allclose(logits, [[0.0, 1.0]])


def test_many_queries_are_worked_off_in_parts():
    random = np.random.default_rng(1)
    queries, keys, texts = (random.normal(size=(k, 3)) for k in (2500, 4, 2))
    labels = np.array([0, 1, 1, 0])
    whole = tip_adapter_logits(queries, keys, labels, texts)
    for row in (0, 1023, 1024, 2499):
        alone = tip_adapter_logits(queries[row : row + 1], keys, labels, texts)
        np.testing.assert_allclose(whole[row], alone[0], atol=1e-12)


def test_keys_and_labels_that_do_not_fit_are_refused():
    texts, keys = np.eye(3), np.eye(3)
    with pytest.raises(ValueError, match="3 keys have labels of shape"):
        tip_adapter_logits(keys, keys, np.array([0, 1]), texts)
    for label in (-1, 3):
        with pytest.raises(ValueError, match="there are 3 classes"):
            tip_adapter_logits(keys, keys, np.array([0, 1, label]), texts)


@pytest.fixture
def textured(tmp_path):
    """The table of the colour images, with noise on them: augmentation then changes every one."""
    table = write_images(tmp_path / "noisy")
    for row, path in enumerate(table.paths):
        noise = np.random.default_rng(row).integers(0, 120, (24, 24, 3))
        colour = np.asarray(read_image(path))[:1, :1] // 2
        Image.fromarray((colour + noise).astype(np.uint8)).save(path)
    return table


def test_the_first_view_is_the_image_itself(textured):
    model = colour_model()
    features, labels = augmented_keys(model, textured, views=4)
    assert features.shape == (4 * len(textured), 3)
    assert features.dtype == np.float32
    assert labels.tolist() == [label for label in textured.labels for _ in range(4)]
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
    pixels = torch.stack([model.prepare(read_image(path)) for path in textured.paths])
    plain = model.encode(pixels)
    plain = (plain / plain.norm(dim=1, keepdim=True)).numpy()
    np.testing.assert_allclose(features[::4], plain, atol=1e-6)
    for view in (1, 2, 3):
        assert np.abs(features[view::4] - plain).max() > 1e-3


def test_views_depend_on_seed_image_and_number_alone(textured):
    model = colour_model()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    features, _ = augmented_keys(model, textured, views=3, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    again, _ = augmented_keys(model, textured, views=3, seed=5, batch_size=2)
    np.testing.assert_allclose(again, features, atol=1e-6)
    alone, _ = augmented_keys(model, textured.select([4]), views=3, seed=5)
    np.testing.assert_allclose(alone, features[12:15], atol=1e-6)
    more, _ = augmented_keys(model, textured.select([4]), views=6, seed=5)
    np.testing.assert_allclose(more[:3], alone, atol=1e-6)
    other, _ = augmented_keys(model, textured, views=3, seed=6)
    np.testing.assert_allclose(other[::3], features[::3], atol=1e-6)
    assert np.abs(other - features).max() > 1e-3


def test_every_view_is_asked_once(textured):
    network = ColourModel()
    features, _ = augmented_keys(colour_model(network=network), textured)
    assert len(features) == network.images_seen == 10 * len(textured)


def test_what_cannot_be_a_key_is_refused(textured):
    with pytest.raises(UsageError, match="0 views"):
        augmented_keys(colour_model(), textured, views=0)
    with pytest.raises(UsageError, match="label"):
        augmented_keys(colour_model(), unlabelled(textured))
    with pytest.raises(UsageError, match="label"):
        augmented_keys(colour_model(), textured.select([]))
    with pytest.raises(AttarError, match="no features of new images"):
        augmented_keys(colour_model(prepare=None, encode=None), textured)


def test_keys_put_right_what_the_class_features_have_wrong(table):
    """Class features in the wrong order give 0 of 3; one shot a class gives all three."""
    model = colour_model()
    rows = [0, 1, 2]
    shots = table.select([5, 6, 3])
    keys, labels = augmented_keys(model, shots, views=1)
    pixels = torch.stack([model.prepare(read_image(table.paths[row])) for row in rows])
    queries = model.encode(pixels).numpy()
    wrong = np.roll(CLASS_FEATURES, 1, axis=0)
    zero_shot = tip_adapter_logits(queries, keys, labels, wrong, alpha=0.0)
    assert zero_shot.argmax(axis=1).tolist() == [1, 2, 0]
    retrieved = tip_adapter_logits(queries, keys, labels, wrong, alpha=2.0)
    assert retrieved.argmax(axis=1).tolist() == [0, 1, 2]

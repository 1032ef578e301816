"""Each term of li2023 works whichever others are on, and says what it needs."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attar import losses
from attar.errors import UsageError
from attar.methods.base import Sizes
from attar.methods.li2023 import TERMS, LiOptions
from attar.methods.registry import find_method, method_options
from attar.types import Batch, Loss, Outputs

DIM, CLASSES, IMAGES = 8, 5, 6
SIZES = Sizes(dim=DIM, trunk_width=12, num_classes=CLASSES, num_domains=1)


def make_batch(*, captions: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(0)

    def rows(count: int) -> Tensor:
        return F.normalize(torch.randn(count, DIM, generator=generator), dim=-1)

    return Batch(
        images=torch.zeros(IMAGES, 3, 2, 2),
        keys=tuple(map(str, range(IMAGES))),
        image_features=rows(IMAGES),
        labels=torch.tensor([0, 1, 1, 4, 3, -1]),
        caption_features=rows(IMAGES) if captions else None,
    )


CLASS_FEATURES = F.normalize(torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(1)))
FEATURES = torch.randn(IMAGES, DIM, generator=torch.Generator().manual_seed(2))


def loss_of(batch: Batch, features: Tensor = FEATURES, **options: object) -> Loss:
    method = find_method("li2023")
    values = {**dict.fromkeys(TERMS, 0.0), **options}
    (phase,) = method.phases(method_options(method, values), 10, SIZES)
    loss: Loss = phase.objective(Outputs(features=features), batch, CLASS_FEATURES)
    return loss


@pytest.mark.parametrize("on", [c for n in (1, 2, 5) for c in itertools.combinations(TERMS, n)])
def test_terms_add_up_alone_and_together(on: tuple[str, ...]) -> None:
    batch, features = make_batch(), FEATURES.clone().requires_grad_()
    weights = {name: 0.5 + place for place, name in enumerate(on)}
    loss = loss_of(batch, features, **weights)
    assert set(loss.terms) == {*on, "aligned"}
    alone = {name: loss_of(batch, **{name: 1.0}).terms[name] for name in on}
    total = sum(weights[name] * alone[name] for name in on)
    assert loss.total.item() == pytest.approx(total.item(), rel=1e-5)
    loss.total.backward()
    assert features.grad is not None
    assert features.grad.abs().sum() > 0


def test_the_terms_are_the_losses() -> None:
    batch = make_batch()
    assert batch.image_features is not None
    assert batch.caption_features is not None
    assert batch.labels is not None
    teacher, labels = batch.image_features, batch.labels
    expected = {
        "classification": losses.classification(FEATURES, CLASS_FEATURES, labels),
        "feature_mse": losses.feature_mse(FEATURES, teacher),
        "image_contrastive": losses.image_contrastive(FEATURES, teacher),
        "proximity": losses.proximity(FEATURES, teacher, CLASS_FEATURES, labels),
        "caption": losses.caption_contrastive(
            FEATURES, batch.caption_features, labels, temperature=1.0
        ),
    }
    for name, value in expected.items():
        assert loss_of(batch, **{name: 1.0}).total.item() == pytest.approx(value.item(), rel=1e-6)


def test_the_paper_preset_is_as_printed() -> None:
    batch = make_batch()
    assert batch.image_features is not None
    assert batch.caption_features is not None
    assert batch.labels is not None
    teacher, labels = batch.image_features, batch.labels
    expected = {
        "image_contrastive": losses.image_contrastive(FEATURES, teacher, 0.035, False),
        "proximity": losses.proximity(FEATURES, teacher, CLASS_FEATURES, labels, average="batch"),
        "caption": losses.caption_contrastive(
            FEATURES, batch.caption_features, labels, 0.07, positive_in_denominator=False
        ),
    }
    for name, value in expected.items():
        loss = loss_of(batch, preset="paper", **{name: 1.0})
        assert loss.total.item() == pytest.approx(value.item(), rel=1e-5)


def test_the_filter_is_logged_and_counts_labelled_images_only() -> None:
    batch = make_batch()
    assert batch.image_features is not None
    assert batch.labels is not None
    nearest = (batch.image_features @ CLASS_FEATURES.T).argmax(1)
    known = batch.labels >= 0
    share = ((nearest == batch.labels) & known).sum() / known.sum()
    assert loss_of(batch, feature_mse=1.0).terms["aligned"].item() == pytest.approx(share.item())


def test_images_without_a_caption_do_not_count() -> None:
    batch = make_batch()
    assert batch.caption_features is not None
    batch.caption_features[2:] = 0
    few = Batch(
        images=batch.images[:2],
        keys=batch.keys[:2],
        image_features=batch.image_features[:2],
        labels=batch.labels[:2],
        caption_features=batch.caption_features[:2],
    )
    whole = loss_of(batch, caption=1.0).total
    assert whole.item() == pytest.approx(loss_of(few, FEATURES[:2], caption=1.0).total.item())


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        ({"feature_mse": 1.0}, set()),
        ({"image_contrastive": 1.0}, set()),
        ({"classification": 1.0}, {"class_features", "labels"}),
        ({"proximity": 1.0}, {"class_features", "labels"}),
        ({"proximity": 1.0, "filter_proximity": False}, {"class_features"}),
        ({"caption": 1.0}, {"captions"}),
    ],
)
def test_needs_follow_from_the_terms(options: dict, needs: set[str]) -> None:
    method = find_method("li2023")
    built = method_options(method, {**dict.fromkeys(TERMS, 0.0), **options})
    assert method.needs_with(built) == {"teacher", *needs}


@pytest.mark.parametrize(
    "wrong",
    [dict.fromkeys(TERMS, 0.0), {"caption": -1.0}, {"temperature": 0.0}, {"nearest": 0}],
)
def test_impossible_options_are_refused(wrong: dict) -> None:
    with pytest.raises(UsageError):
        LiOptions(**wrong)


@pytest.mark.parametrize("term", TERMS)
def test_a_learnt_context_is_refused_exactly_where_no_term_gives_it_a_gradient(term: str) -> None:
    values = {**dict.fromkeys(TERMS, 0.0), term: 1.0, "filter_contrastive": True}
    (phase,) = find_method("li2023").phases(LiOptions(**values), 10, SIZES)
    classes = CLASS_FEATURES.clone().requires_grad_()
    student = FEATURES.clone().requires_grad_()
    phase.objective(Outputs(features=student), make_batch(), classes).total.backward()
    if classes.grad is None:
        with pytest.raises(UsageError, match=r"--method\.context 8 is learnt by .*both are 0"):
            method_options(find_method("li2023"), {**values, "context": "8"})
    else:
        assert method_options(find_method("li2023"), {**values, "context": "8"}).context == 8

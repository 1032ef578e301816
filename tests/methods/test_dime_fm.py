"""dime-fm: its terms, weights and temperatures, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F

from attar import losses
from attar.errors import AttarError, UsageError
from attar.methods.base import Sizes
from attar.methods.gathering import gather_with_gradients
from attar.methods.registry import find_method, method_options
from attar.types import Batch, Loss, Outputs

SIZES = Sizes(dim=8, trunk_width=12, num_classes=5, num_domains=1)
FEATURES = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))


def make_batch(**changes: object) -> Batch:
    generator = torch.Generator().manual_seed(0)
    fields = {
        "images": torch.zeros(6, 3, 2, 2),
        "keys": tuple("abcdef"),
        "image_features": F.normalize(torch.randn(6, 8, generator=generator), dim=-1),
        "streams": {"text": F.normalize(torch.randn(9, 8, generator=generator), dim=-1)},
    }
    return Batch(**{**fields, **changes})


def loss_of(batch: Batch, **options: object) -> Loss:
    method = find_method("dime-fm")
    (phase,) = method.phases(method_options(method, options), 10, SIZES)
    loss: Loss = phase.objective(Outputs(features=FEATURES), batch, None)
    return loss


def test_the_official_weights_and_temperatures_are_the_defaults() -> None:
    batch = make_batch()
    v, t = batch.image_features, batch.streams["text"]
    loss = loss_of(batch)
    vl = losses.score_distillation(FEATURES, v, t, 1.0, 100.0)
    pvl = losses.pseudo_score_distillation(FEATURES, v, 3.0, 100.0)
    udist = losses.distance_preservation(FEATURES, v, 7.0, 100.0)
    assert loss.total.item() == pytest.approx((0.7 * vl + 0.3 * pvl).item(), rel=1e-6)
    assert {k: x.item() for k, x in loss.terms.items()} == pytest.approx(
        {"vl": vl.item(), "pvl": pvl.item(), "udist": udist.item()}
    )


def test_weights_temperatures_and_scale_can_be_chosen() -> None:
    batch = make_batch()
    v, t = batch.image_features, batch.streams["text"]
    options = {"vl_weight": "1", "pvl_weight": "0.5", "udist_weight": "0.1", "scale": "20"}
    temperatures = {"vl-temperature": "2", "pvl-temperature": "4", "udist-temperature": "5"}
    total = (
        losses.score_distillation(FEATURES, v, t, 2.0, 20.0)
        + 0.5 * losses.pseudo_score_distillation(FEATURES, v, 4.0, 20.0)
        + 0.1 * losses.distance_preservation(FEATURES, v, 5.0, 20.0)
    )
    assert loss_of(batch, **options, **temperatures).total.item() == pytest.approx(total.item())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"vl_weight": -1}, r"--method\.vl-weight -1.*: must be 0 or more"),
        ({"pvl_temperature": 0}, r"--method\.pvl-temperature 0.*: must be above 0"),
        ({"scale": float("nan")}, r"--method\.scale nan: must be above 0"),
        ({"text_batch": 0}, r"--method\.text-batch 0: must be 1 or more"),
        ({"vl_weight": 0, "pvl_weight": 0}, "all three weights"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, float], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        method_options(find_method("dime-fm"), options)


def test_it_needs_sentences_and_no_labels() -> None:
    method = find_method("dime-fm")
    assert method.needs_with(method_options(method, {})) == {"teacher", "text"}
    with_prompts = method_options(method, {"class-prompts": "true"})
    assert method.needs_with(with_prompts) == {"teacher", "text", "class_features"}


@pytest.mark.parametrize("lacking", [{"streams": {}}, {"image_features": None}])
def test_a_batch_without_what_it_learns_from_is_named(lacking: dict[str, object]) -> None:
    with pytest.raises(AttarError, match="image features and a text stream"):
        loss_of(make_batch(**lacking))


def test_one_process_gathers_nothing() -> None:
    rows = torch.randn(3, 4, requires_grad=True)
    assert gather_with_gradients(rows) is rows

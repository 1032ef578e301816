"""Every method by its paper's name."""

from collections.abc import Mapping
from typing import Any

from attar.config import coerce_options
from attar.errors import unknown_name
from attar.methods import (
    attar,
    dime_fm,
    dualcoop,
    erm,
    feature_mse,
    fine_tune,
    flyp,
    kd,
    li2023,
    linear_probe,
    lp_ft,
    miro,
    rise,
    scmd,
    simkd,
    text2concept,
    vl2v_adip,
    vl2v_sd,
    wise_ft,
)
from attar.methods.base import Method

METHODS: Mapping[str, Method] = {
    "attar": attar.METHOD,
    "closed-set-multilabel": dualcoop.CLOSED_SET,
    "dime-fm": dime_fm.METHOD,
    "erm": erm.METHOD,
    "feature-mse": feature_mse.METHOD,
    "fine-tune": fine_tune.METHOD,
    "flyp": flyp.METHOD,
    "kd": kd.METHOD,
    "li2023": li2023.METHOD,
    "li2023-multilabel": dualcoop.METHOD,
    "linear-probe": linear_probe.METHOD,
    "lp-ft": lp_ft.METHOD,
    "miro": miro.METHOD,
    "rise": rise.METHOD,
    "scmd": scmd.METHOD,
    "simkd": simkd.METHOD,
    "text2concept": text2concept.METHOD,
    "vl2v-adip": vl2v_adip.METHOD,
    "vl2v-sd": vl2v_sd.METHOD,
    "wise-ft": wise_ft.METHOD,
}


def find_method(name: str) -> Method:
    """Return a method by name; an unknown one is a UsageError with the nearest names."""
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]


def method_options(method: Method, values: Mapping[str, Any]) -> Any:
    """Build a method's options from `--method.` values; unknown or ill-typed ones are refused."""
    return coerce_options(method.options, values, prefix="--method.")

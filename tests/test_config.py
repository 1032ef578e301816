"""Option values as strings or plain values, checked field by field; dataclasses as YAML."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from attar.config import coerce_options, dump_yaml, to_plain
from attar.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Options:
    steps: int = 1
    rate: float = 0.5
    on: bool = False
    name: str = "n"
    kind: Literal["a", "b"] = "a"
    power: Literal[1, 2, "auto"] = 1
    sizes: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    pair: tuple[int, str] = (0, "")
    anything: tuple = ()
    limit: int | None = 7
    decay: float | None = 0.1
    label: str | None = "x"
    table: Mapping[str, int] = field(default_factory=dict)
    long_name: int = 0


def coerce(**values: Any) -> Options:
    return coerce_options(Options, values, "--method.")


ACCEPTED: list[tuple[str, Any, Any]] = [
    ("steps", "12", 12),
    ("steps", "-3", -3),
    ("steps", 12, 12),
    ("rate", "1e-3", 0.001),
    ("rate", "1E3", 1000.0),
    ("rate", "2", 2.0),
    ("rate", 2, 2.0),
    ("rate", ".5", 0.5),
    ("rate", "inf", math.inf),
    ("on", "true", True),
    ("on", "False", False),
    ("on", "yes", True),
    ("on", "off", False),
    ("on", True, True),
    ("name", "12", "12"),
    ("name", "true", "true"),
    ("name", "null", "null"),
    ("name", "", ""),
    ("name", "a: [b", "a: [b"),
    ("kind", "b", "b"),
    ("power", "2", 2),
    ("power", 2, 2),
    ("power", "auto", "auto"),
    ("sizes", "[1, 2]", (1, 2)),
    ("sizes", (3,), (3,)),
    ("sizes", "[]", ()),
    ("rates", "[1e-3, 2]", (0.001, 2.0)),
    ("rates", [1], (1.0,)),
    ("pair", "[4, four]", (4, "four")),
    ("anything", "[1, a]", (1, "a")),
    ("limit", "null", None),
    ("limit", None, None),
    ("limit", "3", 3),
    ("decay", "1e-2", 0.01),
    ("decay", "null", None),
    ("label", "3", "3"),
    ("label", "true", "true"),
    ("label", "null", None),
    ("table", "{a: 1}", {"a": 1}),
]


@pytest.mark.parametrize(("name", "given", "wanted"), ACCEPTED)
def test_values_become_their_option_s_type(name: str, given: Any, wanted: Any) -> None:
    value = getattr(coerce(**{name: given}), name)
    assert value == wanted
    assert type(value) is type(wanted)
    if isinstance(wanted, tuple):
        assert [type(item) for item in value] == [type(item) for item in wanted]


REFUSED: list[tuple[str, Any, str]] = [
    ("steps", "1.5", "expected int"),
    ("steps", "many", "expected int"),
    ("steps", "true", "expected int"),
    ("steps", True, "expected int"),
    ("steps", "null", "expected int"),
    ("steps", "[1", "expected int"),
    ("rate", "half", "expected float"),
    ("rate", "yes", "expected float"),
    ("rate", True, "expected float"),
    ("rate", "null", "expected float"),
    ("rate", "2020-01-01", "expected float"),
    ("rate", "[1]", "expected float"),
    ("on", "1", "expected bool"),
    ("on", "maybe", "expected bool"),
    ("name", 3, "expected str"),
    ("name", None, "expected str"),
    ("kind", "c", "expected one of a, b"),
    ("power", "3", "expected one of 1, 2, auto"),
    ("power", True, "expected one of 1, 2, auto"),
    ("sizes", "1", "expected tuple"),
    ("sizes", "[1, a]", "expected tuple"),
    ("sizes", "[1, 2.5]", "expected tuple"),
    ("pair", "[4]", "expected tuple"),
    ("limit", "none of them", r"expected int \| None"),
    ("decay", "a bit", r"expected float \| None"),
    ("table", "a", "expected Mapping"),
]


@pytest.mark.parametrize(("name", "given", "wanted"), REFUSED)
def test_other_values_are_refused_by_option_and_value(name: str, given: Any, wanted: str) -> None:
    with pytest.raises(UsageError, match=wanted) as refused:
        coerce(**{name: given})
    assert str(refused.value).startswith(f"--method.{name} {given!r}: ")


def test_what_is_not_given_stays_as_it_is() -> None:
    assert coerce() == Options()
    assert coerce(rate="2") == Options(rate=2.0)


def test_dashes_and_underscores_name_the_same_option() -> None:
    assert coerce_options(Options, {"long-name": "3"}, "--").long_name == 3
    assert coerce_options(Options, {"long_name": "3"}, "--").long_name == 3


def test_an_unknown_option_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError) as refused:
        coerce_options(Options, {"long-nam": "3"}, "--method.")
    message = str(refused.value)
    assert message.startswith("unknown option '--method.long-nam': ")
    assert "did you mean '--method.long-name'" in message
    assert "--method.steps" in message


def test_an_option_of_what_has_none_is_refused() -> None:
    @dataclass(frozen=True)
    class NoOptions:
        pass

    with pytest.raises(UsageError, match=r"unknown option '--method\.rate'.*none"):
        coerce_options(NoOptions, {"rate": 1}, "--method.")


def test_an_option_s_own_check_is_heard() -> None:
    @dataclass(frozen=True)
    class Checked:
        share: float = 0.5

        def __post_init__(self) -> None:
            if self.share > 1:
                raise UsageError(f"--method.share {self.share}: too much")

    with pytest.raises(UsageError, match=r"--method\.share 3\.0: too much"):
        coerce_options(Checked, {"share": "3"}, "--method.")


@dataclass(frozen=True)
class Inner:
    where: Path
    numbers: tuple[float, ...]


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    by_name: Mapping[str, Any]
    nothing: None = None


OUTER = Outer("größer", Inner(Path("a/b"), (1.0, 2.5)), {"x": (Path("c"), None), "on": True})
PLAIN = {
    "name": "größer",
    "inner": {"where": "a/b", "numbers": [1.0, 2.5]},
    "by_name": {"x": ["c", None], "on": True},
    "nothing": None,
}


def test_to_plain_leaves_what_yaml_can_hold() -> None:
    plain = to_plain(OUTER)
    assert plain == PLAIN
    assert list(plain) == list(PLAIN)  # fields in their order
    assert to_plain({1: 2}) == {"1": 2}


def test_a_subclass_of_str_becomes_a_plain_string() -> None:
    class Loud(str):
        __slots__ = ()

    assert type(to_plain(Loud("a"))) is str
    assert dump_yaml({"a": Loud("b")}) == "a: b\n"


def test_yaml_reads_back_what_was_dumped() -> None:
    text = dump_yaml(OUTER)
    assert yaml.safe_load(text) == PLAIN
    assert text.startswith("name: größer\ninner:\n")


def test_dumped_values_are_options_again() -> None:
    options = Options(rate=1e-5, sizes=(1, 2), kind="b", limit=None, label="null")
    assert coerce_options(Options, yaml.safe_load(dump_yaml(options)), "--") == Options(
        rate=1e-5, sizes=(1, 2), kind="b", limit=None, label=None
    )

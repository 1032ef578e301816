"""Errors are one line that names the value and the way out."""

import pytest

from attar.errors import AttarError, UsageError, unknown_name

NAMES = ("vl2v-adip", "feature-mse", "erm")


def test_exit_statuses() -> None:
    assert AttarError("failed").exit_status == 1
    assert UsageError("wrong").exit_status == 2
    assert issubclass(UsageError, AttarError)


def test_an_unknown_name_comes_with_the_nearest_and_all_the_known() -> None:
    error = unknown_name("method", "feature-mes", NAMES)
    assert isinstance(error, UsageError)
    assert str(error) == (
        "unknown method 'feature-mes': did you mean 'feature-mse'? "
        "known: erm, feature-mse, vl2v-adip"
    )


def test_a_name_like_no_other_comes_without_a_guess() -> None:
    assert str(unknown_name("method", "qqqq", NAMES)) == (
        "unknown method 'qqqq': known: erm, feature-mse, vl2v-adip"
    )


@pytest.mark.parametrize("given", ["VIT-b-32", "vit-b-32", "ViT-B-23"])
def test_case_does_not_matter_for_the_guess_and_is_kept_in_it(given: str) -> None:
    message = str(unknown_name("teacher", given, ["RN50", "ViT-B-32"]))
    assert message.startswith(f"unknown teacher {given!r}: did you mean 'ViT-B-32'? ")


def test_at_most_three_are_guessed_the_nearest_first() -> None:
    message = str(unknown_name("name", "resnet18", [f"resnet1{n}" for n in "0123456x"]))
    guesses = message.split("did you mean ")[1].split("? ", maxsplit=1)[0].split(" or ")
    assert len(guesses) == 3
    nearest = str(unknown_name("name", "resnet18x", ["resnet", "resnet18", "resnet1"]))
    assert "did you mean 'resnet18' or 'resnet1' or 'resnet'?" in nearest


def test_long_lists_are_counted_instead_of_shown() -> None:
    many = [f"model{n:03}" for n in range(100)]
    near = str(unknown_name("student", "model0077", many))
    assert near.endswith("known: 100 names")
    assert "'model007'" in near
    far = str(unknown_name("student", "zzz", many))
    assert far.endswith("model039, … (100 names)")
    assert "did you mean" not in far
    assert far.count("model") == 40


def test_no_known_name_at_all() -> None:
    assert str(unknown_name("head", "x", [])) == "unknown head 'x': known: "

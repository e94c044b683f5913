"""The checks of user input: what passes, and the wording of every error."""

import fractions

import numpy as np
import pytest

from keras_sq.core import checks


def test_one_of_known():
    assert checks.one_of("draw", "paper", ("paper", "released")) == "paper"


def test_one_of_takes_any_iterable():
    assert checks.one_of("draw", "paper", iter(["released", "paper"])) == "paper"


def test_one_of_near_miss_says_what_was_meant():
    message = (
        r"Argument `draw` must be one of 'paper', 'released'\. "
        r"Received: draw='papr'\. Did you mean 'paper'\?"
    )
    with pytest.raises(ValueError, match=message):
        checks.one_of("draw", "papr", ("paper", "released"))


@pytest.mark.parametrize("value", ["nothing like it", "", "Q", None, 3, ["paper"]])
def test_one_of_far_miss_guesses_nothing(value):
    with pytest.raises(ValueError, match="Argument `draw` must be one of") as error:
        checks.one_of("draw", value, ("paper", "released"))
    assert "Did you mean" not in str(error.value)
    assert f"Received: draw={value!r}." in str(error.value)


def test_did_you_mean():
    assert checks.did_you_mean("ternery", ["binary", "ternary"]) == (
        " Did you mean 'ternary'?"
    )
    assert checks.did_you_mean("xyz", ["binary", "ternary"]) == ""
    assert checks.did_you_mean(1, ["binary"]) == ""


@pytest.mark.parametrize(
    "value", [0, 1, 0.0, 1.0, 0.25, np.float32(0.5), np.int64(1), np.float16(0)]
)
def test_fraction_accepts(value):
    result = checks.fraction("ratio", value)
    assert type(result) is float
    assert result == value


def test_fraction_accepts_rational():
    assert checks.fraction("ratio", fractions.Fraction(1, 4)) == 0.25


@pytest.mark.parametrize("value", [1.2, -0.1, 1 + 1e-12, -1e-300, 2, float("inf")])
def test_fraction_out_of_range(value):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (compared in full)
        checks.fraction("ratio", value)
    assert str(error.value) == (
        f"Argument `ratio` must be in [0, 1]. Received: ratio={value}"
    )


def test_fraction_nan():
    with pytest.raises(ValueError, match=r"in \[0, 1\]\. Received: ratio=nan"):
        checks.fraction("ratio", float("nan"))


@pytest.mark.parametrize("value", ["0.5", None, True, np.array([0.5]), 1j, [0.5]])
def test_fraction_no_number(value):
    message = r"Argument `ratio` must be a number\. Received: ratio=.* \(of type "
    with pytest.raises(TypeError, match=message):
        checks.fraction("ratio", value)


@pytest.mark.parametrize("value", [1, 0.7, 1e-300, np.float32(2)])
def test_positive_accepts(value):
    result = checks.positive("factor", value)
    assert type(result) is float
    assert result == value


@pytest.mark.parametrize("value", [0, -1, 0.0, float("inf"), float("nan")])
def test_positive_out_of_range(value):
    message = rf"`factor` must be a finite number above 0\. Received: factor={value}"
    with pytest.raises(ValueError, match=message):
        checks.positive("factor", value)


@pytest.mark.parametrize("value", ["1", None, False])
def test_positive_no_number(value):
    with pytest.raises(TypeError, match="Argument `factor` must be a number"):
        checks.positive("factor", value)


@pytest.mark.parametrize("value", [2, 8, np.int64(4), np.uint8(3)])
def test_integer_accepts(value):
    result = checks.integer("num_bits", value, 2, 8)
    assert type(result) is int
    assert result == value


def test_integer_without_bounds():
    assert checks.integer("seed", -(10**20)) == -(10**20)


def test_integer_too_small():
    message = r"Argument `num_bits` must be at least 2\. Received: num_bits=1"
    with pytest.raises(ValueError, match=message):
        checks.integer("num_bits", 1, 2, 8)


def test_integer_too_large():
    message = r"Argument `num_bits` must be at most 8\. Received: num_bits=9"
    with pytest.raises(ValueError, match=message):
        checks.integer("num_bits", 9, 2, 8)


@pytest.mark.parametrize("value", [2.0, "2", True, None, np.float32(2)])
def test_integer_no_integer(value):
    message = r"Argument `num_bits` must be an integer\. Received: num_bits=.*of type"
    with pytest.raises(TypeError, match=message):
        checks.integer("num_bits", value, 2, 8)


def test_names_in_messages_are_bounded():
    assert checks.listed(["a", 2]) == "'a', '2'"
    text = checks.listed(f"name {i}" for i in range(20_000))
    assert text.startswith("'name 0', 'name 1'")
    assert text.endswith("'name 39' and 19,960 more")
    assert checks.listed(["x" * 10**6]) == repr("x" * 80)

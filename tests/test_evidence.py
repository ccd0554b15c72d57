"netinv.evidence: intervals that hold the mean as often as five seeds allow, and texts with as many digits as they bear."

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, t

from netinv.evidence import Interval, interval, paired, spread

seeds = st.lists(st.floats(-100, 100), min_size=3, max_size=8)


@pytest.mark.parametrize("values", [[0.2, 0.9, 0.4, 0.7, 0.3], [0.99, 0.98, 0.995, 0.91], [3.0, 1.0, 2.0]])
def test_bounds_are_those_of_all_possible_draws(values: list[float]) -> None:
    "n values have n^n draws: few enough to count, and the expanded percentile of their means is exact."
    n = len(values)
    means = np.array([*product(values, repeat=n)]).mean(1)
    tail = norm.cdf(-math.sqrt(n / (n - 1)) * t.ppf(0.975, n - 1))
    exact = np.quantile(means, [tail, 1 - tail])
    found = interval(values)
    assert found.mean == pytest.approx(np.mean(values))
    np.testing.assert_allclose([found.low, found.high], exact, atol=0.06 * np.ptp(values))


def test_five_seeds_hold_the_mean_as_often_as_they_can() -> None:
    rng = np.random.default_rng(0)
    found = [interval(rng.normal(3, 2, 5)) for _ in range(400)]
    assert 0.89 < np.mean([one.low <= 3 <= one.high for one in found]) < 0.96
    assert 0.4 < np.mean([(one := interval(rng.normal(3, 2, 5), level=0.5)).low <= 3 <= one.high for _ in found]) < 0.6


@settings(max_examples=20, deadline=None)
@given(seeds, st.floats(-50, 50), st.sampled_from([-2.0, 0.5, 10.0]))
def test_bounds_move_and_stretch_with_the_values(values: list[float], shift: float, factor: float) -> None:
    one, other = interval(values), interval([factor * value + shift for value in values])
    low, high = sorted(factor * bound + shift for bound in (one.low, one.high))
    same = {"abs": 0.1 * abs(factor) * np.ptp(values) + 1e-6}  # a mirrored set is drawn otherwise
    assert min(values) - 1e-9 <= one.low <= one.high <= max(values) + 1e-9
    assert other.low == pytest.approx(low, **same) and other.high == pytest.approx(high, **same)


def test_a_pair_is_judged_by_its_differences() -> None:
    luck = np.array([0.1, 0.9, 0.3, 0.6, 0.5])
    found = paired(luck + [0.02, 0.01, 0.03, 0.02, 0.01], luck)
    assert 0.01 <= found.low < found.mean < found.high <= 0.03
    assert interval(luck).high - interval(luck).low > 0.3
    assert paired(luck, luck) == (0, 0, 0)
    with pytest.raises(ValueError, match="5 values but 4 others"): paired(luck, luck[1:])


@pytest.mark.parametrize("give", [list, tuple, np.array, torch.tensor, pd.Series, lambda v: pd.Series(v, index=[*"cab"])])
def test_any_kind_of_numbers(give) -> None:
    assert interval(give([0.5, 0.25, 1.0])) == interval([0.5, 0.25, 1.0])


@pytest.mark.parametrize("values, says", [
    ([], "give one number for each seed"), ([[1, 2], [3, 4]], r"values are \[2, 2\]"), (3.0, r"values are \[\]"),
    ([1, math.inf], "1 of 2 values are NaN or infinite"), ([math.nan], "leave those seeds out"),
])  # fmt: skip
def test_what_cannot_be_averaged_is_refused(values, says: str) -> None:
    with pytest.raises(ValueError, match=says): spread(values)


@pytest.mark.parametrize("level", [0, 1, 95, -0.1])
def test_a_level_is_a_share(level: float) -> None:
    with pytest.raises(ValueError, match=f"level is {level}: expected a share"): interval([1, 2], level=level)


@pytest.mark.parametrize("numbers, text", [
    ((0.9931, 0.9912, 0.9948), "0.993 [0.991, 0.995]"), ((120.4, 108.2, 133.0), "120 [108, 133]"),
    ((-0.5, -0.6, -0.4), "-0.50 [-0.60, -0.40]"), ((12345, 11000, 13000), "12345 [11000, 13000]"),
    ((0.25, 0.25, 0.25), "0.250 [0.250, 0.250]"), ((0, 0, 0), "0 [0, 0]"),
    ((0.25, math.nan, math.nan), "0.250"), ((math.nan,) * 3, "nan"),
])  # fmt: skip
def test_texts_have_the_digits_that_the_width_bears(numbers: tuple, text: str) -> None:
    assert str(Interval(*numbers)) == f"{Interval(*numbers)}" == text


def test_a_format_is_that_of_all_three() -> None:
    assert f"{Interval(0.5, 0.25, 0.75):.0%}" == "50% [25%, 75%]" and f"{interval([0.5]):.2f}" == "0.50"
    assert Interval(2, 1, 4).reach() == (1, 2) and interval([3]).reach() == (0, 0)

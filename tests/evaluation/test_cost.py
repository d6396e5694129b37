"""Tests estimates of how long a ranking takes. A simulated clock advances only while rows are ranked."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_rec.evaluation.cost import MOST_SECONDS, SHARE, SHORT, say_cost, seconds_per_user


class Device:
    """A simulated device that ranks up to `width` rows of length 1 at the same time, which takes `seconds`. Longer
    rows take proportionally longer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lengths: np.ndarray) -> None:
        self.now = 0.0
        self.lengths = lengths
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def rank(self, rows: np.ndarray, seconds: float, width: int) -> None:
        self.now += -(-len(rows) // width) * seconds * self.lengths[rows].mean()


@given(
    seconds=st.lists(st.floats(0.001, 10), min_size=1, max_size=3),
    width=st.sampled_from([1, 10**6]),
    batch_size=st.integers(1, 64),
    num_rows=st.integers(1, 5000),
)
def test_an_estimate_is_close_and_costs_little(
    seconds: list[float], width: int, batch_size: int, num_rows: int
) -> None:
    """A simulated CPU ranks the rows of a batch one after the other, and a simulated GPU ranks them all at once. No
    estimate is too low."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        device = Device(monkeypatch, np.ones(num_rows))
        passes = [lambda rows, one=one: device.rank(rows, one, width) for one in seconds]
        estimated = seconds_per_user(passes, device.lengths, batch_size)
        spent = device.now

        batch = min(batch_size, num_rows)
        true = np.array([-(-batch // width) * one / batch for one in seconds])
        assert (np.array(estimated) >= true * (1 - 1e-9)).all()
        if width == 1:
            assert estimated == pytest.approx(seconds)
        assert spent <= sum(seconds) + min(MOST_SECONDS, SHARE * sum(seconds) * num_rows) + 1e-6


def test_a_gpu_is_timed_with_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, np.ones(2000))
    assert seconds_per_user([lambda rows: device.rank(rows, 1.5, 1000)], device.lengths, 128) == [1.5 / 128]


def test_rows_of_the_mean_length_are_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = np.array([1, 1, 1, 1, 1, 1, 1, 9, 5, 5, 5, 5, 5, 5, 29])  # the mean is 5
    device = Device(monkeypatch, lengths)
    (estimated,) = seconds_per_user([lambda rows: device.rank(rows, 1, 1)], lengths, 8)
    assert estimated * len(lengths) == pytest.approx(lengths.sum())


def test_only_a_high_cost_is_printed(capsys) -> None:
    say_cost(1925, 87 * 60, name="evaluation", remedy="set max_users to shorten it")
    say_cost(300, 0.9 * SHORT, name="evaluation", remedy="set max_users to shorten it")
    assert capsys.readouterr().out == "evaluation: 1,925 users, about 87 min; set max_users to shorten it\n"

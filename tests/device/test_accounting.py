"""Rates and latencies by a clock of our own."""

from __future__ import annotations

import pytest

from device.accounting import REASONS, Accounts, Latencies, RateMeter


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def _ticked(interval_s: float, count: int) -> tuple[RateMeter, Clock]:
    clock = Clock()
    meter = RateMeter(clock)
    for _ in range(count):
        clock.now_s += interval_s
        meter.tick(clock.now_s)
    return meter, clock


@pytest.mark.parametrize("interval_s", [0.004, 1 / 30, 0.9, 20.0])
@pytest.mark.parametrize("count", [2, 5, 400])
def test_a_steady_rate_is_told_exactly(interval_s, count):
    """Mutations: events instead of intervals counted; slow events all forgotten."""
    meter, _ = _ticked(interval_s, count)
    assert meter.per_second() == pytest.approx(1 / interval_s, rel=1e-6)  # sums of floats


def test_one_event_has_no_rate():
    """Mutation: division by no time."""
    assert _ticked(1.0, 1)[0].per_second() == 0
    assert RateMeter(Clock()).per_second() == 0


def test_the_rate_sinks_when_events_stay_away():
    """Mutation: the last rate is shown for ever."""
    meter, clock = _ticked(0.1, 51)
    clock.now_s += 0.15
    assert meter.per_second() == pytest.approx(10)  # the next is only a little late
    clock.now_s += 5.05  # 5.2 s since the last, of which 0.2 are two intervals
    assert meter.per_second() == pytest.approx(5, rel=0.01)
    clock.now_s += 1000
    assert meter.per_second() < 0.1


def test_a_new_rate_takes_over():
    """Mutation: events are never forgotten."""
    clock = Clock()
    meter = RateMeter(clock, horizon_s=5)
    for interval_s, count in ((1.0, 100), (0.1, 60)):
        for _ in range(count):
            clock.now_s += interval_s
            meter.tick(clock.now_s)
    assert meter.per_second() == pytest.approx(10, rel=1e-6)


def test_percentiles_are_of_the_last():
    """Mutations: seconds instead of ms; all latencies kept."""
    latencies = Latencies(kept=100)
    assert latencies.percentiles_ms() == {"p50": None, "p95": None}
    for _ in range(50):
        latencies.add(9.0)
    for millisecond in range(100):
        latencies.add(millisecond / 1000)
    percentiles = latencies.percentiles_ms()
    assert percentiles["p50"] == pytest.approx(49.5)
    assert percentiles["p95"] == pytest.approx(94.05)


@pytest.mark.parametrize("reason", REASONS)
def test_each_reason_has_its_own_count(reason):
    """Mutation: one sum for all reasons, or one dict for all accounts."""
    accounts = Accounts()
    accounts.discard(reason)
    assert accounts.discarded == {**dict.fromkeys(REASONS, 0), reason: 1}
    assert accounts.captured == 1
    assert not any(Accounts().discarded.values())

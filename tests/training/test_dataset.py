"""Batches: the same ones whoever simulates them and wherever a run goes on."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from training import dataset, quantize
from training import settings as settings_file
from training.dataset import (
    DatasetSettings,
    TrainingStream,
    plan,
    stack_and_symmetry,
    validation_set,
)
from training.forward_model import ForwardModelSettings
from training.network import NetworkSettings, build_step

MODEL = ForwardModelSettings()
SMALL = DatasetSettings(
    batch=2, size_px=16, chunk=5, read_at=(2, 4), stream_chunks=(2, 4), workers=0
)
Batch = tuple[dict[str, np.ndarray], np.ndarray]


def batches(n: int, start: int = 0, **changes: Any) -> list[Batch]:
    settings = SMALL.model_copy(update=changes)
    stream = TrainingStream(MODEL, settings, seed=1, epoch_length=4, start=start)
    try:
        return [stream[k % 4] for k in range(n)]
    finally:
        stream.close()


def assert_equal(one: list[Batch], two: list[Batch], tolerance: float = 0) -> None:
    assert len(one) == len(two)
    for (inputs, truth), (inputs_2, truth_2) in zip(one, two, strict=True):
        assert inputs.keys() == inputs_2.keys()
        for name, array in inputs.items():
            np.testing.assert_allclose(
                array, inputs_2[name], rtol=tolerance, atol=tolerance, err_msg=name
            )
        np.testing.assert_allclose(truth, truth_2, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def unbroken() -> list[Batch]:
    """The first 14 batches: some three stacks at each place."""
    return batches(14)


@pytest.mark.parametrize("start", [1, 2, 5, 6, 11])
def test_a_stream_begun_later_gives_what_the_unbroken_one_gives_there(
    start: int, unbroken: list[Batch]
) -> None:
    """Catches a resumption that begins its stack anew, plays another, or is off by one."""
    assert_equal(batches(3, start), unbroken[start : start + 3])


def test_other_processes_simulate_the_same(unbroken: list[Batch]) -> None:
    """Catches stacks that depend on which process was free first.

    To 1e-6: the workers' BLAS has one thread, and sums in another order.
    """
    assert_equal(batches(9, workers=2), unbroken[:9], tolerance=1e-6)


@pytest.mark.parametrize("start", [0, 1, 5, 9, 13])
def test_stacks_that_are_played_again_resume_too(start: int) -> None:
    """Catches a pool that is drawn anew, or turned otherwise, after an interruption."""
    again = {"pool": 2, "plays": 3}
    assert_equal(batches(3, start, **again), batches(16, **again)[start : start + 3])


def test_each_stack_of_the_pool_is_played_so_often_and_never_twice_alike() -> None:
    """Catches a pool that is never renewed, and plays that are copies of each other."""
    settings = SMALL.model_copy(update={"pool": 3, "plays": 8})
    plays = [stack_and_symmetry(settings, play) for play in range(48)]
    assert [stack for stack, _ in plays] == [*range(3)] * 8 + [*range(3, 6)] * 8
    for stack in range(6):
        assert sorted(symmetry for number, symmetry in plays if number == stack) == [*range(8)]


def test_copies_of_the_mean_hold_no_fluctuation() -> None:
    """Catches a twin that still sees its frames, and one whose mean is not the window's."""
    changes: dict[str, Any] = {"copies": 1, "chunk": 1, "read_at": (0,), "stream_fraction": 0.0}
    (inputs, truth), *_ = batches(1, **changes)
    np.testing.assert_array_equal(inputs["frames"], inputs["means"])
    assert inputs["frames"].shape == (2, 1, 16, 16)
    windows = batches(3, chunk=10, read_at=(9,), stream_fraction=0.0)
    np.testing.assert_array_equal(inputs["means"][:, 0], windows[2][0]["means"][:, 0])
    np.testing.assert_allclose(
        inputs["means"][:, 0],
        np.mean([batch["frames"] for batch, _ in windows], axis=(0, 2)),
        atol=1e-5,
    )
    np.testing.assert_array_equal(truth, windows[2][1])


def test_batches_have_the_shapes_that_the_network_takes(unbroken: list[Batch]) -> None:
    """Catches a swap of batch and time, and doubles where floats are meant."""
    inputs, truth = unbroken[0]
    shapes = {name: (array.shape, array.dtype.name) for name, array in inputs.items()}
    assert shapes == {
        "frames": ((2, 5, 16, 16), "float32"),
        "means": ((2, 5, 16, 16), "float32"),
        "psf_sigma_px": ((2, 1), "float32"),
        "fresh": ((2,), "float32"),
        "gain": ((2, 2), "float32"),
    }
    assert truth.shape == (2, 2, 32, 32)


def test_each_place_plays_its_stacks_to_their_end(unbroken: list[Batch]) -> None:
    """Catches stacks that are cut short or played twice, and a state that is not reset between.

    `fresh` is 1 exactly where the plan has a new stack begin.
    """
    for place in range(2):
        fresh = [int(inputs["fresh"][place]) for inputs, _ in unbroken]
        expected: list[int] = []
        for number in range(14):
            expected += [1] + [0] * (plan(SMALL, 1, place, number).chunks - 1)
        assert fresh == expected[:14]
        truths = [truth[place, 0] for _, truth in unbroken]
        changes = [int(not np.array_equal(a, b)) for a, b in pairwise(truths)]
        assert changes == fresh[1:]


def test_plans_mix_windows_and_streams_as_set() -> None:
    """Catches a share that is ignored, and lengths outside of their range.

    600 plans: a share of 0.5 scatters by 0.02; five of that are allowed.
    """
    plans = [plan(SMALL, 1, place, number) for place in range(6) for number in range(100)]
    streams = [p.chunks for p in plans if p.stream]
    assert len(streams) / 600 == pytest.approx(0.5, abs=0.1)
    assert set(streams) == {2, 3, 4}
    assert {p.chunks for p in plans if not p.stream} == {6}
    assert plan(SMALL, 1, 3, 7) == plan(SMALL, 1, 3, 7)


def test_training_validation_and_calibration_never_share_a_specimen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches two splits with one seed. NumPy pads seeds with zeros: (1, 2) seeds as (1, 2, 0, 0)
    does, so that what is compared is the generators' states."""
    seeds: dict[str, list[tuple[int, ...]]] = {"training": [], "validation": [], "calibration": []}
    seeds["training"] = [plan(SMALL, 1, p, n).seed for p in range(8) for n in range(200)]

    def recorded(split: str) -> Any:
        def make_example(*arguments: Any, **_: Any) -> Any:
            seeds[split].append(arguments[4])
            return dataset.Example(*np.zeros((4, 1, 16, 16), np.float32), 1.0)

        return make_example

    monkeypatch.setattr(dataset, "make_example", recorded("validation"))
    validation_set(MODEL, SMALL.model_copy(update={"validation_stacks": 200}), seed=1)
    monkeypatch.setattr(quantize, "make_example", recorded("calibration"))
    step = build_step(NetworkSettings(head_filters=4, head_layers=0), 16, 16)
    monkeypatch.setattr(quantize, "trajectory", lambda *_: iter(()))
    list(quantize.representative_set(step, settings_file.load("base"), 200))

    states = {
        split: {tuple(np.random.SeedSequence(seed).generate_state(4)) for seed in keys}
        for split, keys in seeds.items()
    }
    assert {split: len(found) for split, found in states.items()} == {
        "training": 1600,
        "validation": 200,
        "calibration": 200,
    }
    assert len(set.union(*states.values())) == 2000


def test_the_validation_set_stays_the_same() -> None:
    """Catches a validation drawn anew, which would make scores jump for no reason."""
    settings = SMALL.model_copy(update={"validation_stacks": 2})
    one, two = (validation_set(MODEL, settings, seed=1) for _ in range(2))
    other = validation_set(MODEL, settings, seed=2)
    assert len(one) == 2
    assert one[0].frames.shape == (30, 16, 16)
    for k in range(2):
        np.testing.assert_array_equal(one[k].frames, two[k].frames)
        assert not np.array_equal(one[k].frames, other[k].frames)
    assert not np.array_equal(one[0].frames, one[1].frames)


@pytest.mark.parametrize(
    "wrong",
    [
        {"chunk": 7, "read_at": (6,)},
        {"chunk": 15, "read_at": (7, 15)},
        {"chunk": 15, "read_at": (14, 7)},
        {"chunk": 15, "read_at": (7,)},
        {"read_at": ()},
        {"stream_chunks": (5, 3)},
        {"stream_chunks": (0, 3)},
        {"size_px": 17},
        {"copies": 4, "chunk": 3, "read_at": (2,), "stream_fraction": 0.0},
        {"copies": 1, "chunk": 1, "read_at": (0,)},
    ],
    ids=str,
)
def test_cuts_that_do_not_fit_are_refused(wrong: dict[str, Any]) -> None:
    """Catches windows of 28 frames, images read from the next chunk, and streams without end."""
    with pytest.raises(ValidationError):
        DatasetSettings(**wrong)

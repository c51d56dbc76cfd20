"""A scene that changes is seen, and one that only fluctuates never is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice

import numpy as np
import pytest

from device.camera import Frame
from device.motion import MoveWatch
from device.reconstructor import Reconstructor, reconstruct_stream, reconstruct_window
from device.ring_buffer import RingBuffer
from device.scene import SHOWN_BEFORE, SceneWatch
from training.fluctuation import Blinking
from training.forward_model import ForwardModelSettings, simulate
from training.scenes import KINDS, Scene, draw_scene

from .test_reconstructor import AddingStep

LEARNT = 60
STAYS = 120


def alarms(
    frames: Iterable[np.ndarray], kind: type[SceneWatch | MoveWatch] = SceneWatch
) -> list[int]:
    """Numbers of the frames by which a watch saw a change; it is reset as the stream is."""
    watch, found = kind(), []
    for number, frame in enumerate(frames):
        if watch.changed(frame):
            found.append(number)
            watch.reset()
    return found


def shown(scene: Scene, count: int, seed: int = 1) -> Iterator[np.ndarray]:
    return islice(scene.frames(np.random.default_rng(seed)), count)


def sparse_scene() -> Scene:
    """Few emitters that are seldom on."""
    scene = draw_scene("filaments, blinking", 64, np.random.default_rng(3))
    return Scene(
        scene.brightness,
        Blinking(on_fraction=0.02, on_time_frames=8.0),
        scene.site[:60],
        scene.strength[:60],
        scene.photons * 10,
    )


@pytest.fixture(scope="module")
def two() -> dict[str, tuple[Scene, Scene]]:
    """Of every kind two scenes."""
    return {
        kind: (
            draw_scene(kind, 64, np.random.default_rng(1)),
            draw_scene(kind, 64, np.random.default_rng(2)),
        )
        for kind in KINDS
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_replaced_specimen_is_seen_within_a_few_frames(kind, two):
    """Mutations: never; at once, by a single frame; again and again after the reset."""
    before, after = two[kind]
    found = alarms(chain(shown(before, STAYS), shown(after, STAYS)))
    assert len(found) == 1
    assert 2 < found[0] - STAYS < 15


@pytest.mark.parametrize("kind", KINDS)
def test_a_moved_specimen_is_told_from_another(kind):
    """Mutations: a move far enough to look like another scene called that; another specimen, of
    which some part is like the one before, called moved; always the same answer.

    Rods are like other rods: of ten pairs two are taken for moved where no likeness is asked for.
    """
    for seed in range(4):
        before = draw_scene(kind, 96, np.random.default_rng((1, seed)))
        after = {right_px: before.moved(right_px) for right_px in (5, 10)}
        after[0] = draw_scene(kind, 96, np.random.default_rng((2, seed)))
        for right_px, scene in after.items():
            watch = SceneWatch()
            frames = chain(shown(before, STAYS), shown(scene, 40, seed=2))
            told = next(change for change in map(watch.changed, frames) if change)
            assert told.moved == (right_px > 0), (seed, right_px)


@pytest.mark.parametrize("kind", KINDS)
def test_a_specimen_that_stays_is_never_another(kind, two):
    """Mutation: fluctuation taken for change, in 1,000 frames of each kind."""
    assert alarms(shown(two[kind][0], 1_000)) == []


@pytest.mark.parametrize("seed", range(24))
def test_no_kind_of_simulated_stack_alarms(seed):
    """Mutations: the ratio or the least distance lowered; blocks smaller than speckle's grains.

    Stacks of the training's forward model, slow speckle, sparse blinking, bleaching and hot pixels
    among them. With a ratio of 2 some alarm.
    """
    rng = np.random.default_rng((77, seed))
    stack = simulate(ForwardModelSettings(bleaching_fraction=0.5), 150, (64, 64), rng)
    assert alarms(stack.frames) == []


def test_bleaching_and_brightness_are_no_change(two):
    """Mutation: patterns compared without taking their brightness off."""
    frames = np.stack(list(shown(two["tissue, blinking"][0], 240))).astype(np.float32)
    fading = 100 + (frames - 100) * np.exp(-np.arange(240) / 80)[:, None, None]
    dimmed = frames.copy()
    dimmed[STAYS:] = 100 + 0.3 * (dimmed[STAYS:] - 100)
    assert alarms(fading.astype(np.float32)) == []
    assert alarms(dimmed) == []


@pytest.mark.parametrize("bad", ["black", "flash", "another"])
def test_a_bad_frame_or_two_are_nothing(bad, two):
    """Mutation: the mean of a group for its median."""
    before, after = two["filaments, blinking"]
    frames = np.stack(list(shown(before, 200)))
    other = {"black": 0 * frames[0], "flash": 0 * frames[0] + 4095}
    other["another"] = next(shown(after, 1))
    frames[[100, 101, 150]] = other[bad]
    assert alarms(frames) == []


def test_noise_alone_is_no_scene():
    """Mutation: a division by the length of an even pattern, or noise that is far from noise."""
    rng = np.random.default_rng(5)
    assert alarms(rng.poisson(100, (300, 32, 40)).astype(np.uint16)) == []
    assert alarms(np.full((100, 32, 40), 7, np.uint8)) == []


def test_before_it_knows_the_scene_it_says_nothing(two):
    """Mutation: a past of too few frames, whose own distances are too small by chance."""
    before, after = two["rods, speckle"]
    assert alarms(chain(shown(before, LEARNT - 30), shown(after, 30))) == []


def test_another_size_begins_anew(two):
    """Mutation: patterns of two sizes stacked."""
    before, _ = two["rods, speckle"]
    other = draw_scene("rods, speckle", 48, np.random.default_rng(2))
    assert alarms(chain(shown(before, STAYS), shown(other, LEARNT - 1))) == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_had_come_of_the_new_scene_when_it_is_seen_is_of_it_alone(kind, two):
    """Mutations: so many frames are kept that the old scene is among them; hardly any."""
    before, after = two[kind]
    (alarm,) = alarms(chain(shown(before, STAYS), shown(after, STAYS)))
    assert 0 <= alarm - SHOWN_BEFORE - STAYS < 5


def test_the_stream_begins_anew_with_the_new_scene(two):
    """Mutations: the state kept; the old frames left in the mean; what had come of the new scene by
    then thrown away, or played by other statistics than its own; windows reset too."""
    before, after = two["filaments, blinking"]
    frames = np.stack(list(chain(shown(before, STAYS), shown(after, 60))))
    (alarm,) = alarms(frames)
    results = list(reconstruct_stream(AddingStep(frames=30), frames))
    ours, first = results[alarm], alarm - SHOWN_BEFORE
    assert (results[alarm - 1].warming, ours.warming) == (False, True)
    window = reconstruct_window(AddingStep(frames=30), frames[first : alarm + 1])
    assert (ours.frames, ours.index) == (window.frames, alarm)
    np.testing.assert_array_equal(ours.image, window.image)
    buffer, fresh = RingBuffer(30, frames.shape[1:], frames.dtype), Reconstructor(AddingStep())
    for number, array in enumerate(frames[first:], start=first):
        buffer.push(frame := Frame(array, 0, number))
        if number >= alarm:
            result = fresh.push(frame, buffer)
            np.testing.assert_array_equal(results[number].image, result.image)
    watcher = Reconstructor(AddingStep(), "window")
    assert not any(watcher.scene_changed(frame) for frame in frames)


def test_sparse_blinking_is_not_taken_for_change():
    """Mutations: a fixed threshold, above which a specimen that never looks the same twice is; what
    is usual judged by the last 60 frames alone."""
    assert alarms(shown(sparse_scene(), 600)) == []

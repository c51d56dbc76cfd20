"""A specimen that was moved is seen, and one that stays never is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, repeat

import numpy as np
import pytest

from device.motion import MAX_SIDE_PX, SHOWN_BEFORE, MoveWatch, _clearly_more
from device.reconstructor import reconstruct_stream, reconstruct_window
from training.scenes import KINDS, Scene, draw_scene

from .test_reconstructor import AddingStep
from .test_scene import alarms as scene_alarms
from .test_scene import shown, sparse_scene

STAYS = 90
MOVED_PX = 5


def alarms(frames: Iterable[np.ndarray]) -> list[int]:
    """Numbers of the frames by which a move was seen."""
    return scene_alarms(frames, MoveWatch)


@pytest.fixture(scope="module")
def scenes() -> dict[str, Scene]:
    return {kind: draw_scene(kind, 96, np.random.default_rng(1)) for kind in KINDS}


@pytest.fixture(scope="module")
def films(scenes: dict[str, Scene]) -> dict[str, np.ndarray]:
    """Of every kind frames of a specimen that stays, (2 STAYS, H, W)."""
    return {kind: np.stack(list(shown(scene, 2 * STAYS))) for kind, scene in scenes.items()}


def moving(film: np.ndarray, way: Iterable[int]) -> Iterator[np.ndarray]:
    """Frames of a film, each moved to the right by so many px; the last place is kept."""
    places = chain(way, repeat(list(way)[-1]))
    return (np.roll(frame, px, axis=1) for frame, px in zip(film, places, strict=False))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("right_px", [3, MOVED_PX, -MOVED_PX, 12, 15])
def test_a_move_is_seen_once_and_when_enough_frames_show_it(kind, right_px, scenes):
    """Mutations: never; by a single frame; one direction alone; again and again after the reset;
    so early that frames of the old place are kept as the new one's."""
    moved = scenes[kind].moved(right_px)
    found = alarms(chain(shown(scenes[kind], STAYS), shown(moved, STAYS, 2)))
    assert len(found) == 1
    assert 0 <= found[0] - STAYS - SHOWN_BEFORE < 7


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", [range(1, 11), range(1, 15), np.repeat(range(1, 11), 2)])
def test_a_slow_move_is_seen_when_it_has_ended(kind, way, films):
    """A stage turned by hand, a pixel in a frame or two.

    Mutations: seen on the way, so that the new stream begins with frames of many places; the way
    itself taken for the past, so that the end of it is never seen.
    """
    places = [*[0] * STAYS, *way, *[way[-1]] * STAYS]
    (found,) = alarms(moving(films[kind], places))
    assert 0 < found - STAYS - len(way) < 12
    kept = places[found - SHOWN_BEFORE : found + 1]
    assert max(kept) - min(kept) <= 2 and kept.count(way[-1]) > 6


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_comes_back_was_not_moved(kind, films):
    """Mutation: what was on the way stays elsewhere for the watch when it is back."""
    assert alarms(moving(films[kind], [*[0] * STAYS, 4, 4, 8, 8, 4, 4, 0])) == []


@pytest.mark.parametrize("kind", KINDS)
def test_hot_pixels_do_not_hold_a_specimen_in_its_place(kind, films):
    """Mutation: what never moves, brighter than all else, is the most alike."""
    dark = np.zeros(films[kind].shape[1:], np.uint16)
    dark[tuple(np.random.default_rng(3).integers(0, 96, (2, 9)))] = 4000
    frames = moving(films[kind], [*[0] * STAYS, MOVED_PX])
    assert len(scene_alarms(frame + dark for frame in frames)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_specimen_that_stays_was_never_moved(kind, scenes):
    """Mutation: fluctuation taken for a move, in 500 frames of each kind."""
    assert alarms(shown(scenes[kind], 500)) == []


def test_noise_and_nothing_are_never_moved():
    """Mutation: the greatest of chance likenesses is taken for a place."""
    rng = np.random.default_rng(7)
    assert alarms(rng.poisson(100, (300, 32, 40)).astype(np.uint16)) == []
    assert alarms(np.full((100, 32, 40), 7, np.uint8)) == []


def test_a_slow_drift_is_no_move(scenes):
    """A pixel in 30 frames, as specimens drift. Mutation: the past is too long ago."""
    scene = scenes["filaments, blinking"]
    parts = [shown(scene.moved(k), 30, k) for k in range(8)]
    assert alarms(chain(*parts)) == []


def test_a_large_field_is_looked_at_coarsely(scenes):
    """Mutation: correlated at full size, which takes a Pi longer than a frame."""
    watch = MoveWatch()
    assert not watch.changed(np.zeros((512, 1024), np.uint16))
    assert watch._frames[-1].shape == (MAX_SIDE_PX // 2, MAX_SIDE_PX)
    before, after = scenes["rings, speckle"], scenes["rings, speckle"].moved(10)
    large = (
        frame.repeat(3, 0).repeat(3, 1) for frame in chain(shown(before, STAYS), shown(after, 20))
    )
    assert len(alarms(large)) == 1


def test_another_size_begins_anew(scenes):
    """Mutation: images of two sizes are averaged."""
    other = draw_scene("rings, speckle", 64, np.random.default_rng(2))
    assert alarms(chain(shown(scenes["rings, speckle"], 30), shown(other, 30))) == []


def test_the_stream_begins_anew_in_the_new_place(scenes):
    """Mutations: the daemon's watch does not ask this one; frames of the old place are played."""
    scene = scenes["filaments, blinking"]
    moved = scene.moved(MOVED_PX)
    frames = np.stack(list(chain(shown(scene, STAYS), shown(moved, 30, 2))))
    (alarm,) = alarms(frames)
    results = list(reconstruct_stream(AddingStep(frames=30), frames))
    window = reconstruct_window(AddingStep(frames=30), frames[alarm - SHOWN_BEFORE : alarm + 1])
    assert not results[alarm - 1].warming
    np.testing.assert_array_equal(results[alarm].image, window.image)


@pytest.mark.parametrize(
    ("likeness", "at_home", "expected"),
    [
        (0.97, 0.96, False),
        (0.96, 0.86, True),
        (0.96, 0.9, True),
        (0.5, 0.3, True),
        (0.5, 0.45, False),
    ],
)
def test_a_smooth_specimen_is_nearly_as_alike_beside_its_place(likeness, at_home, expected):
    """Mutations: hardly more than at home is enough; as much more is asked of a smooth specimen,
    which is like itself everywhere near, as of a fine one."""
    assert _clearly_more(likeness, at_home) is expected


def test_sparse_blinking_is_not_taken_for_a_move():
    """Mutation: a few frames of the same emitters are taken for a place that others are not in."""
    for seed in range(1, 4):
        assert alarms(shown(sparse_scene(), 600, seed)) == []

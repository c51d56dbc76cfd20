"""Specimens: drawn where and as densely as they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from training import specimen
from training.specimen import (
    CONTINUOUS,
    FAMILIES,
    THIN,
    Grid,
    leaves,
    ribbons,
    voids,
    worm_like_chain,
)

GRID = Grid(120, 96)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_family_draws_a_density_of_maximum_1(family: str, seed: int) -> None:
    """Catches swapped axes, a missing normalization, negative or infinite brightness."""
    density = FAMILIES[family](GRID, np.random.default_rng(seed))
    assert density.shape == (120, 96)
    assert density.dtype == np.float32
    assert np.isfinite(density).all()
    assert density.min() >= 0
    assert density.max() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_is_a_specimen(family: str) -> None:
    """Catches randomness from elsewhere than `rng`, and a family that ignores it."""
    first, again, other = (FAMILIES[family](GRID, np.random.default_rng(s)) for s in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_thin_families_leave_most_of_the_field_dark_and_continuous_ones_have_area() -> None:
    """Catches a thin family that fills the field, and a continuous one of scattered pixels.

    Dark: below 2 % of the maximum. Area: what a 3 x 3 mean leaves of the sum of squares; 1/9 for
    scattered pixels, near 1 for areas.
    """
    for name, family in (THIN | CONTINUOUS).items():
        draws = [family(GRID, np.random.default_rng(seed)) for seed in range(8)]
        kept = np.median([np.sum(ndimage.uniform_filter(d, 3) ** 2) / np.sum(d**2) for d in draws])
        if name in THIN:
            assert np.median([np.mean(d < 0.02) for d in draws]) > 0.5, name
            assert kept < 0.75, name
        else:
            assert kept > 0.75, name


class Coin(np.random.Generator):
    """Draws as its seed says, and falls as it is told."""

    def __init__(self, seed: int, falls: float) -> None:
        super().__init__(np.random.PCG64(seed))
        self.falls = falls

    def random(self, *_: object, **__: object) -> float:
        return self.falls


def across_one(
    seed: int, falls: float, monkeypatch: pytest.MonkeyPatch
) -> tuple[np.ndarray, float]:
    """Where the chains of a single ribbon lie across it, px from the first, and all its light."""
    chains: list[np.ndarray] = []

    def deposit(grid: Grid, points: np.ndarray) -> np.ndarray:
        chains.append(points)
        return np.ones(grid, np.float32)

    with monkeypatch.context() as patch:
        patch.setattr(Grid, "deposit", deposit)
        patch.setattr(specimen, "_unit_maximum", lambda density: density)
        light = float(ribbons(Grid(40, 40), Coin(seed, falls)).mean())  # a field for one alone
    apart = np.linalg.norm(np.array(chains) - chains[0], axis=2)  # (chains, points)
    np.testing.assert_allclose(apart, apart[:, :1] * np.ones(apart.shape[1]), atol=1e-6)
    return np.sort(apart[:, 0]), light


def test_a_strip_and_a_pair_are_as_wide_and_as_bright(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutations: a pair whose middles are as far apart as a strip is wide; strands on one side or
    one alone; a strip of chains too far apart, or with a gap; more light in more chains.

    The outermost chains lie half a place within the edges, together half a pixel at most.
    """
    widths = []
    for seed in range(60):
        strip, strip_light = across_one(seed, 0.9, monkeypatch)
        pair, pair_light = across_one(seed, 0.1, monkeypatch)
        assert pair[-1] == pytest.approx(strip[-1], abs=0.5)
        assert pair_light == pytest.approx(strip_light, rel=1e-5)
        assert np.diff(strip, prepend=0).max() <= 0.5 + 1e-6
        assert np.diff(pair, prepend=0).max() >= pair[-1] - 1 - 1e-6  # of either strand 0.5 px
        widths.append(strip[-1])
    assert min(widths) < 2 and 10 < max(widths) <= 12


def test_voids_are_dark_in_a_bright_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutations: bright bodies; bodies always black, or never; the label at an edge alone.

    A single square body in the middle of 60 fields, whose label is compared there and around it.
    Half of the fields have no outline, so that most of them are bright all around.
    """

    def square(grid: Grid, rng: np.random.Generator) -> np.ndarray:
        body = np.zeros(grid, np.float32)
        body[36:60, 36:60] = 1
        return body

    monkeypatch.setattr(specimen, "VOID_BODIES", (square,))
    inside, around = [], []
    for seed in range(60):
        field = voids(Grid(96, 96), np.random.default_rng(seed))
        inside.append(field[44:52, 44:52].mean())
        around.append(np.median(np.delete(field, slice(26, 70), axis=0)))
    lit = np.array(around) > 0.1
    assert lit.sum() > 30
    part = np.array(inside)[lit] / np.array(around)[lit]
    assert (part < 0.9).mean() > 0.9
    assert 0.3 < (part < 1e-3).mean() < 0.9


def test_a_leaf_is_drawn_as_far_as_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutations: a box without its corners, an ellipse without its tips."""
    drawn = [leaves(Grid(96, 120), np.random.default_rng(seed)) for seed in range(30)]
    monkeypatch.setattr(specimen, "_around", lambda *_: np.s_[:, :])
    whole = [leaves(Grid(96, 120), np.random.default_rng(seed)) for seed in range(30)]
    np.testing.assert_array_equal(drawn, whole)


def test_leaves_are_flat_and_hide_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutations: brightness that adds up; soft edges; dark leaves never, or always; no gratings.

    In 60 fields 0.1 to 0.8 of the pixels are label, half of it beside its like; of 60 single leaves
    0.4 are dark, give or take 4 of them, and all gratings are in pieces but some of the smallest.
    """
    monkeypatch.setattr(specimen, "_unit_maximum", lambda density: density)
    fields = np.array([leaves(Grid(128, 128), np.random.default_rng(seed)) for seed in range(60)])
    assert 0.99 < fields.max() < 1 + 1e-6
    label = fields > 0
    flat = (fields[..., 1:] == fields[..., :-1]) & label[..., 1:]
    assert np.all(flat.sum((1, 2)) > 0.3 * label.sum((1, 2)))
    shares = label.mean((1, 2))
    assert shares.min() < 0.2
    assert 0.7 < shares.max() < 0.95

    class Choosing:
        """A generator whose choice is made: how many of the leaves are gratings."""

        def __init__(self, part: float, seed: int) -> None:
            self.part, self.rng = part, np.random.default_rng(seed)

        def __getattr__(self, name: str) -> object:
            return getattr(self.rng, name)

        def choice(self, parts: list[float], **_: object) -> float:
            assert self.part in parts
            return self.part

    monkeypatch.setattr(Grid, "draw_number", lambda *_: 1)
    monkeypatch.setattr(Grid, "points", lambda *_: np.array([[64.0, 64.0]]))
    parts = {
        part: [ndimage.label(leaves(Grid(128, 128), Choosing(part, k)))[1] for k in range(60)]
        for part in (0.0, 1.0)
    }
    assert set(parts[0.0]) == {0, 1}
    assert 10 < parts[0.0].count(0) < 50
    assert sum(number > 1 for number in parts[1.0]) > 30


def test_tangents_of_a_chain_forget_their_direction_as_a_worm_like_chain_does() -> None:
    """<cos(angle(s) - angle(0))> = exp(-s / 2P). Catches a variance of 2 step / P, or of step P.

    The bound is five standard errors over independent chains, below 0.05: a factor of two in the
    variance would move the values by 0.12 or more.
    """
    persistence, step = 40.0, 0.2
    rng = np.random.default_rng(1)
    chains = [worm_like_chain(np.zeros(2), 100, persistence, rng, step) for _ in range(1500)]
    tangent = np.diff(np.stack(chains), axis=1) / step  # (n, points, 2)
    np.testing.assert_allclose(np.linalg.norm(tangent, axis=2), 1, atol=1e-9)
    for s in (persistence / 2, persistence, 2 * persistence):
        lag = round(s / step)
        cosine = np.sum(tangent[:, 0] * tangent[:, lag], axis=1)  # (n,)
        error = cosine.std() / np.sqrt(len(cosine))
        assert error < 0.02
        assert abs(cosine.mean() - np.exp(-s / (2 * persistence))) < 5 * error


def test_a_point_lies_where_it_is_and_not_on_a_pixel() -> None:
    """Its light and its centre of mass are its own. Catches swapped axes, rounding, and light from
    beyond the edge."""
    grid, rng = Grid(9, 12), np.random.default_rng(2)
    rows, columns = grid.coordinates()
    for point in rng.uniform((1, 1), (8, 11), (20, 2)):
        drawn = grid.deposit(point[None], np.array([3.0]))
        assert drawn.sum() == pytest.approx(3, rel=1e-6)
        assert np.sum(drawn * rows) / 3 == pytest.approx(point[0], abs=1e-5)
        assert np.sum(drawn * columns) / 3 == pytest.approx(point[1], abs=1e-5)
        assert np.count_nonzero(drawn > 0.003) <= 4
    outside = np.array([[-0.1, 3.0], [9.0, 3.0], [3.0, 12.0]])
    assert grid.deposit(outside).sum() == 0
    corner = grid.deposit(np.array([[0.0, 0.0]]))  # half of it beyond, along each axis
    assert corner.sum() == pytest.approx(0.25)
    assert corner[0, 0] == pytest.approx(0.25)


def test_numbers_of_objects_go_with_the_area() -> None:
    """Catches a number that ignores the size of the field or leaves its range."""
    rng = np.random.default_rng(1)
    counts = [Grid(1000, 1000).draw_number((100, 400), rng) for _ in range(400)]
    assert 100 <= min(counts) < 130
    assert 350 < max(counts) <= 400
    # Log-uniform: the median is the geometric mean, 200; 5 standard errors of a median are 20.
    assert np.median(counts) == pytest.approx(200, abs=20)
    assert Grid(10, 10).draw_number((100, 400), rng) == 1

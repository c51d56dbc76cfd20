"""Specimens of the frozen test set: where the emitters are, and how bright each is on average.

Part of the frozen generator (see `training.frozen`): it shares no code with the specimens that the
network is trained on, and is not changed without a new version. Coordinates are in input pixels,
whose centres are whole numbers: the field is the square from -0.5 to ``FIELD_PX`` - 0.5. Specimens
go on for `MARGIN_PX` beyond it, as they do beyond any camera's frame.

Thin families are emitters scattered along curves; continuous ones sample a smooth density on a
jittered lattice so fine that it leaves no grain of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

FIELD_PX = 128
MARGIN_PX = 8.0
LATTICE_PX = 0.33


@dataclass(frozen=True, slots=True)
class Emitters:
    """Point emitters.

    Attributes
    ----------
    y_px, x_px : ndarray
        Positions in input pixels, (N,).
    brightness : ndarray
        Mean emission over time, in arbitrary units, (N,).
    """

    y_px: np.ndarray
    x_px: np.ndarray
    brightness: np.ndarray


def joined(parts: Sequence[Emitters]) -> Emitters:
    """Put several groups of emitters into one, in order."""
    return Emitters(
        np.concatenate([part.y_px for part in parts]),
        np.concatenate([part.x_px for part in parts]),
        np.concatenate([part.brightness for part in parts]),
    )


# ---------------------------------------------------------------------------------- thin structures


def _somewhere(rng: np.random.Generator, inset_px: float = 0.0) -> np.ndarray:
    """Draw a point (y, x) in the field, at least `inset_px` from its border."""
    return rng.uniform(inset_px, FIELD_PX - 1 - inset_px, 2)


def _labelled(
    path_px: np.ndarray, rng: np.random.Generator, per_px: float = 6.0, width_px: float = 0.15
) -> Emitters:
    """Scatter emitters along a path (K, 2), `per_px` to a pixel, with a lateral spread."""
    length = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(path_px, axis=0).T))])  # (K,)
    count = max(1, int(round(per_px * length[-1])))
    at = rng.uniform(0.0, length[-1], count)  # (N,)
    y = np.interp(at, length, path_px[:, 0]) + rng.normal(0.0, width_px, count)
    x = np.interp(at, length, path_px[:, 1]) + rng.normal(0.0, width_px, count)
    return Emitters(y, x, np.full(count, rng.uniform(0.5, 1.5)))


def _straight(start_px: np.ndarray, angle_rad: float, length_px: float) -> np.ndarray:
    """Two ends of a straight segment, (2, 2)."""
    step = length_px * np.array([np.sin(angle_rad), np.cos(angle_rad)])
    return np.stack([start_px, start_px + step])


def _worm(rng: np.random.Generator) -> np.ndarray:
    """Draw a path of constant speed whose heading diffuses (a worm-like chain), (K, 2)."""
    step_px, persistence_px = 0.5, rng.uniform(40.0, 160.0)
    turns = rng.normal(0.0, np.sqrt(step_px / persistence_px), int(rng.integers(120, 320)))
    heading = rng.uniform(0.0, 2 * np.pi) + np.cumsum(turns)  # (K,)
    steps = step_px * np.stack([np.sin(heading), np.cos(heading)], axis=1)  # (K, 2)
    path = np.cumsum(steps, axis=0)
    return path - path[len(path) // 2] + _somewhere(rng)


def filaments(rng: np.random.Generator) -> Emitters:
    """Worm-like filaments of differing stiffness."""
    return joined([_labelled(_worm(rng), rng) for _ in range(int(rng.integers(9, 16)))])


def rings(rng: np.random.Generator) -> Emitters:
    """Circles of 2 to 8 px radius: vesicles, pores, sections of tubes."""
    turn = np.linspace(0.0, 2 * np.pi, 65)
    circle = np.stack([np.sin(turn), np.cos(turn)], axis=1)  # (65, 2)
    count = int(rng.integers(22, 38))
    return joined(
        [_labelled(_somewhere(rng) + rng.uniform(2.0, 8.0) * circle, rng) for _ in range(count)]
    )


def _cluster(rng: np.random.Generator) -> Emitters:
    """One clump of emitters, from nearly a point to 1.2 px across."""
    count, spread = int(rng.integers(12, 90)), rng.uniform(0.1, 1.2)
    centre = _somewhere(rng)
    y, x = centre[:, None] + rng.normal(0.0, spread, (2, count))  # (2, N)
    return Emitters(y, x, np.ones(count))


def clusters(rng: np.random.Generator) -> Emitters:
    """Puncta and clusters, some of them in pairs 2 to 5 px apart."""
    parts = [_cluster(rng) for _ in range(int(rng.integers(45, 75)))]
    for part in parts[::3]:
        angle, distance = rng.uniform(0.0, 2 * np.pi), rng.uniform(2.0, 5.0)
        y = part.y_px + distance * np.sin(angle)
        parts.append(Emitters(y, part.x_px + distance * np.cos(angle), part.brightness))
    return joined(parts)


def _bundle(rng: np.random.Generator, angle_rad: float) -> list[Emitters]:
    """Three to five parallel straight lines, 2 to 6 px apart."""
    across = np.array([np.cos(angle_rad), -np.sin(angle_rad)])
    start, spacing = _somewhere(rng, 20.0), rng.uniform(2.0, 6.0)
    length = rng.uniform(50.0, 110.0)
    middle = start - _straight(np.zeros(2), angle_rad, length / 2)[1]
    return [
        _labelled(_straight(middle + k * spacing * across, angle_rad, length), rng)
        for k in range(int(rng.integers(3, 6)))
    ]


def parallel_lines(rng: np.random.Generator) -> Emitters:
    """Bundles of parallel lines, each bundle in its own direction."""
    return joined([part for _ in range(4) for part in _bundle(rng, rng.uniform(0, np.pi))])


def crossing_lines(rng: np.random.Generator) -> Emitters:
    """Bundles that cross at 25 to 90 degrees."""
    angle, crossing = rng.uniform(0, np.pi), np.deg2rad(rng.uniform(25.0, 90.0))
    return joined([part for k in range(4) for part in _bundle(rng, angle + (k % 2) * crossing)])


def siemens_spokes(rng: np.random.Generator) -> Emitters:
    """Stars of thin spokes that run together in the middle. Training never sees this family."""
    parts = []
    for _ in range(3):
        centre, spokes, radius = (
            _somewhere(rng, 25.0),
            int(rng.integers(9, 19)),
            rng.uniform(22, 38),
        )
        for k in range(spokes):
            angle = 2 * np.pi * k / spokes
            inner = centre + _straight(np.zeros(2), angle, 3.0)[1]
            parts.append(_labelled(_straight(inner, angle, radius), rng))
    return joined(parts)


def _branches(
    rng: np.random.Generator, start_px: np.ndarray, angle_rad: float, length_px: float
) -> list[np.ndarray]:
    """Draw a branch and, from its end, two shorter ones, down to twigs of 5 px."""
    branch = _straight(start_px, angle_rad, length_px)
    if length_px < 5.0:
        return [branch]
    turns = rng.uniform(0.25, 0.8, 2) * (-1.0, 1.0)
    shrink = rng.uniform(0.6, 0.8, 2)
    twigs = [
        twig
        for turn, factor in zip(turns, shrink, strict=True)
        for twig in _branches(rng, branch[1], angle_rad + turn, length_px * factor)
    ]
    return [branch, *twigs]


def branching_tree(rng: np.random.Generator) -> Emitters:
    """Three trees of straight, forking branches. Training never sees this family."""
    paths = []
    for root in range(3):
        angle = 2 * np.pi * root / 3 + rng.uniform(0.0, 1.5)
        paths += _branches(rng, _somewhere(rng, 30.0), angle, rng.uniform(18.0, 26.0))
    return joined([_labelled(path, rng) for path in paths])


# ---------------------------------------------------------------------------- continuous structures


def _lattice(rng: np.random.Generator) -> np.ndarray:
    """Points (2, N) on a lattice of `LATTICE_PX`, each moved by up to a quarter of it."""
    axis = np.arange(-0.5 - MARGIN_PX, FIELD_PX - 0.5 + MARGIN_PX, LATTICE_PX)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij")).reshape(2, -1)
    return points + rng.uniform(-0.25, 0.25, points.shape) * LATTICE_PX


def _sampled(points_px: np.ndarray, density: np.ndarray) -> Emitters:
    """Turn a density at lattice points into emitters; what is below half a percent is left out."""
    seen = density > 0.005 * density.max()
    return Emitters(points_px[0, seen], points_px[1, seen], density[seen])


def _texture(
    rng: np.random.Generator, points_px: np.ndarray, shortest_px: float, longest_px: float
) -> np.ndarray:
    """Sum 24 plane waves of random direction and phase: mean 0, variance 1, (N,)."""
    total = np.zeros(points_px.shape[1])
    for _ in range(24):
        angle, phase = rng.uniform(0.0, 2 * np.pi, 2)
        wave = 2 * np.pi / rng.uniform(shortest_px, longest_px)
        along = points_px[0] * np.sin(angle) + points_px[1] * np.cos(angle)
        total += np.cos(wave * along + phase)
    return total / np.sqrt(12.0)


def _distance_to_segment(points_px: np.ndarray, segment_px: np.ndarray) -> np.ndarray:
    """Distance of each point (2, N) to a segment (2, 2), (N,)."""
    start, step = segment_px[0][:, None], (segment_px[1] - segment_px[0])[:, None]
    along = np.clip(np.sum((points_px - start) * step, axis=0) / np.sum(step**2), 0.0, 1.0)
    return np.hypot(*(points_px - start - along * step))


def bacteria(rng: np.random.Generator) -> Emitters:
    """Fill rods with round ends: the projection of labelled cytoplasm, with some texture."""
    points = _lattice(rng)
    density = np.zeros(points.shape[1])
    for _ in range(int(rng.integers(12, 22))):
        radius, length = rng.uniform(3.2, 5.5), rng.uniform(10.0, 30.0)
        rod = _straight(_somewhere(rng), rng.uniform(0, 2 * np.pi), length)
        chord = np.sqrt(np.clip(radius**2 - _distance_to_segment(points, rod) ** 2, 0.0, None))
        density += rng.uniform(0.5, 1.2) * chord
    return _sampled(points, density * np.exp(0.25 * _texture(rng, points, 5.0, 16.0)))


def _outline(
    rng: np.random.Generator, points_px: np.ndarray, radius_px: float, inset_px: float = 15.0
) -> np.ndarray:
    """Distance to a random centre over the distance of a wavy outline there: 1 on it, (N,)."""
    y, x = points_px - _somewhere(rng, inset_px)[:, None]
    angle = np.arctan2(y, x)
    outline = np.ones(points_px.shape[1])
    for wave in range(2, 7):
        outline += rng.uniform(0.0, 0.25 / wave) * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    return np.hypot(y, x) / (radius_px * outline)


def _granules(rng: np.random.Generator, points_px: np.ndarray, count: int) -> np.ndarray:
    """Round bodies of 1 to 2.5 px sigma, (N,)."""
    density = np.zeros(points_px.shape[1])
    for _ in range(count):
        y, x = points_px - _somewhere(rng)[:, None]
        density += rng.uniform(0.2, 0.8) * np.exp(-0.5 * (y**2 + x**2) / rng.uniform(1.0, 2.5) ** 2)
    return density


def cell_bodies(rng: np.random.Generator) -> Emitters:
    """Cells with a dome's profile, a nucleus (dark or bright), texture and granules."""
    points = _lattice(rng)
    density = np.zeros(points.shape[1])
    for _ in range(int(rng.integers(3, 7))):
        radius = rng.uniform(18.0, 38.0)
        place = _outline(rng, points, radius)
        dome = np.clip(1.0 - place**2, 0.0, None) ** 0.4
        nucleus = 1.0 / (1.0 + np.exp((place - rng.uniform(0.3, 0.45)) * radius))
        density += rng.uniform(0.5, 1.0) * dome * (1.0 + rng.uniform(-0.7, 0.8) * nucleus)
    density *= 1.0 + _granules(rng, points, int(rng.integers(30, 60)))
    return _sampled(points, density * np.exp(0.3 * _texture(rng, points, 4.0, 20.0)))


def membranes(rng: np.random.Generator) -> Emitters:
    """Cells of which the rim is bright, 1 to 2.5 px wide, over a faint filling with folds."""
    points = _lattice(rng)
    density = np.zeros(points.shape[1])
    for _ in range(int(rng.integers(3, 6))):
        radius, width = rng.uniform(18.0, 36.0), rng.uniform(1.0, 2.5)
        place = _outline(rng, points, radius)
        rim = np.exp(-0.5 * ((place - 1.0) * radius / width) ** 2)
        filling = 1.0 / (1.0 + np.exp((place - 1.0) * radius))
        folds = np.exp(-4.0 * np.abs(_texture(rng, points, 10.0, 30.0)))
        density += rng.uniform(0.6, 1.0) * (rim + filling * (0.2 + 0.5 * folds))
    return _sampled(points, density * np.exp(0.2 * _texture(rng, points, 5.0, 20.0)))


def perforated_sheet(rng: np.random.Generator) -> Emitters:
    """Punch round holes on a skewed lattice into a sheet. Training never sees this family."""
    points = _lattice(rng)
    slope = np.clip(1.0 + 0.25 * _texture(rng, points, 60.0, 200.0), 0.2, None)
    density = slope / (1.0 + np.exp((_outline(rng, points, 52.0, 45.0) - 1.0) * 40.0))
    pitch, skew = rng.uniform(11.0, 16.0), rng.uniform(0.2, 0.6)
    count = int(FIELD_PX / pitch)
    for row in range(count + 1):
        for column in range(-count, count + 1):
            centre = pitch * np.array([[row], [column + skew * row]])
            if -5.0 < centre[1, 0] < FIELD_PX + 5.0:
                hole = rng.uniform(2.0, 5.0) - np.hypot(*(points - centre))
                density *= 1.0 / (1.0 + np.exp(4.0 * hole))
    return _sampled(points, density)


Family = Callable[[np.random.Generator], Emitters]

THIN: dict[str, Family] = {
    "filaments": filaments,
    "rings": rings,
    "clusters": clusters,
    "parallel_lines": parallel_lines,
    "crossing_lines": crossing_lines,
    "siemens_spokes": siemens_spokes,
    "branching_tree": branching_tree,
}
CONTINUOUS: dict[str, Family] = {
    "bacteria": bacteria,
    "cell_bodies": cell_bodies,
    "membranes": membranes,
    "perforated_sheet": perforated_sheet,
}
UNSEEN_IN_TRAINING = frozenset({"siemens_spokes", "branching_tree", "perforated_sheet"})

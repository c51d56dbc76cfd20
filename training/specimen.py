"""Specimens: where the fluorescent label is.

Every family is a function ``(grid, rng) -> density`` that draws a brightness density, (H, W)
float32 with maximum 1, on the output grid (two pixels per camera pixel). Thin structures are drawn
as points along curves, between the pixels' centres and far less than a pixel apart; continuous ones
as areas.

Lengths are in output pixels. Where a number has no unit in biology it was chosen to cover what a
field of 128 camera pixels of some 65 to 200 nm shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.special import expit

Family = Callable[["Grid", np.random.Generator], np.ndarray]


class Grid(NamedTuple):
    """Height and width of a drawing area in output pixels."""

    height: int
    width: int

    def points(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw `n` uniform positions (y, x), (n, 2)."""
        return rng.uniform((0.0, 0.0), (self.height, self.width), (n, 2))

    def draw_number(self, per_megapixel: tuple[float, float], rng: np.random.Generator) -> int:
        """Draw a number of objects, at least 1, from a log-uniform range of areal densities."""
        low, high = np.log(per_megapixel)
        return max(1, round(np.exp(rng.uniform(low, high)) * self.height * self.width / 1e6))

    def deposit(self, points: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Share the weights of points (y, x), (n, 2), among the four nearest pixels' centres.

        The shares are those of bilinear interpolation, so that the centre of mass is the points'
        own: rounded to whole pixels, they would teach a network to round. Returns (H, W) float32.
        """
        inside = np.all((points >= 0) & (points < (self.height, self.width)), axis=1)
        position = points[inside] + 0.5  # in pixels of an image with a rim
        corner = np.floor(position).astype(np.int64)  # (n, 2)
        weight = np.ones(len(corner)) if weights is None else weights[inside]
        upper = position - corner  # (n, 2): share of the pixel beyond, along each axis
        rimmed = (self.height + 2, self.width + 2)
        total = np.zeros(rimmed[0] * rimmed[1])
        for dy, dx in np.ndindex(2, 2):
            share = np.abs(1 - dy - upper[:, 0]) * np.abs(1 - dx - upper[:, 1])
            index = (corner[:, 0] + dy) * rimmed[1] + corner[:, 1] + dx
            total += np.bincount(index, weight * share, total.size)
        return total.reshape(rimmed)[1:-1, 1:-1].astype(np.float32)

    def coordinates(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixel centres as broadcastable columns and rows: (H, 1) and (1, W)."""
        return np.arange(self.height)[:, None] + 0.5, np.arange(self.width)[None, :] + 0.5


def _unit_maximum(density: np.ndarray) -> np.ndarray:
    return (density / max(float(density.max()), 1e-12)).astype(np.float32)


def worm_like_chain(
    start: np.ndarray,
    length: float,
    persistence: float,
    rng: np.random.Generator,
    step: float = 0.2,
) -> np.ndarray:
    """Worm-like chain in the plane, (n, 2).

    The tangent's angle is a random walk of variance ``step / persistence`` per step, so that
    ``<cos(angle(s) - angle(0))> = exp(-s / (2 persistence))`` (Landau and Lifshitz, Statistical
    Physics, section 127, in two dimensions).
    """
    n = max(2, int(length / step))
    turns = rng.normal(0, np.sqrt(step / persistence), n)
    angle = rng.uniform(0, 2 * np.pi) + np.cumsum(turns)
    return start + np.cumsum(step * np.stack([np.sin(angle), np.cos(angle)], axis=1), axis=0)


def _normals(curve: np.ndarray) -> np.ndarray:
    """Unit vectors across a curve, one at each of its points (y, x), (n, 2)."""
    tangent = np.gradient(curve, axis=0)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1)
    return normal / (np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9)


def filaments(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Actin- and microtubule-like worm-like chains, some with uneven labelling along them."""
    density = np.zeros(grid, np.float32)
    persistence = np.exp(rng.uniform(np.log(20), np.log(2000)))
    patchiness = rng.choice([0.0, 0.5])
    for start in grid.points(grid.draw_number((150, 1500), rng), rng):
        curve = worm_like_chain(start, rng.uniform(40, 400), persistence, rng)
        label = ndimage.gaussian_filter1d(rng.normal(0, 1, len(curve)), 20)
        weights = rng.uniform(0.4, 1) * np.exp(4 * patchiness * label)
        density += grid.deposit(curve, weights)
    return _unit_maximum(density)


def filament_bundles(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Pairs and bundles of nearly parallel chains, 2 to 10 px apart."""
    density = np.zeros(grid, np.float32)
    for start in grid.points(grid.draw_number((100, 600), rng), rng):
        curve = worm_like_chain(start, rng.uniform(60, 300), rng.uniform(200, 3000), rng)
        normal = _normals(curve)
        distance, twist = rng.uniform(2, 10), rng.choice([0.0, 0.02])
        for strand in range(rng.integers(2, 4)):
            offset = (strand * distance) * np.cos(twist * np.arange(len(curve)))
            density += rng.uniform(0.6, 1) * grid.deposit(curve + normal * offset[:, None])
    return _unit_maximum(density)


def ribbons(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Evenly labelled strips, 0.5 to 12 px wide, and pairs of chains as wide as such a strip.

    Either is as likely, and behind a PSF they look nearly alike: what is shown as two must be two.
    """
    density = np.zeros(grid, np.float32)
    for start in grid.points(grid.draw_number((80, 500), rng), rng):
        curve = worm_like_chain(start, rng.uniform(60, 300), rng.uniform(200, 5000), rng)
        normal = _normals(curve)
        width, strand = rng.uniform(0.5, 12), rng.uniform(0, 1)
        offsets = _across(width)
        if rng.random() < 0.5:
            offsets = np.concatenate(
                [side * max(0, width - strand) / 2 + _across(strand) for side in (-1, 1)]
            )
        brightness = rng.uniform(0.4, 1) / len(offsets)
        for offset in offsets:
            density += brightness * grid.deposit(curve + offset * normal)
    return _unit_maximum(density)


def _across(width: float) -> np.ndarray:
    """Places across a strip of this width, half a pixel apart or less, around its middle."""
    count = max(1, int(np.ceil(2 * width)))
    return width * ((np.arange(count) + 0.5) / count - 0.5)


def rings(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Circles and ellipses of radius 2.5 to 15 px, labelled along the rim."""
    density = np.zeros(grid, np.float32)
    typical = rng.uniform(2.5, 10)
    for centre in grid.points(grid.draw_number((200, 2000), rng), rng):
        radius = typical * rng.uniform(0.7, 1.5)
        t = np.arange(0, 2 * np.pi, 0.2 / radius)
        axes = radius * np.array([1, rng.uniform(0.6, 1)])
        local = axes * np.stack([np.sin(t), np.cos(t)], axis=1)
        turn = rng.uniform(0, np.pi)
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        density += rng.uniform(0.4, 1) * grid.deposit(centre + local @ rotation)
    return _unit_maximum(density)


def puncta(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Single points and small clusters, with log-normal brightness."""
    centres = grid.points(grid.draw_number((500, 8000), rng), rng)
    members = rng.integers(1, rng.choice([2, 12]) + 1, len(centres))
    spread = rng.uniform(0.3, 2.5)
    points = np.repeat(centres, members, axis=0) + rng.normal(0, spread, (members.sum(), 2))
    return _unit_maximum(grid.deposit(points, rng.lognormal(0, 0.5, len(points))))


def beads(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """A few points far apart, of nearly equal brightness: what a PSF is measured on."""
    points = grid.points(grid.draw_number((60, 900), rng), rng)
    return _unit_maximum(grid.deposit(points, rng.uniform(0.7, 1, len(points))))


def _rod_frame(grid: Grid, rng: np.random.Generator) -> tuple[np.ndarray, float, float]:
    """Distance of every pixel from a random segment, with the segment's length and radius."""
    y, x = grid.coordinates()
    (cy, cx), angle = grid.points(1, rng)[0], rng.uniform(0, np.pi)
    radius = rng.uniform(4, 12)
    length = radius * rng.uniform(1, 6)
    along = (y - cy) * np.sin(angle) + (x - cx) * np.cos(angle)
    across = -(y - cy) * np.cos(angle) + (x - cx) * np.sin(angle)
    along = along - np.clip(along, -length / 2, length / 2)
    return np.hypot(along, across), length, radius


def filled_rods(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """E. coli-like spherocylinders, label throughout: brightness goes with the thickness."""
    density = np.zeros(grid, np.float32)
    for _ in range(grid.draw_number((100, 800), rng)):
        distance, _, radius = _rod_frame(grid, rng)
        thickness = np.sqrt(np.clip(1 - (distance / radius) ** 2, 0, None))
        texture = _texture(grid, rng, rng.choice([0.0, 0.4]), (1.5, 20))
        density += rng.uniform(0.5, 1) * thickness * texture
    return _unit_maximum(density)


def membrane_rods(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """E. coli-like spherocylinders, label in the envelope: projected shells."""
    density = np.zeros(grid, np.float32)
    for _ in range(grid.draw_number((100, 700), rng)):
        distance, _, radius = _rod_frame(grid, rng)
        outer = np.sqrt(np.clip(1 - (distance / radius) ** 2, 0, None))
        inner = np.sqrt(np.clip(1 - (distance / (0.85 * radius)) ** 2, 0, None))
        density += rng.uniform(0.5, 1) * (outer - 0.85 * inner)
    return _unit_maximum(density)


def vesicles(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Filled discs of 2 to 10 px radius."""
    density = np.zeros(grid, np.float32)
    y, x = grid.coordinates()
    for cy, cx in grid.points(grid.draw_number((200, 2000), rng), rng):
        r2 = ((y - cy) ** 2 + (x - cx) ** 2) / rng.uniform(2, 10) ** 2
        density += rng.uniform(0.4, 1) * np.sqrt(np.clip(1 - r2, 0, None))
    return _unit_maximum(density)


def cells(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Large bodies with a soft outline, texture inside, and often a dark nucleus."""
    outline = _field(grid, rng, rng.uniform(12, 40))
    body = expit(rng.uniform(4, 20) * (outline - rng.uniform(-0.5, 0.7)))
    if rng.random() < 0.5:
        nucleus = _field(grid, rng, rng.uniform(8, 16))
        body *= 1 - rng.uniform(0.3, 0.9) * expit(12 * (nucleus - 1))
    return _unit_maximum(body * _texture(grid, rng, rng.uniform(0.1, 0.8), (0.7, 30)))


def rounded_cells(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Rounded bodies, bright where they are thick, with organelles and a nucleus, hardly grainy."""
    density = np.zeros(grid, np.float32)
    y, x = grid.coordinates()
    bend = [rng.uniform(0, 6) * _field(grid, rng, rng.uniform(10, 30)) for _ in range(2)]
    for cy, cx in grid.points(grid.draw_number((60, 400), rng), rng):
        turn, axes = rng.uniform(0, np.pi), rng.uniform(16, 80) * np.array([1, rng.uniform(0.5, 1)])
        v, u = y + bend[0] - cy, x + bend[1] - cx
        along, across = u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)
        place = np.hypot(along / axes[0], across / axes[1])  # 1 on the outline
        thickness = np.clip(1 - place**2, 0, None) ** rng.uniform(0.3, 1.0)
        nucleus = expit((rng.uniform(0.2, 0.6) - place) * axes[1])
        density += rng.uniform(0.4, 1) * thickness * (1 + rng.uniform(-0.8, 1.0) * nucleus)
    organelles = vesicles(grid, rng) if rng.random() < 0.5 else np.zeros(grid, np.float32)
    density *= 1 + rng.uniform(0, 1.5) * ndimage.gaussian_filter(organelles, rng.uniform(0.5, 3))
    return _unit_maximum(density * _texture(grid, rng, rng.uniform(0, 0.5), (4, 40)))


def tissue(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Edge-to-edge texture with structure at every scale (power spectrum falling as a power)."""
    frequency = np.hypot(np.fft.fftfreq(grid.height)[:, None], np.fft.rfftfreq(grid.width)[None])
    amplitude = (frequency + 1 / max(grid)) ** -rng.uniform(1.0, 2.0)
    noise = np.fft.rfft2(rng.normal(0, 1, grid))
    field = np.fft.irfft2(noise * amplitude, s=grid)
    return _unit_maximum(np.exp(rng.uniform(0.3, 1.0) * field / field.std()))


def voids(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Label all over the field but in bodies, dark or dim: what a stain leaves out.

    The bodies are those of another family, in half of the fields with an edge of 0.5 to 3 px. In
    half of the fields the label ends somewhere, as a tissue does, or a cell larger than the field.
    """
    bodies = VOID_BODIES[rng.integers(len(VOID_BODIES))](grid, rng)
    bodies = np.minimum(np.exp(rng.uniform(0, 2.5)) * bodies, 1)
    if rng.random() < 0.5:
        bodies = ndimage.gaussian_filter(bodies, rng.uniform(0.5, 3))
    depth = 1.0 if rng.random() < 0.6 else rng.uniform(0.3, 1)
    label = np.exp(rng.uniform(0, 0.5) * _field(grid, rng, rng.uniform(20, 80)))
    if rng.random() < 0.5:
        outline = _field(grid, rng, rng.uniform(12, 40)) + rng.uniform(0, 2)
        label = label * expit(rng.uniform(4, 40) * outline)
    label = label * _texture(grid, rng, rng.choice([0.0, 0.3]), (1.5, 20))
    return _unit_maximum(label * np.maximum(1 - depth * bodies, 0))


def leaves(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Flat shapes of all sizes, one over another, each as bright as it happens to be, or dark.

    The dead leaves model: its edges are as sharp, and as near to each other, as those of pictures
    of anything (Lee, Mumford, Huang, Int. J. Comput. Vis. 41, 35, 2001), and what was trained on
    it alone serves for photographs (Achddou, Gousseau, Ladjal, SSVM, LNCS 12679, 2021). The radii,
    3 to 60 px, have a probability density of ``r**-3``. In three tenths of the fields some of the
    shapes are gratings, in a fifth all are, with radii from 12 px on.
    """
    density = np.zeros(grid, np.float32)
    y, x = grid.coordinates()
    dark, dimmest = rng.uniform(0.1, 0.7), rng.uniform(0.1, 1)
    gratings = rng.choice([0.0, 0.3, 1.0], p=[0.5, 0.3, 0.2])
    least = 12.0 if gratings == 1 else 3.0
    for cy, cx in grid.points(grid.draw_number((3000, 30000), rng), rng):
        radius, flat = rng.uniform(60.0**-2, least**-2) ** -0.5, rng.uniform(0.2, 1)
        turn = rng.uniform(0, np.pi)
        near = _around((cy, cx), np.sqrt(2) * (radius + 3))
        at_y, at_x = y[near[0]] - cy, x[:, near[1]] - cx
        u = at_x * np.cos(turn) + at_y * np.sin(turn)
        v = at_y * np.cos(turn) - at_x * np.sin(turn)
        if rng.random() < 0.5:  # an ellipse, else a box
            depth = (radius - np.hypot(u, v / flat)) * flat
        else:
            depth = np.minimum(radius - np.abs(u), flat * radius - np.abs(v))
        shape = np.clip(depth + 0.5, 0, 1)  # depth is px from the edge; at an ellipse's tips, less
        brightness = 0.0 if rng.random() < dark else rng.uniform(dimmest, 1)
        bars: np.ndarray | float = 1.0
        if rng.random() < gratings:
            bars, brightness = _bars(u, rng), rng.uniform(dimmest, 1)
        density[near] += shape * (brightness * bars - density[near])
    return _unit_maximum(density)


def _around(point: tuple[float, float], reach: float) -> tuple[slice, slice]:
    """Say where in a field is what lies this far along both axes from a point at most, (y, x)."""
    along_y, along_x = (
        slice(max(0, int(np.floor(at - reach))), max(0, int(np.ceil(at + reach)) + 1))
        for at in point
    )
    return along_y, along_x


def _bars(across: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Even bars of 1 with dark between them, where `across` is the place across them in px."""
    period = np.exp(rng.uniform(np.log(5), np.log(30)))
    from_middle = np.abs(across / period % 1 - 0.5) * period
    return np.asarray(np.clip(rng.uniform(0.15, 0.35) * period - from_middle + 0.5, 0, 1))


def _field(grid: Grid, rng: np.random.Generator, correlation: float) -> np.ndarray:
    """Gaussian random field of unit variance and a correlation length in px, (H, W)."""
    field = ndimage.gaussian_filter(rng.normal(0, 1, grid), correlation, mode="wrap")
    return (field - field.mean()) / (field.std() + 1e-12)


def _texture(
    grid: Grid,
    rng: np.random.Generator,
    depth: float,
    correlation: tuple[float, float] = (0.7, 8.0),
) -> np.ndarray:
    """Positive texture around 1, (H, W).

    `depth` is the standard deviation of its logarithm, `correlation` the range of its length.
    """
    if depth == 0:
        return np.ones(grid, np.float32)
    return np.exp(depth * _field(grid, rng, np.exp(rng.uniform(*np.log(correlation)))))


THIN: dict[str, Family] = {
    "filaments": filaments,
    "filament_bundles": filament_bundles,
    "rings": rings,
    "puncta": puncta,
    "beads": beads,
}
CONTINUOUS: dict[str, Family] = {
    "filled_rods": filled_rods,
    "membrane_rods": membrane_rods,
    "vesicles": vesicles,
    "cells": cells,
    "rounded_cells": rounded_cells,
    "tissue": tissue,
}
OTHERS: dict[str, Family] = {"ribbons": ribbons, "voids": voids, "leaves": leaves}
"""Neither thin nor continuous. `ForwardModelSettings` has a fraction for each, as
`ribbons_fraction`; a later one is drawn instead of an earlier one, so that new ones go last."""
FAMILIES: dict[str, Family] = THIN | CONTINUOUS | OTHERS
VOID_BODIES: tuple[Family, ...] = (vesicles, filled_rods, rounded_cells)
"""What `voids` leaves dark."""

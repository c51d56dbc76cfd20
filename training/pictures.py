"""Reconstructions side by side, to be looked at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from device.model import Step
from training.baselines import DECONVOLUTION, REFERENCE
from training.frozen import FrozenStack
from training.reports import save_figure

Images = dict[str, np.ndarray]


def save_panel(path: Path, rows: Mapping[str, Images]) -> None:
    """Draw images side by side: a row for each stack, a column for each method.

    Parameters
    ----------
    path : Path
        PNG to write.
    rows : mapping of str to dict of str to ndarray
        Row's name to column's name to image; all rows have the same columns.
    """
    from matplotlib.figure import Figure  # slow, and only this needs it

    columns = list(next(iter(rows.values())))
    figure = Figure(figsize=(3 * len(columns), 3.2 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, column in zip(line, columns, strict=True):
            image = images[column]
            low, high = np.percentile(image, (1.0, 99.9))
            axis.imshow(image, cmap="magma", vmin=low, vmax=high, interpolation="nearest")
            axis.set_title(f"{name}\n{column}", fontsize=7)
            axis.set_axis_off()
    save_figure(path, figure)


def panel_methods(steps: Iterable[str]) -> list[str]:
    """Name what a picture shows: mean, deconvolution, and ours in window mode."""
    return [REFERENCE, DECONVOLUTION, *(f"{name}, window" for name in steps)]


class Panels:
    """Collects the first stack of every family of each kind for the pictures."""

    def __init__(self, steps: Mapping[str, Step]) -> None:
        self._steps = steps
        self._rows: dict[str, dict[str, Images]] = {}
        self._families: set[str] = set()

    def keep(self, stack: FrozenStack, images: Images) -> None:
        """Take a stack's images in, if its family is not there yet."""
        recipe = stack.recipe
        if recipe.family in self._families:
            return
        self._families.add(recipe.family)
        shown = {name: images[name] for name in panel_methods(self._steps)}
        self._rows.setdefault(recipe.kind, {})[recipe.name] = shown | {"truth": stack.target}

    def save(self, folder: Path) -> None:
        """Write ``panel-KIND.png`` for each kind."""
        for kind, rows in self._rows.items():
            save_panel(folder / f"panel-{kind}.png", rows)

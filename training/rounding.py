"""Weights on int8's grid, rounded so that what they make changes least.

Rounded one by one to the nearest step, the weights of a layer err together, and layer after layer
of the head adds to it (docs/experiments.md). Here they are rounded one after another, and what each
errs by is made good by those that are still free, as far as the layer's inputs, seen over simulated
stacks, allow (GPTQ: Frantar et al., ICLR 2023; Hassibi and Stork's optimal brain surgeon, NIPS
1992).

The converter's grid is 127 steps to the largest weight of each output channel. The largest is
rounded first, to itself, and none may exceed it, so that the converter finds the grid again and
changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from training.network import FOLD, MIRRORS, FoldedConv2D, Step, mirror_axes, mirrored_channels

STEPS = 127
POSITIONS = 2000  # pixels of each image that a layer's inputs are taken around
DAMPING = 0.01  # of the mean square input: what was hardly seen is not counted upon
TINY = 1e-30

Tensors = Mapping[str, np.ndarray]


def round_weights(step: Step, samples: Iterable[Tensors]) -> None:
    """Put the kernels of all layers on int8's grid.

    Parameters
    ----------
    step : Step
        The network; its kernels are changed, but for the interpolation's, which is done in float.
    samples : iterable of dict
        Inputs of the step, NHWC.
    """
    layers = step.convolutions
    seen = {layer.name: Inputs(layer) for layer in layers}
    with _watched(layers, seen):
        for sample in samples:
            step(sample)
    for layer in layers:
        kernel = keras.ops.convert_to_numpy(layer.kernel)
        layer.kernel.assign(rounded(kernel, seen[layer.name].squares, layer.channels))


class Inputs:
    """Second moments of what a layer's kernel is laid over, seen so far.

    Attributes
    ----------
    squares : ndarray
        (K K C, K K C): sum of the products of any two of the inputs under the kernel, over pixels
        and the four mirror images.
    """

    def __init__(self, layer: FoldedConv2D) -> None:
        self.size_px, self.apart_px = layer.size_px, layer.apart_px
        self.channels = layer.channels
        taps = self.size_px**2 * sum(self.channels)
        self.squares = np.zeros((taps, taps))
        self._rng = np.random.default_rng(0)

    def add(self, x: Any) -> None:
        """Take the layer's input, or its list of inputs, folded, of one image."""
        unfolded = [
            keras.ops.convert_to_numpy(keras.ops.depth_to_space(each, FOLD))[0]
            for each in (x if isinstance(x, list) else [x])
        ]  # (H, W, C) each
        for mirror in range(MIRRORS):
            mirrored = [
                np.flip(image, mirror_axes(mirror))[..., mirrored_channels(image.shape[-1], mirror)]
                for image in unfolded
            ]
            under = self._under_the_kernel(np.concatenate(mirrored, axis=-1))
            self.squares += under.T @ under

    def _under_the_kernel(self, image: np.ndarray) -> np.ndarray:
        """What lies under the kernel at some pixels of an image, (H, W, C): (n, K K C)."""
        reach = self.size_px // 2 * self.apart_px
        padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * reach + 1,) * 2, (0, 1))
        windows = windows[..., :: self.apart_px, :: self.apart_px]
        y, x = (self._rng.integers(0, length, POSITIONS) for length in image.shape[:2])
        taken = windows[y, x].transpose(0, 2, 3, 1)  # (n, K, K, C)
        return taken.reshape(POSITIONS, -1).astype(np.float64)


@contextmanager
def _watched(layers: Iterable[FoldedConv2D], seen: Mapping[str, Inputs]) -> Iterator[None]:
    """Have the layers tell their inputs while they are called."""

    def watching(layer: FoldedConv2D) -> Any:
        own = layer.call

        def call(x: Any, *arguments: Any, **options: Any) -> Any:
            seen[layer.name].add(x)
            return own(x, *arguments, **options)

        return call

    for layer in layers:
        layer.call = watching(layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.call


def rounded(kernel: np.ndarray, squares: np.ndarray, channels: list[int]) -> np.ndarray:
    """Round a kernel, (K, K, C, n), by the second moments of what it is laid over.

    Parameters
    ----------
    kernel : ndarray
        Of several inputs, their channels one after the other.
    squares : ndarray
        See `Inputs`.
    channels : list of int
        Of each input: an output channel has a grid for each.
    """
    of_input = np.repeat(np.arange(len(channels)), channels)
    of_input = np.broadcast_to(of_input, kernel.shape[:3]).ravel()
    damping = max(DAMPING * float(np.mean(np.diag(squares))), TINY)
    moments = squares + damping * np.eye(len(squares))
    columns = kernel.reshape(-1, kernel.shape[-1]).T.astype(np.float64)  # (n, K K C)
    found = [_rounded(column, moments, of_input) for column in columns]
    return np.stack(found, axis=1).reshape(kernel.shape).astype(np.float32)


def _rounded(weights: np.ndarray, moments: np.ndarray, of_input: np.ndarray) -> np.ndarray:
    """Round the weights of an output channel, (K K C,)."""
    largest = [
        int(np.argmax(np.where(of_input == k, np.abs(weights), -1))) for k in np.unique(of_input)
    ]
    grid = np.abs(weights[largest])[of_input] / STEPS
    seldom_last = [k for k in np.argsort(-np.diag(moments)) if k not in largest]
    order = np.array([*largest, *seldom_last])
    left, steps = weights[order], np.maximum(grid[order], TINY)
    factor = np.linalg.cholesky(np.linalg.inv(moments[np.ix_(order, order)])).T  # upper
    for k in range(len(left)):
        near = np.clip(np.rint(left[k] / steps[k]), -STEPS, STEPS) * steps[k]
        left[k + 1 :] -= (left[k] - near) / factor[k, k] * factor[k, k + 1 :]
        left[k] = near
    back = np.empty_like(left)
    back[order] = left
    return back

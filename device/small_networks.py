"""Small dense networks that NumPy computes: what judges frames and images beside the step."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

LAYERS = 3


@dataclass(frozen=True)
class SmallNetworks:
    """Networks of three layers, and the scale of what they are given.

    Attributes
    ----------
    centre, spread : ndarray
        Mean and standard deviation of the features in the training, (n,).
    kernels, biases : tuple of ndarray
        Of the layers, (..., inputs, outputs) and (..., outputs).
    """

    centre: np.ndarray
    spread: np.ndarray
    kernels: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]

    def save(self) -> bytes:
        """Write them as the content of an npz file."""
        arrays: dict[str, Any] = {"centre": self.centre, "spread": self.spread}
        arrays |= {f"kernel_{k}": kernel for k, kernel in enumerate(self.kernels)}
        arrays |= {f"bias_{k}": bias for k, bias in enumerate(self.biases)}
        content = io.BytesIO()
        np.savez(content, **arrays)
        return content.getvalue()

    @classmethod
    def load(cls, content: bytes, what: str, tried: Callable[[Self], object]) -> Self:
        """Read what `save` wrote.

        Parameters
        ----------
        content : bytes
            Of the file.
        what : str
            What it should hold, for who reads that it does not.
        tried : callable
            Computes something with them, which fails where they are those of another use.

        Raises
        ------
        ValueError
            It is something else, or damaged.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                kernels, biases = (
                    tuple(file[f"{name}_{k}"] for k in range(LAYERS)) for name in ("kernel", "bias")
                )
                found = cls(file["centre"], file["spread"], kernels, biases)
            tried(found)
        except (KeyError, OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"it holds no {what} ({error})") from error
        return found

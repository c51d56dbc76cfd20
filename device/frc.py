"""Which detail of an image repeats: Fourier ring correlation, and weights by it.

The frames' odd and even half are reconstructed apart. What the two images have in common at a
spatial frequency is the specimen's, or a fault that both share; what they have not is noise, and
what the network made of noise. Where they correlate by 1/3, half of the image of all frames is
noise (its own correlation with the truth would be sqrt(1/2): Rosenthal and Henderson, J. Mol. Biol.
333, 721, 2003); finer detail than that is damped. Nothing is sharpened.

Rings are taken of the cosine transform: that of the image continued by its mirror image, so that
the edges of the field do not correlate.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

BANDS = 64  # of spatial frequency, from 0 to 0.5 cycles per output px; fewer of a small image
LEAST_PX_PER_BAND = 4  # of the image's shorter side
NEIGHBOURS = 1  # bands to either side that are summed with one
LEAST_FRAMES = 8  # a half of fewer frames would tell of itself alone


@dataclass(frozen=True, slots=True)
class FrcSettings:
    """How much is left of what does not repeat; these numbers travel in the model's manifest.

    Attributes
    ----------
    none, full : float
        Correlation up to which a band is damped to `floor`, and from which on it is left as it is;
        the weight grows evenly between.
    floor : float
        Weight of what does not repeat. It is not 0: a sharp end of the spectrum rings, and a band
        may hold one true detail among much noise.
    """

    none: float = 0.25
    full: float = 0.42
    floor: float = 0.2


def ring_correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Correlate two images band by band.

    Parameters
    ----------
    one, other : ndarray
        (H, W), both even and at least `LEAST_PX_PER_BAND`.

    Returns
    -------
    ndarray
        (n,) float64, from -1 to 1; 0 where a band is empty. The n bands share 0 to 0.5 cycles per
        px evenly; the last one holds the corners beyond, too.
    """
    frequency = _frequency(one.shape)
    count = max(1, min(BANDS, min(one.shape) // LEAST_PX_PER_BAND))
    band = np.minimum((frequency * 2 * count).astype(int), count - 1).ravel()
    a, b = (cv2.dct(np.ascontiguousarray(image, np.float32)) for image in (one, other))
    a[0, 0] = b[0, 0] = 0  # the brightness as a whole

    def summed(values: np.ndarray) -> np.ndarray:
        totals = np.bincount(band, values.ravel(), count)
        around = np.ones(2 * NEIGHBOURS + 1)
        return np.convolve(np.pad(totals, NEIGHBOURS, mode="edge"), around, mode="valid")

    power = np.sqrt(summed(a * a) * summed(b * b))
    return np.divide(summed(a * b), power, out=np.zeros(count), where=power > 0)


def weights(correlation: np.ndarray, settings: FrcSettings) -> np.ndarray:
    """Say how much of each band is shown, (n,), from the floor to 1; see `FrcSettings`."""
    repeats = np.clip((correlation - settings.none) / (settings.full - settings.none), 0, 1)
    return settings.floor + (1 - settings.floor) * repeats


def of_cosines(of_bands: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Interpolate the weights of bands, (n,), to each cosine of an image, (H, W) float32.

    They may be of images of another size. The weight of the mean is 1.
    """
    middles = (np.arange(len(of_bands)) + 0.5) / (2 * len(of_bands))
    weight = np.interp(_frequency(shape), [0, *middles], [1, *of_bands])
    return weight.astype(np.float32)


def weighed(image: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weigh the spatial frequencies of an image.

    Parameters
    ----------
    image : ndarray
        (H, W), both even; not below 0.
    weight : ndarray
        (H, W) float32; see `of_cosines`.

    Returns
    -------
    ndarray
        (H, W) float32, not below 0.
    """
    shown = cv2.idct(cv2.dct(np.ascontiguousarray(image, np.float32)) * weight)
    return np.maximum(shown, 0)


def _frequency(shape: tuple[int, ...]) -> np.ndarray:
    """Spatial frequency of each cosine, cycles per px, (H, W)."""
    along = [np.arange(length) / (2 * length) for length in shape]
    return np.hypot(*np.meshgrid(*along, indexing="ij"))

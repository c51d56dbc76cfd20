"""What is filtered out of the network's image: its own lattice, and detail that does not repeat.

**Lattice.** Each output px is made by one of four kernels, that of its phase in the enlarging, and
what these differ by repeats every two px. The notch takes it away: ``1 - sin(pi f)^(2 n)`` along
each axis, f in cycles per px, is 0 at 1/2 and 1 for all that is coarse. Camera pixels cannot tell
so fine a structure from coarser ones. (For the lattice and another remedy, a moving average, see
Sugawara et al., ICIP 2018.) What the network shows as dark stays dark under the notch: it rings
where brightness ends at 0, and would draw a faint line beside a bright one.

**Detail that does not repeat.** The odd and the even frames are reconstructed apart. What the two
images have in common at a spatial frequency is the specimen's, or a fault that both share; what
they have not is mostly noise, and what the network made of noise; a blink that was in one half
alone is not told from it. Where they correlate by 1/3, half of the image of all frames is noise
(its own correlation with the truth would be sqrt(1/2): Rosenthal and Henderson, J. Mol. Biol. 333,
721, 2003); finer detail than that is damped. Nothing is sharpened. That damping raises the
correlation of odd and even frames by itself, so that this tells how much repeats of what is shown,
not how well the network works. A stream is judged by a window of its frames, the first it has and
later one that is up to eight windows of images old, though its state has seen more: it is damped a
little more than it had to be.

All is done on the cosine transform: that of the image continued by its mirror image, so that no
structure is changed at the border of the field. A lattice, whose mirror image is out of step, is
left in part in the outermost 5 px; and so it is where the network shows every second px as dark.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

BANDS = 64  # of spatial frequency, from 0 to 0.5 cycles per output px; fewer of a small image
LEAST_PX_PER_BAND = 4  # of the image's shorter side
NEIGHBOURS = 1  # bands to either side that are summed with one
LEAST_FRAMES = 8  # of both halves together; fewer tell too little of the others


@dataclass(frozen=True, slots=True)
class OutputFilterSettings:
    """What is taken out, and how much of it; these numbers travel in the model's manifest.

    Attributes
    ----------
    notch_order : int
        n of the lattice's notch; with 8, 99.6 % are left of what repeats every four output px.
    none, full : float
        Correlation of odd and even frames up to which a band is damped to `floor`, and from which
        on it is left as it is; the weight grows linearly between.
    floor : float
        Weight of what does not repeat. It is not 0: a sharp end of the spectrum rings, and a band
        may hold one true detail among much noise.
    """

    notch_order: int = 8
    none: float = 1 / 7
    full: float = 1 / 3
    floor: float = 0.2


@lru_cache(maxsize=2)
def notch(shape: tuple[int, int], order: int) -> np.ndarray:
    """Make the weights that take the lattice away, of each cosine of an image, (H, W) float32."""
    along = (1 - np.sin(np.pi * _cycles_per_px(length)) ** (2 * order) for length in shape)
    weight = np.outer(*along).astype(np.float32)
    weight.flags.writeable = False
    return weight


def ring_correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Correlate two images band by band.

    Parameters
    ----------
    one, other : ndarray
        (H, W), of one shape, H and W even.

    Returns
    -------
    ndarray
        (n,) float64, from -1 to 1; 0 where a band is empty. The n bands share 0 to 0.5 cycles per
        px in equal parts; the last one holds the corners beyond, too. Each is summed with its
        `NEIGHBOURS`, the first and the last one with themselves in place of those they lack.
    """
    count = max(1, min(BANDS, min(one.shape) // LEAST_PX_PER_BAND))
    band = _bands(one.shape, count)
    a, b = (cv2.dct(np.ascontiguousarray(image, np.float32)) for image in (one, other))
    a[0, 0] = b[0, 0] = 0  # the brightness as a whole

    def summed(values: np.ndarray) -> np.ndarray:
        totals = np.bincount(band, values.ravel(), count)
        around = np.ones(2 * NEIGHBOURS + 1)
        return np.convolve(np.pad(totals, NEIGHBOURS, mode="edge"), around, mode="valid")

    power = np.sqrt(summed(a * a) * summed(b * b))
    return np.divide(summed(a * b), power, out=np.zeros(count), where=power > 0)


def weights(correlation: np.ndarray, settings: OutputFilterSettings) -> np.ndarray:
    """Say how much of each band is shown, (n,), from the floor to 1; see `OutputFilterSettings`."""
    repeats = np.clip((correlation - settings.none) / (settings.full - settings.none), 0, 1)
    return settings.floor + (1 - settings.floor) * repeats


def of_cosines(of_bands: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Interpolate the weights of bands, (n,), to each cosine of an image, (H, W) float32.

    They may be of images of another size. The weight of the mean is 1, and up to the middle of the
    first band it goes over to that of this.
    """
    middles = (np.arange(len(of_bands)) + 0.5) / (2 * len(of_bands))
    weight = np.interp(_frequency(shape), [0, *middles], [1, *of_bands])
    return weight.astype(np.float32)


def without_lattice(image: np.ndarray, settings: OutputFilterSettings) -> np.ndarray:
    """Take the lattice out of an image, but leave px that are 0 so.

    Arguments and result are those of `weighed`.
    """
    shown = weighed(image, notch(image.shape, settings.notch_order))
    return np.where(image > 0, shown, np.float32(0))


def weighed(image: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weigh the spatial frequencies of an image.

    Parameters
    ----------
    image : ndarray
        (H, W), both even; not below 0.
    weight : ndarray
        (H, W) float32; see `of_cosines` and `notch`.

    Returns
    -------
    ndarray
        (H, W) float32, not below 0.

    Raises
    ------
    cv2.error
        H or W is odd.
    """
    shown = cv2.idct(cv2.dct(np.ascontiguousarray(image, np.float32)) * weight)
    return np.maximum(shown, 0)


@lru_cache(maxsize=2)
def _bands(shape: tuple[int, ...], count: int) -> np.ndarray:
    """Number of the band of each cosine, (H x W,) uint8."""
    band = np.minimum((_frequency(shape) * 2 * count).astype(np.uint8), count - 1).ravel()
    band.flags.writeable = False
    return band


def _frequency(shape: tuple[int, ...]) -> np.ndarray:
    """Spatial frequency of each cosine, cycles per px, (H, W)."""
    along = [_cycles_per_px(length) for length in shape]
    return np.hypot(*np.meshgrid(*along, indexing="ij"))


def _cycles_per_px(length: int) -> np.ndarray:
    """Spatial frequency of each cosine along an axis, (length,)."""
    return np.arange(length) / (2 * length)

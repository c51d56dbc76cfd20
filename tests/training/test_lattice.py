"""A pattern of the grid is found, noise is not one, and a shift is told from a change."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from training import baselines, frozen, lattice
from training.baselines import REFERENCE


def noise(shape: tuple[int, int] = (256, 256), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_noise_has_no_peak() -> None:
    """Catches a spectrum that is not averaged: one value in eight would be above 3 by chance.

    20 images gave largest ratios of 1.13 to 1.52.
    """
    for seed in range(5):
        found = lattice.peaks(noise(seed=seed))
        assert len(found) == 15
        assert 1.0 < max(peak.ratio for peak in found.values()) < 2.0
        assert min(peak.ratio for peak in found.values()) > 0.5


@pytest.mark.parametrize(("k", "el"), [(1, 0), (0, 2), (1, 3), (2, 2), (2, 1)])
def test_a_pattern_stands_at_its_own_frequency(k: int, el: int) -> None:
    """Catches axes exchanged, a ratio of the wrong bin, and a contrast of another size.

    A wave of amplitude a has the variance a^2 / 2, in two bins unless k and l are 0 or 2; the
    tiles' power fluctuates by some 10 %.
    """
    y, x = np.indices((256, 256))
    wave = 0.5 * np.cos(2 * np.pi * (k * y + el * x) / 4)
    found = lattice.peaks(noise() + wave)
    twin = (-k % 4, -el % 4)
    above = {where for where, peak in found.items() if peak.ratio > 3}
    assert above == {(k, el), twin}
    variance = wave.var() / (1 + wave.var())
    share = found[k, el].contrast ** 2 * len(above)
    assert share == pytest.approx(variance, rel=0.25)


def test_a_constant_image_and_a_small_one() -> None:
    """Catches a division by zero, and a crash inside of the tiling."""
    assert all(peak.ratio == 0.0 for peak in lattice.peaks(np.full((64, 64), 7.0)).values())
    with pytest.raises(ValueError, match="smaller than a tile"):
        lattice.peaks(noise((63, 80)))


def frames() -> np.ndarray:
    return frozen.generate(frozen.recipes()[9], 4).frames[:, :80, :72]


@pytest.mark.parametrize("shift", lattice.SHIFTS_PX)
def test_a_method_that_moves_with_its_input_has_no_error(shift: tuple[int, int]) -> None:
    """Catches a comparison of other places: half a pixel of the grid is below 40 dB here."""
    assert lattice.shift_db(baselines.mean, frames(), shift) > 100.0

    def off_by_one(stack: np.ndarray) -> np.ndarray:
        image = baselines.mean(stack)
        return np.roll(image, 1, axis=0) if int(stack[0, 0, 0]) % 2 else image

    both = frames()
    both[0, 0, 0] |= 1  # the two cuts differ in their first pixel
    both[0, shift[0], shift[1]] &= 0xFFFE
    assert lattice.shift_db(off_by_one, both, shift) < 40.0


def test_a_pattern_of_known_size_has_the_psnr_it_must() -> None:
    """Catches a peak or a logarithm of the wrong kind: 1 % of the peak is 40 dB."""

    def striped(stack: np.ndarray) -> np.ndarray:
        image = baselines.mean(stack)
        inside = image[lattice.RIM_OUTPUT_PX : -lattice.RIM_OUTPUT_PX]
        sign = np.where(np.arange(image.shape[0]) // 2 % 2, 1.0, -1.0)[:, None]
        return image + 0.005 * inside.max() * sign

    assert lattice.shift_db(striped, frames(), (1, 0)) == pytest.approx(40.0, abs=1.0)


def test_what_is_reported_is_the_worst(tmp_path: Path) -> None:
    """Catches the best taken for the worst, a lost stack, and a file without its checksum."""
    path = tmp_path / "measured.tif"
    tifffile.imwrite(
        path, frozen.generate(frozen.recipes()[13], 30).frames, photometric="minisblack"
    )
    chosen = [frozen.recipes()[9]]
    cache = tmp_path / "cache"
    content = lattice.measure([], 0, path, cache, chosen)
    assert content["measured"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    (name,) = content["stacks"]
    assert name == chosen[0].name
    other = json.loads(json.dumps(content["stacks"][name]))
    other["peak"][REFERENCE]["folding"] |= {"ratio": 99.0, "contrast": 0.5, "quarters": [1, 2]}
    content["stacks"]["another"] = other
    lattice.report(content, tmp_path)
    text = (tmp_path / "lattice.md").read_text()
    assert "99.00 (50.00%), (1/4, 2/4), another" in text
    assert "| measured | RL blind, 20 |" in text
    assert json.loads((tmp_path / "lattice.json").read_text()) == content


def test_the_lowest_shift_of_a_model_is_shown() -> None:
    """Catches a mean where the lowest was asked for."""
    stacks = {"a": {"shift_db": {"m": 50.0}}, "b": {"shift_db": {"m": 39.0}}}
    assert lattice._worst_shift(stacks, "m") == "39.0 (b); mean 44.5"

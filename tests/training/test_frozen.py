"""The frozen test set stays what it is, and is what it says.

`frozen_pins.json` holds rounded statistics of every stack. It is written anew, with a new
`frozen.VERSION` and the old scores kept beside the new ones, by

    python tests/training/test_frozen.py
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from training import frozen, frozen_specimens
from training.frozen_specimens import Emitters

PINS = Path(__file__).with_name("frozen_pins.json")
RECIPES = frozen.recipes()


def has_pinned_frames(recipe: frozen.Recipe) -> bool:
    """All thin stacks, one continuous one of each fluctuation: the others take a second each."""
    return recipe.kind == "thin" or recipe.stack_id in (32, 33)


def fingerprint(recipe: frozen.Recipe) -> dict[str, object]:
    """What is pinned of a stack: its recipe, moments of its target (in photons) and first frame."""
    target = frozen.target_of(frozen._specimen(recipe))
    axis = np.arange(target.shape[0])
    statistics = {
        "target_sum": target.sum(),
        "target_square": np.sum(target**2),
        "target_y": np.sum(target * axis[:, None]) / target.sum(),
        "target_x": np.sum(target * axis[None, :]) / target.sum(),
    }
    if has_pinned_frames(recipe):
        stack = frozen.generate(recipe, 1)
        statistics["target_adu"] = stack.target.sum(dtype=np.float64)
        statistics["frame_mean"] = stack.frames.mean()
        statistics["frame_std"] = stack.frames.std()
    return asdict(recipe) | {key: float(f"{v:.8g}") for key, v in statistics.items()}


# The target has no noise: 1e-5 leaves room for another erf or BLAS, and for nothing else. One
# frame's noise may fall out differently where an expected value differs in its last bit: 0.5 % is
# five times what the mean of 16384 noisy pixels then moves by.
TOLERANCES = {"target": 1e-5, "frame": 5e-3}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_stack_is_the_pinned_one(recipe: frozen.Recipe) -> None:
    """Catches any change of a specimen, of the fluctuation, the optics, the sensor or a recipe."""
    pinned = json.loads(PINS.read_text())
    assert pinned["version"] == frozen.VERSION
    expected, actual = pinned["stacks"][recipe.stack_id], fingerprint(recipe)
    assert expected.keys() == actual.keys()
    for key, value in expected.items():
        part = key.split("_", maxsplit=1)[0]
        if part in TOLERANCES:
            assert actual[key] == pytest.approx(value, rel=TOLERANCES[part]), key
        else:
            assert actual[key] == value, key


def test_fluctuation_is_the_pinned_one() -> None:
    """Catches a change in the blinking or the speckle that the first frame does not show."""
    pinned = json.loads(PINS.read_text())["fluctuation"]
    assert fluctuation_fingerprint() == pytest.approx(pinned, rel=1e-5)


def fluctuation_fingerprint() -> list[float]:
    """Square sums over all frames, for a thin blinking and a thin speckle stack."""
    sums = []
    for recipe in (RECIPES[0], RECIPES[1]):
        relative = frozen._fluctuation(recipe, frozen._specimen(recipe))
        sums.append(float(f"{np.sum(relative**2):.8g}"))
    return sums


def test_layout_covers_what_is_promised() -> None:
    """Catches a lost family, a lost level, or fluctuation confounded with kind, family, photons."""
    kinds = Counter(recipe.kind for recipe in RECIPES)
    assert kinds["thin"] >= 32 and kinds["continuous"] >= 16
    assert [recipe.stack_id for recipe in RECIPES] == list(range(len(RECIPES)))
    for group in ("kind", "family", "photons"):
        counts = Counter((getattr(recipe, group), recipe.fluctuation) for recipe in RECIPES)
        for value in {key[0] for key in counts}:
            assert counts[value, "blinking"] == counts[value, "speckle"], (group, value)
    for kind, low, high in (("thin", 1.1, 1.7), ("continuous", 1.3, 2.6)):
        mine = [recipe for recipe in RECIPES if recipe.kind == kind]
        assert {recipe.photons for recipe in mine} == {25, 60, 150, 400}
        sigmas = [recipe.psf_sigma_px for recipe in mine]
        assert (min(sigmas), max(sigmas)) == (low, high)
        assert any(recipe.unseen for recipe in mine) and not all(recipe.unseen for recipe in mine)
        on_fractions = {recipe.on_fraction for recipe in mine if recipe.on_fraction is not None}
        assert min(on_fractions) < 0.08 < 0.3 < max(on_fractions)


def test_more_frames_begin_with_the_same_frames_and_the_same_truth() -> None:
    """Catches a noise or fluctuation generator whose draws depend on the number of frames."""
    for recipe in (RECIPES[12], RECIPES[13]):  # speckle, blinking
        few, many = frozen.generate(recipe, 3), frozen.generate(recipe, 7)
        np.testing.assert_array_equal(few.frames, many.frames[:3])
        np.testing.assert_array_equal(few.target, many.target)
        assert not np.array_equal(many.frames[3], many.frames[4])


@pytest.mark.parametrize("frames", [0, frozen.MAX_FRAMES + 1])
def test_a_number_of_frames_out_of_range_is_refused(frames: int) -> None:
    """Catches a silent truncation to the frames that exist."""
    with pytest.raises(ValueError, match="1 to 120"):
        frozen.generate(RECIPES[0], frames)


def one_emitter(y_px: float, x_px: float, brightness: float = 1.0) -> Emitters:
    return Emitters(np.array([y_px]), np.array([x_px]), np.array([brightness]))


def centroid(image: np.ndarray) -> tuple[float, float]:
    axis = np.arange(image.shape[0])
    total = image.sum()
    return float(image.sum(1) @ axis / total), float(image.sum(0) @ axis / total)


def test_target_lies_on_the_contracts_grid_with_its_width_and_unit() -> None:
    """Catches a half-pixel shift, exchanged axes, sigma in the wrong unit, a missing factor 4."""
    y, x = 40.3, 71.85
    target = frozen.target_of(one_emitter(y, x, 50.0))
    # Output pixel j lies at (j + 0.5) / 2 - 0.5, so input y is at j = 2 y + 0.5. Pixel integration
    # moves a centroid by nothing; 1e-6 is float64 and the cut at 7 sigma.
    assert centroid(target) == pytest.approx((2 * y + 0.5, 2 * x + 0.5), abs=1e-6)
    assert target.sum() == pytest.approx(4 * 50.0, rel=1e-9)
    spread = target.sum(1) @ (np.arange(256) - 2 * y - 0.5) ** 2 / target.sum()
    # The pixel's own width adds 1/12 to the Gaussian's variance; exact but for aliasing, 1e-4.
    assert spread == pytest.approx(0.8**2 + 1 / 12, abs=1e-3)


def test_camera_pixels_integrate_the_psf() -> None:
    """Catches point sampling, a sigma per diameter, a frame off the grid, lost light."""
    y, x, sigma = 60.25, 44.9, 1.3
    image = frozen.integrate(one_emitter(y, x), np.array([[2.0]]), sigma, frozen._input_edges())[0]
    assert image.shape == (128, 128)
    assert image.sum() == pytest.approx(2.0, rel=1e-9)
    assert centroid(image) == pytest.approx((y, x), abs=1e-6)
    spread = image.sum(0) @ (np.arange(128) - x) ** 2 / image.sum()
    assert spread == pytest.approx(sigma**2 + 1 / 12, abs=1e-4)
    # Fine sampling of the density over one pixel, by the midpoint rule: another route to erf.
    fine = (np.arange(200) + 0.5) / 200 - 0.5
    density = np.exp(-0.5 * ((60 + fine[:, None] - y) ** 2 + (45 + fine - x) ** 2) / sigma**2)
    assert image[60, 45] == pytest.approx(2.0 * density.mean() / (2 * np.pi * sigma**2), rel=1e-4)


def test_light_from_beyond_the_field_comes_in_and_blocks_lose_none() -> None:
    """Catches emitters cut at the border, and a block whose rows are cropped too narrowly."""
    rng = np.random.default_rng(3)
    y, x = rng.uniform(-6.0, 134.0, (2, 5000))
    emitters = Emitters(y, x, np.ones(5000))
    edges, amplitudes = frozen._input_edges(), rng.random((5000, 1))
    whole = frozen._shares(y, 2.0, edges).T @ (amplitudes * frozen._shares(x, 2.0, edges))
    image = frozen.integrate(emitters, amplitudes, 2.0, edges)[0]
    # 7 sigma on either side hold all but 1e-11 of an emitter's light.
    np.testing.assert_allclose(image, whole, atol=1e-8)
    assert frozen.integrate(one_emitter(-3.0, 64.0), np.ones((1, 1)), 2.0, edges).sum() > 0.05


def test_photons_mean_what_the_module_says() -> None:
    """Catches photons counted at the maximum, with background, or after the quantum efficiency."""
    recipe = RECIPES[21]
    emitters = frozen._specimen(recipe)
    mean = frozen.integrate(
        emitters, emitters.brightness[:, None], recipe.psf_sigma_px, frozen._input_edges()
    )[0]
    assert np.percentile(mean, 99.9) == pytest.approx(recipe.photons, rel=1e-9)
    assert mean.max() > recipe.photons


def test_target_compares_with_the_counts_above_background() -> None:
    """Catches a target in photons, in electrons, per output pixel, or with the background in it."""
    stack = frozen.generate(RECIPES[33], 120)  # speckle, whose mean over 120 frames is near 1
    mean = stack.frames.mean(axis=0)
    background = np.percentile(mean, 5.0)
    light = (mean - background).sum()
    # Rods on an empty field: the 5th percentile is background. The residual speckle over 120
    # frames, the background's slope and light lost over the border leave about a tenth.
    assert stack.target.sum() / 4 == pytest.approx(light, rel=0.15)


def test_blinking_has_its_on_fraction_and_partial_frames() -> None:
    """Catches whole-frame switching, an on-fraction not kept, a start that is always on or off."""
    on_fraction, on_time = 0.2, 0.8
    relative = frozen.blinking(np.random.default_rng(5), 4000, on_fraction, on_time)
    part = relative * on_fraction  # (N, T)
    assert part.shape == (4000, frozen.MAX_FRAMES)
    assert part.min() >= 0.0 and part.max() <= 1.0 + 1e-9
    # 480,000 frames, about 5 times correlated: standard error below 0.001.
    assert part.mean() == pytest.approx(on_fraction, abs=0.005)
    # Equilibrium from the first frame on: 4000 emitters, standard error 0.005.
    assert part[:, 0].mean() == pytest.approx(on_fraction, abs=0.02)
    assert np.mean((part > 0.01) & (part < 0.99)) > 0.1


def test_blinking_correlates_as_a_telegraph_process() -> None:
    """Catches on-times that are not exponential, and exchanged on- and off-times."""
    on_fraction, on_time = 0.3, 2.0
    part = frozen.blinking(np.random.default_rng(6), 6000, on_fraction, on_time) * on_fraction
    change = part - on_fraction
    off_time = on_time * (1 - on_fraction) / on_fraction
    rate = 1 / on_time + 1 / off_time  # per frame
    # Covariance p (1 - p) exp(-rate |lag|), averaged over both frames.
    inside = 2 * (rate - 1 + np.exp(-rate)) / rate**2
    between = (1 - np.exp(-rate)) ** 2 / rate**2
    ensemble = on_fraction * (1 - on_fraction)
    # 720,000 frames, some three times correlated: standard error about 0.5 %.
    assert np.mean(change**2) == pytest.approx(ensemble * inside, rel=0.02)
    assert np.mean(change[:, 1:] * change[:, :-1]) == pytest.approx(ensemble * between, rel=0.03)


def test_speckle_is_mean_one_and_correlated_over_a_grain() -> None:
    """Catches a sum of intensities (no contrast), a mean that is not 1, a grain of a pixel."""
    rng = np.random.default_rng(8)
    y, x = (axis.ravel() for axis in np.meshgrid(np.arange(0, 128, 2.0), np.arange(128.0)))
    pattern = frozen.speckle(rng, Emitters(y, x, np.ones(y.size)), 1.4)
    assert pattern.min() >= 0.0
    # Some thousand grains in 120 frames: standard error below 1 %.
    assert pattern.mean() == pytest.approx(1.0, abs=0.03)
    contrast = pattern.std()
    assert 0.5 < contrast < 1.1
    image = pattern.reshape(128, 64, -1) - 1.0  # (X, Y / 2, T)
    near = np.mean(image[1:] * image[:-1]) / contrast**2
    far = np.mean(image[40:] * image[:-40]) / contrast**2
    assert near > 0.7 and abs(far) < 0.15


def test_sensor_in_photoelectrons_is_poissonian() -> None:
    """Catches a noise scale wrong by the gain or the efficiency, and an offset left out."""
    sensor = frozen.Sensor(
        quantum_efficiency=0.7, read_noise_e=3.0, gain_e_per_adu=0.5, offset_adu=100.0
    )
    frame = sensor.expose(np.full((400, 400), 80.0), np.random.default_rng(1)).astype(float)
    electrons = (frame - 100.0) * 0.5
    # 160,000 pixels: standard error 0.02 e- of the mean, 0.4 % of the variance.
    assert electrons.mean() == pytest.approx(56.0, abs=0.1)
    assert electrons.var() == pytest.approx(56.0 + 9.0 + 0.5**2 / 12, rel=0.02)


def test_sensor_clips_instead_of_wrapping() -> None:
    """Catches a cast that turns a dark pixel or a saturated one into its opposite."""
    sensor = frozen.Sensor(
        quantum_efficiency=1.0, read_noise_e=30.0, gain_e_per_adu=0.3, offset_adu=0.0
    )
    dark = sensor.expose(np.zeros((50, 50)), np.random.default_rng(1))
    bright = sensor.expose(np.full((50, 50), 1e5), np.random.default_rng(1))
    assert dark.max() < 1000 and np.all(bright == 65535)


def test_cache_gives_back_what_was_made(tmp_path: Path) -> None:
    """Catches a cache that mixes up stacks or lengths, or leaves half-written files."""
    recipe = RECIPES[13]
    made = frozen.load(recipe, 2, tmp_path)
    longer = frozen.load(recipe, 3, tmp_path)
    read = frozen.load(recipe, 2, tmp_path)
    np.testing.assert_array_equal(read.frames, made.frames)
    np.testing.assert_array_equal(read.target, made.target)
    assert longer.frames.shape == (3, 128, 128)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2 and all(frozen.version_key() in str(path) for path in files)


def test_version_key_follows_the_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Catches a cache that outlives a change of the generator."""
    before = frozen.version_key()
    changed = tmp_path / "frozen_specimens.py"
    changed.write_text(Path(frozen_specimens.__file__).read_text() + "\n# changed\n")
    monkeypatch.setattr(frozen_specimens, "__file__", str(changed))
    assert frozen.version_key() != before


def test_generator_is_a_code_path_of_its_own() -> None:
    """Catches simulation code shared with the training's forward model."""
    for module in (frozen, frozen_specimens):
        lines = Path(module.__file__).read_text().splitlines()
        imports = [line for line in lines if line.startswith(("import ", "from "))]
        ours = [line for line in imports if "training" in line or "device" in line]
        assert all("frozen_specimens" in line for line in ours), ours


if __name__ == "__main__":
    stacks = [fingerprint(recipe) for recipe in RECIPES]
    content = {
        "version": frozen.VERSION,
        "fluctuation": fluctuation_fingerprint(),
        "stacks": stacks,
    }
    PINS.write_text(json.dumps(content, indent=1) + "\n")

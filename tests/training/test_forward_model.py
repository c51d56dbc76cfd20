"""The digital microscope as a whole: counts, photons, the grid, seeds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from training import forward_model
from training import settings as settings_file
from training.fluctuation import Blinking, BlinkingUnderSpeckle, SpeckleExcitation
from training.forward_model import (
    ForwardModelSettings,
    Stack,
    draw_drift,
    draw_fluctuation,
    draw_psf,
    draw_sensor,
    draw_specimen,
    fluctuate,
    simulate,
)
from training.optics import PupilPsf
from training.sensor import Sensor
from training.specimen import FAMILIES, OTHERS, Grid

# Nothing but the specimen: no fluctuation, next to no background, a sensor without faults whose
# converter rounds finely.
PLAIN: dict[str, Any] = {
    "psf_sigma_px": (1.3, 1.3),
    "halo_probability": 0.0,
    "response_spread": (1e-6, 1e-6),
    "hot_pixel_probability": 0.0,
    "bayer_probability": 0.0,
    "resampling_probability": 0.0,
    "jpeg_probability": 0.0,
    "photons": (400.0, 400.0),
    "background": (1e-6, 1e-6),
    "haze_probability": 0.0,
    "read_noise_e": (1e-6, 1e-6),
    "quantum_efficiency": (0.6, 0.6),
    "bit_depths": (16,),
    "blinking_fraction": 0.0,
    "speckle_contrast": (0.0, 0.0),
}
BLINKING = PLAIN | {
    "blinking_fraction": 1.0,
    "bleaching_fraction": 0.0,
    "on_fraction": (0.5, 0.5),
    "on_time_frames": (0.3, 0.3),
    "emitters_per_px": (4.0, 4.0),
}


def stack_of(
    density: np.ndarray | None,
    monkeypatch: pytest.MonkeyPatch,
    frames: int,
    size: int,
    settings: dict[str, Any],
) -> Stack:
    """Simulate, with the specimen replaced by a density over the middle of the drawing area."""
    if density is not None:

        def draw(_: object, grid: Grid, __: object) -> tuple[str, np.ndarray]:
            drawn = np.full(grid, density.flat[0], np.float32)
            edge = [(n - m) // 2 for n, m in zip(grid, density.shape, strict=True)]
            drawn[edge[0] : grid[0] - edge[0], edge[1] : grid[1] - edge[1]] = density
            return "given", drawn

        monkeypatch.setattr(forward_model, "draw_specimen", draw)
    model = ForwardModelSettings(**settings)
    return simulate(model, frames, (size, size), np.random.default_rng(1))


def sensor_of(stack: Stack) -> forward_model.Sensor:
    sensor = stack.about["sensor"]
    assert isinstance(sensor, forward_model.Sensor)
    return sensor


def test_in_photoelectrons_the_variance_over_time_is_the_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With read noise and fluctuation off. Catches noise that is added twice or before the PSF.

    Per pixel var / mean scatters by sqrt(2 / (T - 1)) around 1; over 32 x 32 independent pixels the
    ratio of the sums by 1/32 of that, here 0.6 %. Rounding adds less than 1e-4.
    """
    stack = stack_of(np.ones((64, 64)), monkeypatch, 60, 32, PLAIN)
    sensor = sensor_of(stack)
    electrons = (stack.frames - sensor.offset_adu) / sensor.gain_adu_per_e
    assert electrons.mean() == pytest.approx(400 * 0.6, rel=0.02)
    ratio = electrons.var(axis=0, ddof=1).mean() / electrons.mean()
    assert abs(ratio - 1) < 5 * np.sqrt(2 / 59) / 32


def test_the_truth_is_in_counts_above_background(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a wide, even specimen the truth is the mean frame less offset and background.

    Catches a truth per output pixel (a factor of 4), without the quantum efficiency or the gain,
    or with the background. 0.5 % is five times the noise of the mean over the field.
    """
    settings = PLAIN | {"background": (0.5, 0.5)}
    stack = stack_of(np.ones((80, 80)), monkeypatch, 30, 40, settings)
    sensor = sensor_of(stack)
    background = 0.5 * 400 * sensor.adu_per_photon()
    above = stack.frames[:, 8:-8, 8:-8].mean() - sensor.offset_adu - background
    assert stack.truth[16:-16, 16:-16].mean() == pytest.approx(above, rel=0.005)


def test_the_truth_of_blinking_emitters_is_their_time_average(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches a truth without the on-fraction or without the emitters' own brightness.

    30,000 emitters, each seen in 90 nearly independent thirds of a frame: 1 % is six standard
    errors or more.
    """
    stack = stack_of(np.ones((80, 80)), monkeypatch, 30, 40, BLINKING)
    mean = stack.frames.mean(axis=0) - sensor_of(stack).offset_adu
    ratio = stack.truth[16:-16, 16:-16].mean() / mean[8:-8, 8:-8].mean()
    assert ratio == pytest.approx(1, abs=0.01)
    coarse = stack.truth.reshape(10, 8, 10, 8).mean(axis=(1, 3))[2:-2, 2:-2]
    seen = mean.reshape(10, 4, 10, 4).mean(axis=(1, 3))[2:-2, 2:-2]
    # Where emitters lie by chance is in both; without it they would not correlate at all.
    assert np.corrcoef(coarse.ravel(), seen.ravel())[0, 1] > 0.8


def test_the_truth_knows_no_bleaching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a truth that fades with the emitters: it is what they would show unbleached.

    Bleaching takes 60 to 600 frames, so that over 120 frames the mean is 0.43 to 0.91 of it.
    """
    settings = BLINKING | {"bleaching_fraction": 1.0}
    stack = stack_of(np.ones((80, 80)), monkeypatch, 120, 40, settings)
    mean = stack.frames.mean(axis=0) - sensor_of(stack).offset_adu
    blinking = stack.about["fluctuation"]
    assert isinstance(blinking, Blinking)
    turns = blinking.bleach_time_frames
    expected = np.mean(np.exp(-np.arange(120) / turns))
    ratio = mean[8:-8, 8:-8].mean() / stack.truth[16:-16, 16:-16].mean()
    assert ratio == pytest.approx(expected, rel=0.03)  # 30,000 emitters, edge of the field


@pytest.mark.parametrize("settings", [PLAIN, BLINKING], ids=["even", "blinking"])
@pytest.mark.parametrize("at", [(30, 33), (35, 28)])
def test_an_emitter_is_seen_where_the_truth_has_it(
    at: tuple[int, int], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The contract's grid: output pixel j lies at camera coordinate (j + 0.5) / 2 - 0.5.

    Catches a shift by half an output pixel (0.25 px), which costs a perfect image down to 29 dB,
    and swapped axes. 300,000 photoelectrons locate a spot of 1.3 px to 0.003 px.
    """
    density = np.zeros((64, 64), np.float32)
    density[at] = 1.0
    stack = stack_of(density, monkeypatch, 80, 32, settings | {"photons": (2000.0, 2000.0)})
    dark = np.rint(sensor_of(stack).offset_adu)  # without noise every dark pixel is rounded alike
    image = stack.frames.mean(axis=0) - dark  # (H, W)
    for axis in (0, 1):
        seen, true = (np.asarray(i.sum(axis=1 - axis), float) for i in (image, stack.truth))
        camera = np.sum(np.arange(32) * seen) / seen.sum()
        output = np.sum(np.arange(64) * true) / true.sum()
        assert output == pytest.approx(at[axis], abs=1e-3)
        assert camera == pytest.approx((output + 0.5) / 2 - 0.5, abs=0.01)


def test_a_seed_is_a_stack() -> None:
    """Catches randomness from elsewhere than `rng`."""
    model = ForwardModelSettings()
    a, b, c = (simulate(model, 6, (32, 40), np.random.default_rng(s)) for s in ([1, 2], [1, 2], 4))
    np.testing.assert_array_equal(a.frames, b.frames)
    np.testing.assert_array_equal(a.truth, b.truth)
    assert not np.array_equal(a.frames, c.frames)


@pytest.mark.parametrize("seed", range(6))
def test_any_stack_is_what_it_says(seed: int) -> None:
    """Catches wrong shapes and types, values beyond the converter, an empty or negative truth."""
    stack = simulate(ForwardModelSettings(), 5, (32, 48), np.random.default_rng(seed))
    assert stack.frames.shape == (5, 32, 48)
    assert stack.frames.dtype == np.uint16
    assert stack.frames.max() < 2 ** sensor_of(stack).bit_depth
    assert stack.truth.shape == (64, 96)
    assert stack.truth.dtype == np.float32
    assert stack.truth.min() > -1e-3
    assert stack.truth.max() > 1
    assert set(str(stack.about["family"]).split("+")) <= set(FAMILIES)


def test_draws_cover_what_the_settings_say_and_no_more() -> None:
    """Catches a range that is ignored and shares that are swapped.

    400 draws: a share of 0.3 scatters by 0.023, and the bound is five of that.
    """
    model = ForwardModelSettings(blinking_fraction=0.3, on_fraction=(0.1, 0.2))
    rng = np.random.default_rng(1)
    drawn = [draw_fluctuation(model, rng) for _ in range(400)]
    blinking = [d for d in drawn if isinstance(d, Blinking)]
    speckle = [d for d in drawn if isinstance(d, SpeckleExcitation)]
    assert len(blinking) / 400 == pytest.approx(0.3, abs=0.115)
    fractions = [b.on_fraction for b in blinking]
    assert 0.1 <= min(fractions) < 0.115
    assert 0.18 < max(fractions) <= 0.2
    assert {s.phase_step_rad for s in speckle} == {0.3, 1.0, 4.0}
    assert min(s.modes for s in speckle) >= 4
    assert max(s.modes for s in speckle) <= 60
    assert np.mean([np.isfinite(b.bleach_time_frames) for b in blinking]) == pytest.approx(
        0.25, abs=0.2
    )


def test_the_brightest_pixels_take_5_to_60_percent_of_the_converter() -> None:
    """Catches a gain that forgets the efficiency or the bit depth: all dark or all clipped."""
    rng, levels = np.random.default_rng(1), []
    for _ in range(200):
        sensor = forward_model.draw_sensor(ForwardModelSettings(), 100.0, rng)
        levels.append(2 * 100 * sensor.adu_per_photon() / 2**sensor.bit_depth)
        assert 0.01 <= sensor.offset_adu / 2**sensor.bit_depth <= 0.06
    assert 0.05 <= min(levels) < 0.06
    assert 0.5 < max(levels) <= 0.6


def test_background_is_even_or_has_haze() -> None:
    """Catches haze that is never or always there, and one that takes light away."""
    rng = np.random.default_rng(1)
    never = ForwardModelSettings(background=(0.1, 0.1), haze_probability=0)
    even = forward_model.draw_background(never, 50.0, (24, 24), rng)
    np.testing.assert_allclose(even, 5.0)
    always = ForwardModelSettings(background=(0.1, 0.1), haze_probability=1)
    hazy = forward_model.draw_background(always, 50.0, (128, 128), rng)
    assert hazy.min() >= 5.0
    assert 2.5 <= np.ptp(hazy) <= 25.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"photons": (100, 10)},
        {"photons": (0, 10)},
        {"background": (0, 0.5)},
        {"thin_fraction": 1.5},
        {"bit_depths": (9,)},
        {"fotons": (1, 2)},
        {"video_crf": (20, 60)},
        {"families": ("filaments", "flowers")},
        {"families": ("filaments",)},
        {"families": ("filaments", "tissue", "ribbons")},
        {"waveguide_cones_deg": ()},
    ],
    ids=str,
)
def test_settings_that_cannot_be_drawn_from_are_refused(wrong: dict[str, Any]) -> None:
    """Catches a range that runs down, a logarithm of 0, a misspelt name, and one that is never
    drawn: ribbons have a fraction of their own."""
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        ForwardModelSettings(**wrong)


def test_both_kinds_of_structure_are_drawn_over_each_other() -> None:
    """Catches a mixture of a family with itself, and a share that is ignored."""
    always = ForwardModelSettings(both_fraction=1.0)
    family, density = draw_specimen(always, Grid(64, 64), np.random.default_rng(2))
    thin, wide = family.split("+")
    assert thin in forward_model.THIN
    assert wide in forward_model.CONTINUOUS
    assert 0.2 <= density.max() <= 1.0 + 1e-6


@pytest.mark.parametrize("other", OTHERS)
def test_a_part_of_the_stacks_are_others(other: str) -> None:
    """Mutations: the fraction is not asked, or something is drawn where there are none, so that the
    stacks of a seed are others.

    200 draws: a share of 0.5 scatters by 0.035, and the bound is five of that.
    """
    grid, rng = Grid(16, 16), np.random.default_rng(1)
    for fraction, tolerance in ((1.0, 0), (0.5, 0.18), (0.0, 0)):
        model = ForwardModelSettings(both_fraction=0.0, **{f"{other}_fraction": fraction})
        families = [draw_specimen(model, grid, rng)[0] for _ in range(200)]
        share = families.count(other) / 200
        assert share == pytest.approx(fraction, abs=tolerance)

    every = ForwardModelSettings(both_fraction=0.0, **{f"{name}_fraction": 1.0 for name in OTHERS})
    assert draw_specimen(every, grid, rng)[0] == list(OTHERS)[-1]
    none = ForwardModelSettings(families=("filaments", "tissue"))
    family, density = draw_specimen(none, grid, np.random.default_rng(1))
    again = np.random.default_rng(1)
    again.random(2)  # whether both, and which
    again.choice(1)  # of a kind
    again.random()  # whether beads
    np.testing.assert_array_equal(density, FAMILIES[family](grid, again))


def test_of_many_emitters_a_part_is_simulated_with_the_variance_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """4,000 emitters, 1,000 of which are drawn, against all 4,000.

    Compared over 40 x 40 px: the mean (expected: equal), the variance from pixel to pixel of the
    brightness, and that from frame to frame of the emission. Over 1600 px a variance of these
    nearly Poissonian values scatters by some 5 %; the tolerance is 20 %. Catches a share of n / N
    (a quarter of the variance) and no share (four times as much).
    """
    density = np.ones((40, 40), np.float32)
    blinking = Blinking(on_fraction=0.3, on_time_frames=0.5)
    found = []
    for limit in (4000, 1000):
        monkeypatch.setattr(forward_model, "SIMULATED_EMITTERS", limit)
        rng = np.random.default_rng(1)
        emission, brightness = forward_model.blink(blinking, density, 4000, 60, rng)
        assert emission.shape == (60, 40, 40)
        times = emission.var(axis=0).mean()
        found.append((brightness.mean(), emission.mean(), brightness.var(), times))
    # The same 4,000 x 0.3 in both; a quarter of the emitters each stand for four.
    every, part = np.array(found)
    np.testing.assert_allclose(part[:2] * 4, every[:2], rtol=0.05)
    np.testing.assert_allclose(part[2:] * 16, every[2:], rtol=0.2)


def test_a_dense_label_bleaches_as_a_sparse_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a part that is not simulated and shines for ever."""
    monkeypatch.setattr(forward_model, "SIMULATED_EMITTERS", 500)
    blinking = Blinking(on_fraction=0.5, on_time_frames=0.3, bleach_time_frames=40.0)
    rng = np.random.default_rng(2)
    emission, brightness = forward_model.blink(blinking, np.ones((20, 20)), 50_000, 120, rng)
    expected = brightness.mean() * np.exp(-np.arange(120) / 40)
    np.testing.assert_allclose(emission.mean(axis=(1, 2)), expected, rtol=0.1)


def test_emitters_that_blink_under_speckle_are_as_bright_as_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches an excitation that is added instead of multiplied, and one that changes the truth.

    Both fluctuate more than either: under the same seed the mean stays, the variance does not.
    """
    density, rng = np.ones((64, 64), np.float32), np.random.default_rng
    settings = ForwardModelSettings(emitters_per_px=(2.0, 2.0))
    blinking = Blinking(on_fraction=0.3, on_time_frames=1.0)
    speckle = SpeckleExcitation(40, 4.0, np.pi, 4.0, 1.0)
    alone, truth = fluctuate(blinking, density, 200, settings, rng(1))
    both, same = fluctuate(BlinkingUnderSpeckle(blinking, speckle), density, 200, settings, rng(1))
    np.testing.assert_array_equal(truth, same)
    assert both.mean() == pytest.approx(alone.mean(), rel=0.05)
    # <b^2> <s^2> - <b>^2 <s>^2 with <s^2> = 2 <s>^2 for full speckle
    expected = 2 * np.mean(alone**2, axis=0) - np.mean(alone, axis=0) ** 2
    assert np.mean(both.var(axis=0)) == pytest.approx(expected.mean(), rel=0.15)


def test_a_window_drifts_about_its_truth_and_a_stream_stays() -> None:
    """Mutations: a drift that begins at the truth, that steps back, or that streams have, too."""
    model = ForwardModelSettings(drift_probability=1.0, drift_px=(0.5, 0.5))
    away = draw_drift(model, 30, np.random.default_rng(1))
    assert away is not None and away.shape == (30, 2)
    np.testing.assert_allclose(away.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(np.hypot(*(away[-1] - away[0])), 0.5)
    np.testing.assert_allclose(np.diff(away, axis=0), (away[-1] - away[0]) / 29 * np.ones((29, 1)))
    assert draw_drift(model, 60, np.random.default_rng(1)) is None
    assert draw_drift(ForwardModelSettings(), 30, np.random.default_rng(1)) is None


def test_a_part_of_the_continuous_structures_is_soft() -> None:
    """Mutation: the fraction is not asked, thin structures are softened, or light is lost."""
    grid = Grid(96, 96)

    def sharpness(kind: str, fraction: float) -> np.ndarray:
        model = ForwardModelSettings(
            thin_fraction=float(kind == "thin"),
            both_fraction=0.0,
            soft_fraction=fraction,
            soft_sigma_px=(4.0, 5.0),
        )
        found = []
        for k in range(30):
            _, density = draw_specimen(model, grid, np.random.default_rng((8, k)))
            assert np.isclose(density.max(), 1.0) and density.min() >= 0
            found.append(np.abs(np.diff(density, axis=0)).max())
        return np.array(found)

    assert np.all(sharpness("continuous", 1.0) < 0.15)
    assert np.mean(sharpness("continuous", 0.0) > 0.15) > 0.5
    assert 8 <= np.sum(sharpness("continuous", 0.5) < 0.15) <= 26
    np.testing.assert_array_equal(sharpness("thin", 1.0), sharpness("thin", 0.0))


def test_a_part_of_the_8_bit_sensors_deliver_video() -> None:
    """Mutations: a video of more than 8 bit, of JPEGs, or with its factor out of range."""
    model = ForwardModelSettings(video_probability=0.5, video_crf=(12, 14))
    drawn = [draw_sensor(model, 100.0, np.random.default_rng((9, k))) for k in range(200)]
    videos = [sensor for sensor in drawn if sensor.processing.video_crf is not None]
    assert 5 <= len(videos) <= 40  # 0.25 x 0.7 x 0.5 of them
    for sensor in videos:
        assert sensor.bit_depth == 8
        assert sensor.processing.jpeg_quality is None
        assert 12 <= sensor.processing.video_crf <= 14


def test_the_originals_stacks_are_one_setting(tmp_path: Path) -> None:
    """Mutations: a setting that is not asked: other families, other excitation, no JPEG."""
    model = settings_file.load("original").forward_model
    image = np.random.default_rng(1).integers(0, 255, (200, 200), np.uint8)
    cv2.imwrite(str(tmp_path / "cell.png"), image)
    model = model.model_copy(update={"images": str(tmp_path)})
    drawn = [simulate(model, 4, (24, 24), np.random.default_rng((3, k))) for k in range(40)]
    families = Counter(str(stack.about["family"]) for stack in drawn)
    assert set(families) <= {"image", "filaments", "filament_bundles", "filled_rods"}
    assert 20 <= families["image"] <= 36
    for stack in drawn:
        speckle, sensor = stack.about["fluctuation"], stack.about["sensor"]
        assert isinstance(speckle, SpeckleExcitation)
        assert isinstance(sensor, Sensor)
        assert 40 <= speckle.modes <= 50
        assert speckle.cone_rad == pytest.approx(np.pi / 12)
        assert speckle.phase_step_rad > 3
        assert sensor.processing.jpeg_quality == 80
        assert stack.about["photons"] == pytest.approx(100)
        assert 1 <= stack.psf_sigma_px <= 2
        assert stack.frames.max() < 255  # nothing is clipped


def test_a_part_of_the_psfs_is_that_of_a_pupil() -> None:
    """Mutation: the settings are not asked, or the defocus is always 0."""
    model = ForwardModelSettings(pupil_probability=0.5, defocus_waves=(0.2, 0.3))
    drawn = [draw_psf(model, 1.4, np.random.default_rng((6, k))) for k in range(40)]
    pupils = [psf for psf in drawn if isinstance(psf, PupilPsf)]
    assert 10 <= len(pupils) <= 30
    assert all(0.2 <= psf.defocus_waves <= 0.3 and psf.sigma_px == 1.4 for psf in pupils)


def test_a_part_of_the_stacks_is_usually_sampled() -> None:
    """Mutation: the range of all microscopes for every stack."""
    model = ForwardModelSettings(
        psf_sigma_px=(2.5, 3.0), usual_psf_sigma_px=(1.0, 1.2), usual_psf_fraction=0.5
    )
    drawn = [
        simulate(model, 1, (16, 16), np.random.default_rng((5, k))).psf_sigma_px for k in range(40)
    ]
    usual = [sigma for sigma in drawn if 1.0 <= sigma <= 1.2]
    assert 10 <= len(usual) <= 30
    assert all(2.5 <= sigma <= 3.0 for sigma in drawn if sigma not in usual)


def test_columns_differ_where_they_are_asked_to() -> None:
    """Mutations: the offset is drawn and not passed on; it is drawn where there is none, so that
    the stacks of a seed are others."""
    with_columns = ForwardModelSettings(column_probability=1, column_offset_e=(0.2, 0.3))
    drawn = [draw_sensor(with_columns, 100.0, np.random.default_rng(k)) for k in range(5)]
    assert all(0.2 <= sensor.column_offset_e <= 0.3 for sensor in drawn)
    one, other = np.random.default_rng(1), np.random.default_rng(1)
    without = draw_sensor(ForwardModelSettings(), 100.0, one)
    assert without.column_offset_e == 0
    draw_sensor(ForwardModelSettings(column_offset_e=(0.5, 0.6)), 100.0, other)
    assert one.random() == other.random()

"""The digital microscope: specimen -> fluctuation -> optics -> sensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import ndimage

from training.fluctuation import Blinking, BlinkingUnderSpeckle, SpeckleExcitation
from training.optics import UPSAMPLING, GaussianPsf, Psf, PupilPsf, target_image
from training.processing import Processing
from training.sensor import Sensor
from training.specimen import CONTINUOUS, FAMILIES, OTHERS, THIN, Family, Grid
from training.specimen_images import crop

CHOICES = ("bit_depths", "families", "waveguide_cones_deg", "phase_steps_rad")
"""Settings that list what to choose from; other pairs are ranges."""
WINDOW = 30
"""Frames of a reconstruction."""
DARK = 0.05
"""A stack is drawn anew where less than this part of the specimen's light was ever seen, or where
the specimen is less bright than this part of what is seen, which then is light from beyond."""
SIMULATED_EMITTERS = 10_000
"""Of more emitters so many are simulated; see `blink`."""
STRENGTH_SPREAD = 0.3
"""Standard deviation of the logarithm of the emitters' brightness."""

Positive = Annotated[float, Field(gt=0)]
Range = tuple[Positive, Positive]
Fluctuation = Blinking | SpeckleExcitation | BlinkingUnderSpeckle
Fraction = Annotated[float, Field(ge=0, le=1)]
VideoQuality = Annotated[int, Field(ge=0, le=51)]
ConeAngle = Annotated[float, Field(gt=0, le=180)]


class ForwardModelSettings(BaseModel):
    """What stacks are drawn from: every pair is the range of a distribution."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    thin_fraction: Fraction = 0.5
    """Part of the stacks with thin structures."""
    both_fraction: Fraction = 0.1
    """Part of the stacks with a thin and a continuous structure over each other."""
    both_share: tuple[Fraction, Fraction] = (0.2, 0.8)
    """Brightness of the thin one of such in that of both, uniform."""
    beads_fraction: Fraction = 0.0
    """Part of the stacks with beads, beyond those that are drawn among the thin structures."""
    ribbons_fraction: Fraction = 0.0
    """Part of the stacks with strips of some width, and pairs of lines as wide."""
    voids_fraction: Fraction = 0.0
    """Part of the stacks, those with two structures left out, whose label is all over the field but
    in dark bodies; drawn instead of ribbons, too."""
    leaves_fraction: Fraction = 0.0
    """Part of the stacks, those with two structures left out, of flat shapes over one another;
    drawn last, instead of ribbons and voids, too."""
    soft_fraction: Fraction = 0.0
    """Part of the continuous structures that are soft: label that lies throughout a thick specimen,
    or spreads, has no edges as sharp as a drawn one."""
    soft_sigma_px: Range = (0.7, 6.0)
    """Blur that softens them, output px, log-uniform."""
    families: tuple[str, ...] = Field((*THIN, *CONTINUOUS), min_length=1)
    """Structures to draw from: the names of the thin and the continuous ones in
    `training.specimen`, each equally likely among those of its kind, thin or continuous."""
    images: str | None = None
    """Folder of images to cut specimens from, relative to where the command runs."""
    images_fraction: Fraction = 0.0
    """Part of the stacks with such a specimen, instead of a drawn one."""
    psf_sigma_px: Range = (0.8, 3.2)
    """Standard deviation of the PSF, camera px, log-uniform."""
    usual_psf_sigma_px: Range = (1.0, 2.0)
    """The same of microscopes whose sampling fits their optics."""
    usual_psf_fraction: Fraction = 0.0
    """Part of the stacks that come from such."""
    pupil_probability: Fraction = 0.0
    """Part of the stacks with the PSF of a round pupil, an Airy pattern; its width is that of the
    Gaussian nearest to it, 0.21 wavelengths over NA. In the others it is Gaussian."""
    defocus_waves: tuple[Fraction, Fraction] = (0.0, 0.4)
    """Defocus of such, as the phase at the pupil's edge, uniform."""
    halo_probability: Fraction = 0.25
    """Part of the Gaussian PSFs that have a wider second part, as scattering and haze give it."""
    halo_share: Range = (0.1, 0.5)
    """Light in the second part of the PSF over all, uniform."""
    halo_width: Range = (1.5, 3.0)
    """Width of the second part over that of the first, uniform."""
    drift_probability: Fraction = 0.0
    """Part of the windows of 30 frames that the specimen moves in. It is in its place in the
    middle; of a longer stack every image would have a truth of its own, so that it stays there."""
    drift_px: Range = (0.1, 1.0)
    """How far it moves, camera px, log-uniform."""
    photons: Range = (12.0, 800.0)
    """Photons per frame on the 99.9th percentile pixel of the mean image, log-uniform."""
    background: Range = (0.02, 0.6)
    """Even background over the photons above, log-uniform."""
    haze_probability: Fraction = 0.4
    """Part of the stacks with light from out of focus."""
    read_noise_e: Range = (0.5, 8.0)
    """Photoelectrons, log-uniform."""
    quantum_efficiency: Range = (0.4, 0.9)
    """Photoelectrons per photon, uniform."""
    bit_depths: tuple[Literal[8, 10, 12, 16], ...] = (8, 10, 12, 16)
    """Converters, equally likely; the gain fills some part of their range."""
    response_spread: Range = (0.001, 0.02)
    """Standard deviation of the pixels' sensitivity around 1, log-uniform."""
    hot_pixel_probability: Fraction = 0.25
    """Part of the sensors with hot pixels."""
    hot_pixel_fraction: Range = (1e-4, 2e-3)
    """Of the pixels, log-uniform."""
    column_probability: Fraction = 0.0
    """Part of the sensors whose columns have offsets of their own."""
    column_offset_e: Range = (0.02, 1.0)
    """Standard deviation of these offsets, photoelectrons, log-uniform."""
    bayer_probability: Fraction = 0.1
    """Part of the sensors behind a colour mosaic, the green of which is interpolated."""
    resampling_probability: Fraction = 0.2
    """Part of the sensors whose frames were scaled on the way."""
    resampling_sigma_px: Range = (0.35, 0.9)
    """Blur of that scaling, uniform."""
    jpeg_probability: Fraction = 0.3
    """Part of the 8-bit sensors whose frames are JPEGs."""
    jpeg_quality: tuple[int, int] = (60, 98)
    """Uniform, both ends included."""
    video_probability: Fraction = 0.0
    """Part of the other 8-bit sensors whose frames were a video."""
    video_crf: tuple[VideoQuality, VideoQuality] = (10, 30)
    """Constant rate factor of its H.264, uniform, both ends included."""
    blinking_fraction: Fraction = 0.5
    """Part of the stacks in which the emitters blink; in the others the excitation fluctuates."""
    both_fluctuations_fraction: Fraction = 0.0
    """Part of the stacks in which both do."""
    on_fraction: Range = (0.02, 0.5)
    """Of blinking emitters, log-uniform."""
    on_time_frames: Range = (0.3, 8.0)
    """Mean time in the on state, log-uniform."""
    bleaching_fraction: Fraction = 0.25
    """Part of the blinking stacks that bleach, over 60 to 600 frames."""
    emitters_per_px: Range = (0.7, 300.0)
    """Blinking emitters per output pixel of label, log-uniform. Few make a structure of single
    points, many a smooth one that hardly fluctuates."""
    speckle_modes: tuple[int, int] = (4, 60)
    """Plane waves in the excitation, log-uniform."""
    speckle_grain_px: Range = (2.0, 16.0)
    """Finest fringe in output px, log-uniform."""
    diffuser_fraction: Fraction = 0.5
    """Part of the speckle that comes through an objective or a diffuser; the other part comes from
    a waveguide, whose modes have one spatial frequency."""
    waveguide_cones_deg: tuple[ConeAngle, ...] = Field((15.0, 45.0, 180.0), min_length=1)
    """Half angles of the cone that a waveguide's modes run within, equally likely."""
    phase_steps_rad: tuple[Positive, ...] = Field((0.3, 1.0, 4.0), min_length=1)
    """Random steps of the phases of the speckle's waves from frame to frame, equally likely: small
    ones change it slowly, from 3 on every frame has a pattern of its own."""
    speckle_contrast: tuple[Fraction, Fraction] = (0.0, 1.0)
    """0 even to 1 full interference, uniform."""

    @model_validator(mode="after")
    def _ranges_ascend(self) -> ForwardModelSettings:
        for name, value in self:
            if name not in CHOICES and isinstance(value, tuple) and value[0] > value[1]:
                raise ValueError(f"{name} runs from {value[0]} down to {value[1]}")
        return self

    @model_validator(mode="after")
    def _families_exist(self) -> ForwardModelSettings:
        known = THIN | CONTINUOUS
        if unknown := set(self.families) - set(known):
            raise ValueError(f"families names {sorted(unknown)}; there are {sorted(known)}")
        drawn = {
            "thin": (THIN, self.thin_fraction),
            "continuous": (CONTINUOUS, 1 - self.thin_fraction),
        }
        for name, (kind, part) in drawn.items():
            if (part or self.both_fraction) and not self.named(kind):
                raise ValueError(f"families names nothing {name}, of which a part is to be drawn")
        return self

    def named(self, kind: Mapping[str, Family]) -> list[str]:
        """Name the families of a kind that are drawn from."""
        return [name for name in kind if name in self.families]

    @model_validator(mode="after")
    def _images_have_a_folder(self) -> ForwardModelSettings:
        if self.images_fraction and not self.images:
            raise ValueError("images_fraction is above 0 without images, the folder to take")
        return self


@dataclass(frozen=True)
class Stack:
    """Frames and what they were made from.

    Attributes
    ----------
    frames : ndarray
        (T, H, W) uint16, ADU.
    truth : ndarray
        Target on the output grid, (2H, 2W) float32, ADU above background.
    psf_sigma_px : float
        Standard deviation of the PSF, of its first part, in camera px.
    about : dict
        The other parameters drawn: family, photons, fluctuation, ...
    """

    frames: np.ndarray
    truth: np.ndarray
    psf_sigma_px: float
    about: dict[str, object]


def simulate(
    settings: ForwardModelSettings, frames: int, shape: tuple[int, int], rng: np.random.Generator
) -> Stack:
    """Simulate one stack.

    Parameters
    ----------
    settings : ForwardModelSettings
        The distributions to draw from.
    frames : int
        Number of frames T.
    shape : (int, int)
        Camera pixels (H, W).
    rng : Generator
        The only source of randomness.

    Returns
    -------
    Stack
        Never an empty one: where nothing lies in the field, or nothing was on, all is drawn anew.
    """
    usual = settings.usual_psf_fraction and rng.random() < settings.usual_psf_fraction
    sigma_px = _log_uniform(settings.usual_psf_sigma_px if usual else settings.psf_sigma_px, rng)
    psf = draw_psf(settings, sigma_px, rng)
    margin = int(np.ceil(3 * sigma_px))
    family, density = draw_specimen(settings, _grid(shape, margin), rng)
    fluctuation = draw_fluctuation(settings, rng)
    emission, brightness = fluctuate(fluctuation, density, frames, settings, rng)  # (T, H', W')
    away_px = draw_drift(settings, frames, rng)
    light = psf.form(emission, margin, shape, away_px)  # (T, H, W)
    peak = float(np.percentile(light.mean(axis=0), 99.9))
    target = target_image(brightness, margin)  # (2H, 2W)
    seen = peak > DARK * psf.form(brightness, margin, shape).max()
    bright = np.percentile(target, 99.9)
    if not (seen and bright > 0.01 * target.max() and bright > DARK * peak):
        return simulate(settings, frames, shape, rng)
    photons = _log_uniform(settings.photons, rng)
    ambient = draw_background(settings, photons, shape, rng)  # (H, W)
    sensor = draw_sensor(settings, photons, rng)
    adu = sensor.expose(light * (photons / peak) + ambient, rng)
    truth = target * (photons / peak * sensor.adu_per_photon())
    about = {"family": family, "photons": photons, "fluctuation": fluctuation, "sensor": sensor}
    return Stack(adu, truth, sigma_px, about)


def draw_psf(settings: ForwardModelSettings, sigma_px: float, rng: np.random.Generator) -> Psf:
    """Draw a PSF of this width."""
    # Nothing is drawn where there are none: the stacks of a seed stay what they were.
    if settings.pupil_probability and rng.random() < settings.pupil_probability:
        return PupilPsf(sigma_px, rng.uniform(*settings.defocus_waves))
    if rng.random() >= settings.halo_probability:
        return GaussianPsf([(1.0, sigma_px)])
    share, width = rng.uniform(*settings.halo_share), rng.uniform(*settings.halo_width)
    return GaussianPsf([(1 - share, sigma_px), (share, sigma_px * width)])


def draw_drift(
    settings: ForwardModelSettings, frames: int, rng: np.random.Generator
) -> np.ndarray | None:
    """Draw where the specimen is in each frame, (T, 2) along (y, x) in camera px, or None."""
    if frames != WINDOW or not settings.drift_probability:
        return None
    if rng.random() >= settings.drift_probability:
        return None
    angle = rng.uniform(0, 2 * np.pi)
    whole = _log_uniform(settings.drift_px, rng) * np.array([np.sin(angle), np.cos(angle)])
    return np.linspace(-0.5, 0.5, frames)[:, None] * whole


def draw_specimen(
    settings: ForwardModelSettings, grid: Grid, rng: np.random.Generator
) -> tuple[str, np.ndarray]:
    """Draw a family and a density from it, (H', W')."""
    # Nothing is drawn where there are none: the stacks of a seed stay what they were.
    if settings.images and settings.images_fraction and rng.random() < settings.images_fraction:
        return "image", crop(settings.images, grid, rng)
    if rng.random() < settings.both_fraction:
        thin, wide = (str(rng.choice(settings.named(kind))) for kind in (THIN, CONTINUOUS))
        share = rng.uniform(*settings.both_share)
        one, other = (draw_family(settings, family, grid, rng) for family in (thin, wide))
        return f"{thin}+{wide}", share * one + (1 - share) * other
    kind = THIN if rng.random() < settings.thin_fraction else CONTINUOUS
    family = str(rng.choice(settings.named(kind)))
    if rng.random() < settings.beads_fraction:
        family = "beads"
    # Nothing is drawn where there are none: the stacks of a seed stay what they were.
    for name in OTHERS:
        fraction = getattr(settings, f"{name}_fraction")
        if fraction and rng.random() < fraction:
            family = name
    return family, draw_family(settings, family, grid, rng)


def draw_family(
    settings: ForwardModelSettings, family: str, grid: Grid, rng: np.random.Generator
) -> np.ndarray:
    """Draw a density from a family, some of the continuous ones soft, (H', W')."""
    density = FAMILIES[family](grid, rng)
    # Nothing is drawn where there are none: the stacks of a seed stay what they were.
    if family not in CONTINUOUS or not settings.soft_fraction:
        return density
    if rng.random() >= settings.soft_fraction:
        return density
    soft = ndimage.gaussian_filter(density, _log_uniform(settings.soft_sigma_px, rng))
    return soft / max(float(soft.max()), 1e-12)


def draw_fluctuation(settings: ForwardModelSettings, rng: np.random.Generator) -> Fluctuation:
    """Draw how the light fluctuates."""
    if rng.random() < settings.both_fluctuations_fraction:
        return BlinkingUnderSpeckle(draw_blinking(settings, rng), draw_excitation(settings, rng))
    if rng.random() < settings.blinking_fraction:
        return draw_blinking(settings, rng)
    return draw_excitation(settings, rng)


def draw_blinking(settings: ForwardModelSettings, rng: np.random.Generator) -> Blinking:
    """Draw how the emitters blink, and whether they bleach."""
    bleaches = rng.random() < settings.bleaching_fraction
    return Blinking(
        on_fraction=_log_uniform(settings.on_fraction, rng),
        on_time_frames=_log_uniform(settings.on_time_frames, rng),
        bleach_time_frames=_log_uniform((60, 600), rng) if bleaches else np.inf,
    )


def draw_excitation(settings: ForwardModelSettings, rng: np.random.Generator) -> SpeckleExcitation:
    """Draw the speckle of the excitation, from a waveguide or through an objective."""
    through_objective = bool(rng.random() < settings.diffuser_fraction)
    return SpeckleExcitation(
        modes=round(_log_uniform(settings.speckle_modes, rng)),
        grain_px=_log_uniform(settings.speckle_grain_px, rng),
        cone_rad=np.pi if through_objective else _cone_rad(settings, rng),
        phase_step_rad=rng.choice(settings.phase_steps_rad),
        contrast=rng.uniform(*settings.speckle_contrast),
        fills_aperture=through_objective,
    )


def fluctuate(
    fluctuation: Fluctuation,
    density: np.ndarray,
    frames: int,
    settings: ForwardModelSettings,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Let a density, (H', W'), shine: emission per frame, (T, H', W'), and its brightness.

    The brightness, (H', W'), is what a frame would show on average without bleaching: with
    blinking that of the emitters drawn from the density, not the density itself.
    """
    if isinstance(fluctuation, SpeckleExcitation):
        return density * fluctuation.patterns(frames, density.shape, rng), density
    if isinstance(fluctuation, BlinkingUnderSpeckle):
        emission, brightness = fluctuate(fluctuation.blinking, density, frames, settings, rng)
        return emission * fluctuation.excitation.patterns(frames, density.shape, rng), brightness
    labelled = float(density.sum()) ** 2 / max(float((density**2).sum()), 1e-12)  # px
    emitters = max(20, round(labelled * _log_uniform(settings.emitters_per_px, rng)))
    return blink(fluctuation, density, emitters, frames, rng)


def blink(
    blinking: Blinking,
    density: np.ndarray,
    emitters: int,
    frames: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw emitters from a density, (H', W'), and let them blink.

    Of N emitters, more than n = `SIMULATED_EMITTERS`, only n are drawn: they have the share
    ``sqrt(n / N)`` of the light, and the rest is even. So mean and variance are those of N, of
    where they lie and of when they are on.

    Returns
    -------
    emission, brightness : ndarray
        (T, H', W') and, on average without bleaching, (H', W'); float32.
    """
    drawn = min(emitters, SIMULATED_EMITTERS)
    share = np.sqrt(drawn / emitters)
    probability = density.ravel().astype(np.float64)
    probability /= max(probability.sum(), 1e-12)
    site = np.repeat(np.arange(density.size), rng.multinomial(drawn, probability))  # (n,)
    strength = rng.lognormal(0, STRENGTH_SPREAD, drawn).astype(np.float32)
    on = blinking.brightness(frames, drawn, rng) * strength  # (T, n)
    single = np.stack([np.bincount(site, weights, density.size) for weights in on])
    expected = drawn * np.exp(STRENGTH_SPREAD**2 / 2) * blinking.on_fraction * probability
    rest = (1 - share) * expected  # (H' W',)
    emission = share * single + blinking.survival(frames)[:, None] * rest
    mean = np.bincount(site, strength * blinking.on_fraction, density.size)
    return (
        emission.reshape(frames, *density.shape).astype(np.float32),
        (share * mean + rest).reshape(density.shape).astype(np.float32),
    )


def draw_background(
    settings: ForwardModelSettings, photons: float, shape: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """Draw light that is not the specimen's, photons per camera pixel, (H, W)."""
    even = np.full(shape, photons * _log_uniform(settings.background, rng))
    if rng.random() >= settings.haze_probability:
        return even
    field = ndimage.gaussian_filter(rng.normal(0, 1, shape), rng.uniform(8, 20), mode="wrap")
    field = (field - field.mean()) / (field.std() + 1e-12)
    haze = np.clip(field, -2, 2) / 4 + 0.5  # 0 to 1
    return even + photons * rng.uniform(0.05, 0.5) * haze


def draw_sensor(settings: ForwardModelSettings, photons: float, rng: np.random.Generator) -> Sensor:
    """Draw a sensor whose gain puts the brightest structures at 5 to 60 % of its range."""
    bits = int(rng.choice(settings.bit_depths))
    efficiency = rng.uniform(*settings.quantum_efficiency)
    level = _log_uniform((0.05, 0.6), rng) * 2**bits
    hot = rng.random() < settings.hot_pixel_probability
    # Nothing is drawn where there are none: the stacks of a seed stay what they were.
    columns = settings.column_probability > 0 and rng.random() < settings.column_probability
    return Sensor(
        quantum_efficiency=efficiency,
        read_noise_e=_log_uniform(settings.read_noise_e, rng),
        gain_adu_per_e=level / (2.0 * photons * efficiency),
        offset_adu=rng.uniform(0.01, 0.06) * 2**bits,
        bit_depth=bits,
        response_spread=_log_uniform(settings.response_spread, rng),
        hot_pixel_fraction=_log_uniform(settings.hot_pixel_fraction, rng) if hot else 0.0,
        hot_pixel_e=efficiency * photons,
        column_offset_e=_log_uniform(settings.column_offset_e, rng) if columns else 0.0,
        processing=draw_processing(settings, bits, rng),
    )


def draw_processing(
    settings: ForwardModelSettings, bits: int, rng: np.random.Generator
) -> Processing:
    """Draw what the camera does to its frames."""
    bayer, resampled, jpeg = rng.random(3) < (
        settings.bayer_probability,
        settings.resampling_probability,
        settings.jpeg_probability if bits == 8 else 0,
    )
    crf = None
    # Nothing is drawn where there are none: the stacks of a seed stay what they were.
    if settings.video_probability and bits == 8 and not jpeg:
        video = rng.random() < settings.video_probability
        crf = int(rng.integers(*settings.video_crf, endpoint=True)) if video else None
    return Processing(
        bayer=bool(bayer),
        resampling_sigma_px=rng.uniform(*settings.resampling_sigma_px) if resampled else 0.0,
        jpeg_quality=int(rng.integers(*settings.jpeg_quality, endpoint=True)) if jpeg else None,
        video_crf=crf,
    )


def _cone_rad(settings: ForwardModelSettings, rng: np.random.Generator) -> float:
    return float(np.radians(rng.choice(settings.waveguide_cones_deg)))


def _grid(shape: tuple[int, int], margin: int) -> Grid:
    return Grid(*(UPSAMPLING * (n + 2 * margin) for n in shape))


def _log_uniform(limits: tuple[float, float], rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(*np.log(limits))))

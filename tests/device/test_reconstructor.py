"""Window and stream modes over a step whose output can be told beforehand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from device import reconstructor
from device.camera import Frame
from device.model import Manifest, ModelError, OutputFilter
from device.normalize import NormalizationSettings, measure
from device.output_filter import OutputFilterSettings, without_lattice
from device.psf_width import PsfEstimate
from device.reconstructor import (
    ReconstructionError,
    Reconstructor,
    reconstruct_stream,
    reconstruct_window,
    said_error,
)
from device.ring_buffer import RingBuffer
from device.scene import Change, SceneWatch


class AddingStep:
    """Its image is the sum of all frames since the zero state, each pixel doubled in y and x."""

    name, sha256 = "adding", "0" * 64
    psf_width = None
    expected_error = None

    def __init__(self, frames: int = 5, multiple: int = 2, extra: tuple[str, ...] = ()) -> None:
        frame = {"shape": (1, 32, 32, 1)}
        inputs = {"frame": frame, "mean": frame, "h": frame}
        inputs |= {name: frame for name in extra}
        if "psf_sigma_px" in extra:
            inputs["psf_sigma_px"] = {"shape": (1, 1)}
        self.manifest = Manifest(
            format=1,
            name="adding",
            version="1",
            signature="step",
            frames=frames,
            upsampling=2,
            size_multiple=multiple,
            inputs=inputs,
            outputs={"image": {"shape": (1, 64, 64, 1)}, "h_out": frame},
            state={"h": "h_out"},
            normalization={
                "background_percentile": 5,
                "scale_percentile": 99.5,
                "min_contrast_sem": 3,
            },
            psf_sigma_px=(1.0, 3.0),
        )
        self.size: tuple[int, int] | None = None
        self.seen: list[dict[str, np.ndarray]] = []

    def resize(self, height: int, width: int) -> None:
        assert height % self.manifest.size_multiple == width % self.manifest.size_multiple == 0
        self.size = (height, width)

    def zero_state(self) -> dict[str, np.ndarray]:
        return {"h": np.zeros((1, *self.size, 1), np.float32)}

    def run(self, inputs: dict[str, np.ndarray], image: bool = True) -> dict[str, np.ndarray]:
        assert set(inputs) == set(self.manifest.inputs)
        assert inputs["frame"].shape == inputs["mean"].shape == (1, *self.size, 1)
        assert all(array.dtype == np.float32 for array in inputs.values())
        self.seen.append(inputs)
        h_out = inputs["h"] + inputs["frame"]
        return {"image": h_out.repeat(2, axis=1).repeat(2, axis=2), "h_out": h_out}


def _stack(count: int = 12, shape: tuple[int, int] = (17, 22), dtype: str = "uint16") -> np.ndarray:
    rng = np.random.default_rng(5)
    return (100 + rng.gamma(2, 40, (count, *shape))).clip(0, 255).astype(dtype)  # (T, H, W)


def _doubled(image: np.ndarray) -> np.ndarray:
    return image.repeat(2, axis=0).repeat(2, axis=1)


def _run(reconstructor: Reconstructor, stack: np.ndarray, buffer: RingBuffer, interval_ns: int = 1):
    results = []
    for index, array in enumerate(stack):
        frame = Frame(array, index * interval_ns, index)
        buffer.push(frame)
        results.append(reconstructor.push(frame, buffer))
    return results


@pytest.mark.parametrize("shape", [(16, 16), (17, 22), (33, 19), (128, 40)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_window_is_its_frames_by_its_own_statistics(shape, dtype):
    """Mutations: each frame scaled by itself; background left in or added back; no crop."""
    stack = _stack(5, shape, dtype)
    result = reconstruct_window(AddingStep(), stack)
    background = measure(stack.mean(0)).background
    # Sum of five frames above background: float32 sums, a scale divided out and multiplied in.
    expected = _doubled((stack.astype(np.float64) - background).sum(0))
    np.testing.assert_allclose(result.image, expected, rtol=1e-5, atol=1e-2)
    assert result.image.dtype == np.float32
    assert result.scaling.scale == pytest.approx(measure(stack.mean(0)).scale, rel=1e-6)


class LeaningStep(AddingStep):
    """One that is not symmetric: its image is brighter from row to row."""

    def run(self, inputs: dict[str, np.ndarray], image: bool = True) -> dict[str, np.ndarray]:
        made = super().run(inputs, image)
        rows = np.arange(made["image"].shape[1], dtype=np.float32)
        return made | {"image": made["image"] * (1 + rows)[None, :, None, None]}


@pytest.mark.parametrize("shape", [(16, 16), (17, 22)])
def test_a_window_is_played_transposed_too(shape):
    """Mutations: played once; the second image not transposed back, added without halving, or begun
    with the state of the first; frames transposed, but not their mean; one size for both."""
    stack, step = _stack(5, shape), LeaningStep(extra=("previous",))
    result = reconstruct_window(step, stack)
    total = _doubled((stack.astype(np.float64) - measure(stack.mean(0)).background).sum(0))
    y, x = np.indices(total.shape)
    np.testing.assert_allclose(result.image, total * (2 + y + x) / 2, rtol=1e-5, atol=0.3)
    first, second = step.seen[:5], step.seen[5:]
    for one, other in zip(first, second, strict=True):
        for name in ("frame", "mean", "previous"):
            np.testing.assert_array_equal(one[name][0, :, :, 0].T, other[name][0, :, :, 0])
    across = reconstruct_window(step, stack.transpose(0, 2, 1)).image
    np.testing.assert_array_equal(across, result.image.T)


def test_a_stream_is_played_once():
    """Mutation: a stream that takes twice as long."""
    step = LeaningStep()
    list(reconstruct_stream(step, _stack(7)))
    assert len(step.seen) == 7


def test_a_long_stack_gives_its_last_window():
    """Mutation: the first frames are used, or all."""
    stack = _stack(12)
    long, last = (reconstruct_window(AddingStep(), frames) for frames in (stack, stack[-5:]))
    np.testing.assert_array_equal(long.image, last.image)
    assert (long.index, last.index) == (11, 4)
    assert (long.frames, long.warming) == (5, False)


def test_a_short_stack_is_warming():
    """Mutation: warming is counted against the buffer instead of the model's window."""
    result = reconstruct_window(AddingStep(), _stack(3))
    assert (result.frames, result.warming) == (3, True)


def test_the_live_window_equals_the_window_of_a_file():
    """Mutation: state carried from window to window; order of the ring instead of time."""
    stack = _stack(12)
    step = AddingStep()
    live = _run(Reconstructor(step, "window"), stack, RingBuffer(5, stack.shape[1:], stack.dtype))
    assert live[0] is None
    for end in (2, 5, 9, 12):
        expected = reconstruct_window(AddingStep(), stack[:end][-5:])
        np.testing.assert_array_equal(live[end - 1].image, expected.image)
        assert live[end - 1].frames == min(end, 5)


def test_the_stream_carries_its_state_and_looks_only_back():
    """Mutations: state not carried; statistics of all frames; a later frame changes an image."""
    stack = _stack(12)
    step = AddingStep()
    images = [result.image for result in reconstruct_stream(step, stack)]
    assert len(images) == 12
    state = 0.0
    for index, image in enumerate(images):
        mean = stack[max(0, index - 4) : index + 1].mean(0)  # the last 5 frames at most
        scaling = measure(mean)
        state = state + (stack[index] - scaling.background) / scaling.scale
        np.testing.assert_allclose(image, _doubled(state * scaling.scale), rtol=1e-4, atol=1e-2)
        given = step.seen[index]["mean"][0, :17, :22, 0]
        np.testing.assert_allclose(given, scaling.normalize(mean), atol=1e-4)
    early = [result.image for result in reconstruct_stream(AddingStep(), stack[:7])]
    np.testing.assert_array_equal(early, images[:7])


def test_the_live_stream_equals_the_stream_of_a_file_from_its_second_frame():
    """Mutation: the first frame is not fed to the step because no image is shown for it."""
    stack = _stack(8)
    buffer = RingBuffer(5, stack.shape[1:], stack.dtype)
    live = _run(Reconstructor(AddingStep(), "stream"), stack, buffer)
    file = list(reconstruct_stream(AddingStep(), stack))
    assert live[0] is None
    for ours, theirs in zip(live[1:], file[1:], strict=True):
        np.testing.assert_array_equal(ours.image, theirs.image)
    assert [r.frames for r in live[1:]] == [2, 3, 4, 5, 5, 5, 5]
    assert [r.warming for r in live[1:]] == [True] * 3 + [False] * 4


def test_reset_begins_anew():
    """Mutation: reset keeps the state, the count or the frame before."""
    stack = _stack(6)
    step = AddingStep(extra=("previous",))
    reconstructor = Reconstructor(step, "stream")
    buffer = RingBuffer(5, stack.shape[1:], stack.dtype)
    _run(reconstructor, stack[:3], buffer)
    reconstructor.reset()
    buffer.clear()
    again = _run(reconstructor, stack[3:], buffer)
    fresh = list(reconstruct_stream(AddingStep(), stack[3:]))
    assert again[0] is None
    np.testing.assert_array_equal(again[2].image, fresh[2].image)
    np.testing.assert_array_equal(step.seen[3]["previous"], step.seen[3]["frame"])


def test_another_size_begins_anew():
    """Mutation: the state of the old size is given to the step of the new."""
    reconstructor = Reconstructor(AddingStep(), "stream")
    for shape in ((16, 16), (20, 31)):
        stack = _stack(3, shape)
        results = _run(reconstructor, stack, RingBuffer(5, shape, stack.dtype))
        assert results[0] is None
        assert results[2].image.shape == (2 * shape[0], 2 * shape[1])
        assert results[2].frames == 3


@pytest.mark.parametrize("multiple", [1, 2, 4, 16])
def test_padding_reflects_and_leaves_the_grid_alone(multiple):
    """Mutations: padding above and to the left (shifts the grid); zeros; the edge pixel twice."""
    stack = _stack(2, (17, 22))
    step = AddingStep(multiple=multiple)
    result = reconstruct_window(step, stack)
    given = step.seen[0]["frame"][0, :, :, 0]
    assert given.shape[0] % multiple == given.shape[1] % multiple == 0
    assert given.shape[0] - 17 < multiple
    np.testing.assert_array_equal(given[:17, :22], result.scaling.normalize(stack[0]))
    mirror = np.pad(
        given[:17, :22], ((0, given.shape[0] - 17), (0, given.shape[1] - 22)), "reflect"
    )
    np.testing.assert_array_equal(given, mirror)
    assert result.image.shape == (34, 44)


def test_previous_is_the_frame_before_in_the_scale_of_now():
    """Mutation: previous keeps the scale of its own time, or is the frame itself."""
    stack = _stack(4)
    step = AddingStep(extra=("previous",))
    results = list(reconstruct_stream(step, stack))
    for index in (1, 2, 3):
        given = step.seen[index]["previous"][0, :17, :22, 0]
        np.testing.assert_array_equal(given, results[index].scaling.normalize(stack[index - 1]))


@pytest.mark.parametrize(("given", "expected"), [(None, 0.0), (1.3, 1.3), (9.0, 3.0)])
def test_the_psf_width_is_given_to_models_that_ask(given, expected):
    """Mutation: the width asked for is ignored, one that is not known is made up, or one that the
    model was not trained for is told."""
    step = AddingStep(extra=("psf_sigma_px",))
    reconstruct_window(step, _stack(3), psf_sigma_px=given)
    np.testing.assert_array_equal(step.seen[0]["psf_sigma_px"], np.float32([[expected]]))


class Finding:
    """Finds always the same width of the PSF."""

    def __init__(self, sigma_px: float, relative_error: float = 1e-9) -> None:
        self.found = PsfEstimate(sigma_px, relative_error)

    def estimate(self, frames: np.ndarray) -> PsfEstimate:
        return self.found


def _finding(sigma_px: float, relative_error: float = 1e-9) -> AddingStep:
    step = AddingStep(extra=("psf_sigma_px",))
    step.psf_width = Finding(sigma_px, relative_error)
    return step


def _seen(count: int, shape: tuple[int, int] = (32, 32)) -> np.ndarray:
    """Frames with something to see, (T, H, W)."""
    stack = np.random.default_rng(shape[0]).poisson(50, (count, *shape)).astype(np.uint16)
    stack[:, : shape[0] // 2] += 100
    return stack


@pytest.mark.parametrize(
    ("found", "given", "told"),
    [
        ((1.5, 1e-9), None, 1.5),
        ((9.0, 1e-9), None, 3.0),
        ((1.5, 0.9), None, None),
        ((1.5, 1e-9), 1.2, 1.2),
    ],
)
def test_a_blind_network_is_told_the_width_that_its_frames_tell(found, given, told):
    """Mutations: what is given is overruled; a width that the model was not trained for, or that
    is hardly known, is told; a result that says another."""
    step = _finding(*found)
    result = reconstruct_window(step, _seen(5), psf_sigma_px=given)
    widths = [float(inputs["psf_sigma_px"][0, 0]) for inputs in step.seen]
    assert widths == pytest.approx([told or 0.0] * 10)
    assert result.psf_sigma_px == (told and pytest.approx(told))
    assert (result.psf_found is None) == (given is not None)
    if given is None:
        assert result.psf_found.sigma_px == pytest.approx(found[0])


def test_a_stream_is_told_the_width_from_its_first_full_buffer_on():
    """Mutations: found in the first frames, of which there are too few; forgotten again; kept for
    another series."""
    step, stack = _finding(1.5), _seen(7)
    reconstructor, buffer = Reconstructor(step), RingBuffer(5, stack.shape[1:], stack.dtype)
    told = []
    for index, array in enumerate(stack):
        buffer.push(Frame(array, index, index))
        reconstructor.push(Frame(array, index, index), buffer)
        told.append(float(step.seen[-1]["psf_sigma_px"][0, 0]))
    assert told == pytest.approx([0.0] * 4 + [1.5] * 3)
    assert reconstructor.psf_found == PsfEstimate(1.5, pytest.approx(1e-9))
    reconstructor.set_psf(1.2)
    assert reconstructor.psf_found is None
    reconstructor.set_psf(None)
    reconstructor.begin_anew()
    reconstructor.push(Frame(stack[0], 7, 7), buffer)
    assert float(step.seen[-1]["psf_sigma_px"][0, 0]) == pytest.approx(1.5)
    reconstructor.reset()
    assert reconstructor.psf_found is None


@pytest.mark.parametrize("moved", [True, False])
def test_of_a_specimen_that_was_moved_the_width_stays_known(moved, monkeypatch):
    """Mutations: all that was known of it forgotten; the width kept for another specimen; frames
    that are not forgotten."""
    step, stack = _finding(1.5), _seen(7)
    reconstructor, buffer = Reconstructor(step), RingBuffer(5, stack.shape[1:], stack.dtype)
    for index, array in enumerate(stack):
        buffer.push(Frame(array, index, index))
        reconstructor.push(Frame(array, index, index), buffer)
    told = Change(2, moved)
    monkeypatch.setattr(SceneWatch, "changed", lambda *_: told)
    assert reconstructor.scene_changed(stack[0]) is told
    buffer.keep_last(told.shown)
    buffer.push(Frame(stack[0], 7, 7))
    assert reconstructor.push(Frame(stack[0], 7, 7), buffer).frames == 3
    width = float(step.seen[-1]["psf_sigma_px"][0, 0])
    assert width == pytest.approx(1.5 if moved else 0.0)


class AgeingStep(AddingStep):
    """Its image is everywhere the number of frames that its state has seen."""

    def run(self, inputs: dict[str, np.ndarray], image: bool = True) -> dict[str, np.ndarray]:
        counted = super().run(inputs | {"frame": np.ones_like(inputs["frame"])}, image)
        self.seen[-1]["image wanted"] = image
        return counted


def test_no_state_of_a_stream_is_older_than_two_turns(monkeypatch):
    """Mutations: a state that is never renewed, or speaks while it is young; an image of the
    successor, which costs three times as much and nobody looks at; a successor of a window's."""
    monkeypatch.setattr(reconstructor, "RENEWED_AFTER", 3)
    step = AgeingStep(frames=12)
    results = list(reconstruct_stream(step, _stack(12)))
    ages = [result.image.mean() / result.scaling.scale for result in results]
    assert ages == pytest.approx([1, 2, 3, 4, 5, 6, 4, 5, 6, 4, 5, 6])
    assert [each["image wanted"] for each in step.seen].count(True) == 12
    step = AgeingStep(frames=3)
    live = Reconstructor(step, "window")
    for result in _run(live, _stack(12), RingBuffer(3, (17, 22), np.uint16))[2:]:
        assert result.image.mean() / result.scaling.scale == pytest.approx(3)
    assert len(step.seen) == 2 * (2 + 3 * 10)


@pytest.mark.parametrize("mode", ["stream", "window"])
def test_frames_of_another_size_are_another_microscopes(mode):
    """Mutation: the width in px of other pixels is told on."""
    step = _finding(1.5)
    reconstructor = Reconstructor(step, mode)
    for side, told in ((32, 1.5), (48, 0.0)):
        stack = _seen(5 if told else 2, (side, side))
        buffer = RingBuffer(5, (side, side), np.uint16)
        for index, array in enumerate(stack):
            buffer.push(Frame(array, index, index))
            reconstructor.push(Frame(array, index, index), buffer)
        assert float(step.seen[-1]["psf_sigma_px"][0, 0]) == pytest.approx(told)


def test_only_the_middle_of_a_large_field_is_normalized_for_it():
    """Mutation: whole frames, which takes a second and gigabytes where they are large."""
    seen = []
    step = _finding(1.5)
    step.psf_width.estimate = lambda frames: seen.append(frames.shape)
    reconstruct_window(step, _seen(5, (300, 280)))
    assert seen == [(5, 256, 256)]


def test_nothing_is_looked_for_where_there_is_nothing_to_see():
    """Mutation: the width of a PSF is read out of noise."""
    noise = np.random.default_rng(0).poisson(100, (5, 64, 64)).astype(np.uint16)
    assert reconstruct_window(_finding(1.5), noise).psf_found is None


class RepeatingStep(AddingStep):
    """Shows what repeats in its frames: damps all else to nothing."""

    def __init__(self, frames: int = 12, extra: tuple[str, ...] = ()) -> None:
        super().__init__(frames, extra=extra)
        numbers = OutputFilter(notch_order=8, none=0.4, full=0.6, floor=0.0)
        self.manifest = self.manifest.model_copy(update={"output_filter": numbers})


def _speckled(count: int) -> np.ndarray:
    """Coarse structure that every frame shows, under noise that none shares; (count, 32, 32)."""
    y, x = np.indices((32, 32))
    coarse = 1000 + 400 * np.cos(2 * np.pi * x / 32) * np.cos(2 * np.pi * y / 32)
    return (coarse + np.random.default_rng(8).normal(0, 60, (count, 32, 32))).astype(np.float32)


def _without_lattice(image: np.ndarray) -> np.ndarray:
    return without_lattice(image, OutputFilterSettings(notch_order=8))


def test_a_window_shows_what_both_halves_of_its_frames_show():
    """Mutations: halves that share frames; not weighed; weighed twice; weighed in another scale."""
    stack = _speckled(12)
    shown = reconstruct_window(RepeatingStep(), stack).image
    raw = reconstruct_window(AddingStep(12), stack).image
    truth = _doubled(12 * (stack.astype(np.float64).mean(0)))
    assert np.corrcoef(shown.ravel(), truth.ravel())[0, 1] > 0.97
    rough = [np.abs(np.diff(image[::2, ::2], 2, axis=0)).mean() for image in (shown, raw)]
    assert rough[0] < 0.3 * rough[1]
    assert shown.mean() == pytest.approx(np.maximum(raw, 0).mean(), rel=0.01)


def test_frames_that_are_all_the_same_are_shown_as_they_are():
    """Mutation: halves of unequal frames, or of another mean."""
    stack = np.repeat(_speckled(1), 12, axis=0)
    stack[0] += 1  # noise so small that nothing is damped
    shown, raw = (
        reconstruct_window(step, stack).image for step in (RepeatingStep(), AddingStep(12))
    )
    np.testing.assert_allclose(shown, _without_lattice(raw), atol=0.01 * np.ptp(raw))


def test_each_half_is_played_from_nothing_with_its_own_mean():
    """Mutations: every frame in both halves; the mean of all; one half's state for the other."""
    stack, step = _speckled(12), RepeatingStep()
    scaling = reconstruct_window(step, stack).scaling
    assert len(step.seen) == 12 + 12 + 6 + 6
    for k, played in enumerate((step.seen[24:30], step.seen[30:])):
        half = stack[k::2]
        for given, frame in zip(played, half, strict=True):
            np.testing.assert_allclose(given["frame"][0, ..., 0], scaling.normalize(frame))
            np.testing.assert_allclose(
                given["mean"][0, ..., 0], scaling.normalize(half.mean(0)), atol=1e-5
            )
        assert not played[0]["h"].any()


def test_fewer_frames_than_tell_are_shown_as_they_are():
    """Mutation: weights by a half of three frames; those of the window before."""
    step, stack = RepeatingStep(), _speckled(24)
    window = Reconstructor(step, "window")
    buffer = RingBuffer(12, stack.shape[1:], stack.dtype)
    _run(window, stack, buffer)
    buffer.keep_last(7)
    shown = window.push(Frame(stack[-1], 0, 24), buffer).image
    raw = reconstruct_window(AddingStep(12), stack[-7:]).image
    np.testing.assert_allclose(shown, _without_lattice(raw), atol=0.01)


def _steps_at_each_frame(
    stream: Reconstructor, stack: np.ndarray, buffer: RingBuffer | None = None, every: int = 1
) -> list[int]:
    """Push frames whose indices are `every` apart, as of a camera whose others were skipped."""
    if buffer is None:
        buffer = RingBuffer(12, stack.shape[1:], stack.dtype)
    made = [stream.steps]
    for k, array in enumerate(stack):
        frame = Frame(array, k, every * k + 1)
        buffer.push(frame)
        stream.push(frame, buffer)
        made.append(stream.steps)
    return list(np.diff(made))


FIRST_LOOK = [1] * 11 + [2] * 12  # the 12 frames of a full buffer, one with each image


@pytest.mark.parametrize("every", [1, 2, 4])
def test_a_stream_is_looked_at_once_it_can_be_and_then_now_and_then(every):
    """Mutations: a whole window's work at one image; never again, where the camera's indices are
    never multiples of four."""
    stream = Reconstructor(RepeatingStep(), "stream")
    steps = _steps_at_each_frame(stream, _speckled(120), every=every)
    assert steps[:23] == FIRST_LOOK
    assert stream._damping.min() < 0.3
    later = steps[24:]
    assert set(later) == {1, 2} and later.count(2) == pytest.approx(len(later) / 4, abs=3)


def test_nothing_is_damped_before_the_first_look_has_ended():
    """Mutations: what one half shows alone; a look whose answer is not used."""
    stream, stack = Reconstructor(RepeatingStep(), "stream"), _speckled(30)
    raw = Reconstructor(AddingStep(12), "stream")
    buffers = [RingBuffer(12, stack.shape[1:], stack.dtype) for _ in range(2)]
    shown = [
        [result and result.image for result in _run(each, stack, buffer)]
        for each, buffer in zip((stream, raw), buffers, strict=True)
    ]
    for k in (5, 15, 21):
        np.testing.assert_allclose(shown[0][k], _without_lattice(shown[1][k]), atol=0.1)
    assert np.abs(shown[0][22] - _without_lattice(shown[1][22])).max() > 50


def test_another_place_is_looked_at_at_once_and_another_scene_begins_undamped():
    """Mutations: what one scene repeats, damped in another; the next look in four windows' time; a
    look at frames of both."""
    stream, stack = Reconstructor(RepeatingStep(), "stream"), _speckled(60)
    _steps_at_each_frame(stream, stack)
    found = stream._damping
    stream.begin_anew()
    assert stream._damping is found
    assert _steps_at_each_frame(stream, stack[:23]) == FIRST_LOOK
    assert stream._damping is not found
    stream.reset()
    assert stream._damping is None
    assert _steps_at_each_frame(stream, stack[:23]) == FIRST_LOOK


def test_another_width_of_the_psf_is_looked_at_at_once():
    """Mutation: damped by what was seen while another width was told."""
    step = RepeatingStep()
    stream, buffer = Reconstructor(step, "stream"), RingBuffer(12, (32, 32), np.float32)
    _steps_at_each_frame(stream, _speckled(60), buffer)
    stream.set_psf(1.5)
    assert _steps_at_each_frame(stream, _speckled(13), buffer) == [2] * 12 + [1]


def test_a_width_that_is_found_at_last_is_looked_at_at_once():
    """Mutation: damped for four windows more by what was seen while none was known."""
    step = RepeatingStep(extra=("psf_sigma_px",))
    step.psf_width = Finding(1.5, relative_error=1.0)  # too unsure to be told
    stream, buffer = Reconstructor(step, "stream"), RingBuffer(12, (32, 32), np.float32)
    assert _steps_at_each_frame(stream, _speckled(35), buffer)[23:].count(2) == 3
    step.psf_width.found = PsfEstimate(1.5, 1e-9)
    assert _steps_at_each_frame(stream, _speckled(13), buffer) == [2] * 12 + [1]


def test_a_look_is_told_one_width_of_the_psf_from_its_first_step_to_its_last():
    """Mutation: the width found meanwhile, from then on: halves that differ by it."""
    step = RepeatingStep(extra=("psf_sigma_px",))
    step.psf_width = Finding(1.5)
    stream, buffer = Reconstructor(step, "stream"), RingBuffer(12, (32, 32), np.float32)
    told = []
    for array in _speckled(24):
        if len(told) == 15:
            step.psf_width = stream._psf_watch._estimator = Finding(2.5)
            stream._psf_watch.reset()
        first = len(step.seen)
        _run(stream, array[None], buffer)
        told.append([float(each["psf_sigma_px"][0, 0]) for each in step.seen[first:]])
    assert [len(each) for each in told] == [1] * 11 + [2] * 12 + [1]
    assert {own for own, *_ in told[15:]} == {2.5}
    assert {other for _, *others in told for other in others} == {1.5}


@pytest.mark.parametrize("shape", [(33, 31), (64, 40)])
def test_frames_of_odd_size_are_damped_without_their_padding(shape):
    """Mutation: padding that counts, or an image of its size."""
    stack = np.random.default_rng(3).poisson(200, (12, *shape)).astype(np.float32)
    stack[:, : shape[0] // 2] += 500
    stream = Reconstructor(RepeatingStep(), "stream")
    result = _run(stream, np.concatenate([stack, stack]), RingBuffer(12, shape, np.float32))[-1]
    assert result.image.shape == stream._damping.shape == (2 * shape[0], 2 * shape[1])
    assert reconstruct_window(RepeatingStep(), stack).image.shape == result.image.shape


def test_frames_of_another_shape_of_the_same_padded_size_begin_anew():
    """Mutation: damping of another shape, which cannot be applied."""
    stream, stack = Reconstructor(RepeatingStep(), "stream"), _speckled(40)
    _steps_at_each_frame(stream, stack[:, :, :31])
    assert stream._damping.shape == (64, 62)
    assert _steps_at_each_frame(stream, stack[:23]) == FIRST_LOOK
    assert stream._damping.shape == (64, 64)


def test_a_stream_is_judged_anew_as_it_goes_on():
    """Mutation: the first answer for ever."""
    stack = _speckled(24)
    still = stack[:1] + np.arange(120, dtype=np.float32)[:, None, None] / 100
    stream = Reconstructor(RepeatingStep(), "stream")
    buffer = RingBuffer(12, stack.shape[1:], stack.dtype)
    _run(stream, stack, buffer)
    assert stream._damping.min() < 0.3
    _run(stream, still, buffer)
    assert stream._damping.min() > 0.9


def test_a_stream_does_not_go_on_with_what_a_window_damped():
    """Mutation: the window's answer is kept, for frames that may be others by now."""
    both, stack = Reconstructor(RepeatingStep(), "window"), _speckled(12)
    buffer = RingBuffer(12, stack.shape[1:], stack.dtype)
    _run(both, stack, buffer)
    both.mode = "stream"
    shown = _run(both, stack[:1], buffer)[0].image
    raw = Reconstructor(AddingStep(12), "stream")
    buffer = RingBuffer(12, stack.shape[1:], stack.dtype)
    for array in np.concatenate([stack, stack[:1]])[-12:-1]:
        buffer.push(Frame(array, 0, 0))
    expected = _run(raw, stack[:1], buffer)[0].image
    np.testing.assert_allclose(shown, _without_lattice(expected), atol=0.1)


def test_a_look_that_fails_begins_anew():
    """Mutation: it counts as one that has found something, and the next waits for four windows."""
    step = RepeatingStep()
    stream, buffer = Reconstructor(step, "stream"), RingBuffer(12, (32, 32), np.float32)
    _steps_at_each_frame(stream, _speckled(14), buffer)
    run, step.run = step.run, _failing_at_the_second_call(step.run)
    with pytest.raises(ModelError):
        _run(stream, _speckled(1), buffer)
    step.run = run
    assert _steps_at_each_frame(stream, _speckled(13), buffer) == [2] * 12 + [1]
    assert stream._damping is not None


def _failing_at_the_second_call(run):
    calls = []

    def once(*given, **named):
        calls.append(0)
        if len(calls) == 2:
            raise ModelError("the runtime failed")
        return run(*given, **named)

    return once


@pytest.mark.parametrize("mode", ["window", "stream"])
def test_noise_is_not_looked_at(mode):
    """Mutation: twice the steps where there is nothing to see."""
    noise = np.random.default_rng(0).poisson(100, (24, 64, 64)).astype(np.uint16)
    step = RepeatingStep()
    reconstructor = Reconstructor(step, mode)
    buffer = RingBuffer(12, (64, 64), np.uint16)
    if mode == "stream":
        assert _steps_at_each_frame(reconstructor, noise, buffer) == [1] * 24
    else:
        for array in noise[:12]:
            buffer.push(Frame(array, 0, 0))
        assert reconstructor.push(Frame(noise[11], 0, 0), buffer).nothing_to_see
        assert reconstructor.steps == 24


def test_a_look_is_at_the_last_frames_of_a_longer_buffer():
    """Mutation: at the first of them, which a long buffer keeps for long."""
    stack, step = _speckled(30), RepeatingStep()
    stream, buffer = Reconstructor(step, "stream"), RingBuffer(30, (32, 32), np.float32)
    for array in stack[:20]:
        buffer.push(Frame(array, 0, 0))
    _run(stream, stack[20:21], buffer)
    scaling = stream._stream(Frame(stack[20], 0, 0), buffer).scaling
    looked_at = step.seen[21]["frame"][0, ..., 0]
    np.testing.assert_allclose(looked_at, scaling.normalize(stack[9]), atol=1e-5)


class LatticeStep(RepeatingStep):
    """Draws a lattice of its own over every image."""

    def run(self, inputs, image=True):
        outputs = super().run(inputs, image)
        y, x = np.indices(outputs["image"].shape[1:3])
        outputs["image"] = outputs["image"] + 0.2 * (1 + (-1.0) ** (y + x))[None, ..., None]
        return outputs


def test_a_lattice_is_not_taken_for_what_repeats():
    """Mutation: halves with their lattice, so that the finest band repeats, noise and all."""
    stack = _speckled(30)
    found = []
    for step in (RepeatingStep(), LatticeStep()):
        stream = Reconstructor(step, "stream")
        _steps_at_each_frame(stream, stack)
        found.append(stream._damping)
    middle = (slice(40, 60), slice(40, 60))
    np.testing.assert_allclose(found[1][middle], found[0][middle], atol=0.2)


@pytest.mark.parametrize("mode", ["window", "stream"])
def test_each_step_of_a_look_has_the_frame_before_it(mode):
    """Mutations: always the first; the last; that of the other half."""
    stack, step = _speckled(24), RepeatingStep(extra=("previous",))
    if mode == "window":
        reconstruct_window(step, stack[:12])
        halves = step.seen[24:30], step.seen[30:36]
    else:
        _steps_at_each_frame(Reconstructor(step, "stream"), stack)
        looks = step.seen[12:36:2]
        halves = looks[:6], looks[6:]
    for half in halves:
        before = half[0]["frame"]
        for inputs in half:
            np.testing.assert_array_equal(inputs["previous"], before)
            before = inputs["frame"]


def test_an_old_answer_is_forgotten_where_no_other_follows():
    """Mutation: frames that come in short bursts, each of another place, damped by the first."""
    stream, stack = Reconstructor(RepeatingStep(), "stream"), _speckled(30)
    _steps_at_each_frame(stream, stack)
    for bursts, there in ((10, True), (10, False)):
        for _ in range(bursts):
            stream.begin_anew()
            _steps_at_each_frame(stream, stack[:6])
        assert (stream._damping is not None) is there
    _steps_at_each_frame(stream, _speckled(300))
    assert stream._damping is not None


def test_a_look_does_not_outlive_its_light():
    """Mutation: a look that began on one specimen and goes on when the light is on again."""
    stream, buffer = Reconstructor(RepeatingStep(), "stream"), RingBuffer(12, (32, 32), np.float32)
    _steps_at_each_frame(stream, _speckled(16), buffer)
    dark = np.random.default_rng(2).normal(0, 60, (40, 32, 32)).astype(np.float32)
    assert 1 in _steps_at_each_frame(stream, dark, buffer) and stream._look is None


class Judging:
    """Says that each pixel may be off by what it was shown: `std`, enlarged, and nothing else."""

    def estimate(self, image, mean, std, psf_sigma_px):
        assert psf_sigma_px is None
        assert 1 < mean.max() < 5  # normalized, not ADU
        return _doubled(std)


@pytest.mark.parametrize("mode", ["window", "stream"])
def test_a_result_knows_its_error_where_the_model_tells_it(mode):
    """Mutations: of other frames; normalized; padding left on; a guess for fewer frames than the
    model was judged on; an even field that is certain."""
    stack, step = _stack(count=9), AddingStep(frames=5)
    step.expected_error = Judging()

    def last(frames):
        if mode == "window":
            return reconstruct_window(step, frames)
        return [*reconstruct_stream(step, frames)][-1]

    result = last(stack)
    expected = _doubled(stack[-5:].std(axis=0))
    np.testing.assert_allclose(said_error(step, result), expected, rtol=1e-4)
    assert said_error(step, last(stack[:4])) is None
    assert said_error(step, last(np.full((5, 17, 22), 7, np.uint16))) is None
    step.expected_error = None
    assert said_error(step, result) is None


def test_a_constant_stack_gives_a_constant_and_the_verdict():
    """Mutation: division by a scale of 0."""
    stack = np.full((5, 20, 20), 77, np.uint8)
    result = reconstruct_window(AddingStep(), stack)
    assert result.nothing_to_see
    assert not result.image.any()


def test_noise_alone_has_the_verdict_and_a_sample_has_not():
    """Mutation: the buffer's standard error is not handed to the measurement."""
    rng = np.random.default_rng(0)
    noise = rng.poisson(100, (5, 64, 64)).astype(np.uint16)
    sample = noise.copy()
    sample[:, 20:40, 20:40] += 200
    assert reconstruct_window(AddingStep(), noise).nothing_to_see
    assert not reconstruct_window(AddingStep(), sample).nothing_to_see


@pytest.mark.parametrize("mode", ["stream", "window"])
def test_gaps_span_and_newest_frame_are_told(mode):
    """Mutation: the oldest frame's time, or gaps of frames that left the window."""
    stack = _stack(8)
    reconstructor = Reconstructor(AddingStep(), mode, interval_s=0.01)
    buffer = RingBuffer(5, stack.shape[1:], stack.dtype)
    for index, (array, slot) in enumerate(zip(stack, (0, 1, 4, 5, 6, 8, 9, 10), strict=True)):
        frame = Frame(array, slot * 10_000_000, index)
        buffer.push(frame)
        result = reconstructor.push(frame, buffer)
    assert (result.gaps, result.index, result.timestamp_ns) == (1, 7, 100_000_000)
    assert result.span_ms == pytest.approx(50)  # slots 5 to 10
    assert result.mode == mode


def test_the_manifests_numbers_are_used():
    """Mutation: the normalization's defaults instead of the manifest's numbers."""
    step = AddingStep()
    other = NormalizationSettings(50.0, 90.0, 3.0)
    numbers = SimpleNamespace(settings=lambda: other)
    step.manifest = step.manifest.model_copy(update={"normalization": numbers})
    stack = _stack(5)
    result = reconstruct_window(step, stack)
    assert result.scaling.background == pytest.approx(
        measure(stack.mean(0), settings=other).background, rel=1e-6
    )


def _with_nan() -> np.ndarray:
    stack = _stack(5, dtype="float32")
    stack[3, 2, 2] = np.nan
    return stack


BAD = {
    "one frame": (_stack(1), "at least 2 frames"),
    "an image": (_stack(1)[0], "at least 2 frames"),
    "too small": (_stack(5, (15, 40)), "shape"),
    "colour": (np.zeros((5, 20, 20, 3), np.uint8), "at least 2 frames|shape"),
    "not finite": (_with_nan(), "frame 3 has pixels that are not finite"),
    "another type": (np.zeros((5, 20, 20), np.int32), "type int32"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_window_is_refused_with_a_sentence(what):
    """Mutation: any one of the checks left out (each row is one)."""
    stack, words = BAD[what]
    with pytest.raises(ReconstructionError, match=words):
        reconstruct_window(AddingStep(), stack)


@pytest.mark.parametrize("what", ["too small", "colour", "not finite", "another type"])
def test_a_bad_stream_is_refused_with_a_sentence(what):
    """Mutation: only windows are checked."""
    with pytest.raises(ReconstructionError):
        list(reconstruct_stream(AddingStep(), BAD[what][0]))


def test_a_stream_that_changes_is_refused():
    """Mutation: the ring buffer's ValueError reaches the user."""
    frames = [_stack(1)[0], _stack(1, (16, 16))[0]]
    with pytest.raises(ReconstructionError, match="the first uint16"):
        list(reconstruct_stream(AddingStep(), frames))


def test_a_stream_is_taken_one_by_one():
    """Mutation: the whole stack is read before the first image (memory grows with its length)."""
    taken = []

    def frames():
        for array in _stack(4):
            taken.append(1)
            yield array

    next(reconstruct_stream(AddingStep(), frames()))
    assert len(taken) == 1


def test_an_empty_stream_gives_nothing():
    """Mutation: StopIteration inside the generator."""
    assert list(reconstruct_stream(AddingStep(), [])) == []


def test_there_are_two_modes():
    """Mutation: any word is taken for stream."""
    with pytest.raises(ValueError, match="stream or window"):
        Reconstructor(AddingStep(), "both")

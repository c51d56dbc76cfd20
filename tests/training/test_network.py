"""The step: bounded, on the contract's grid, the same unrolled as one by one."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import keras
import numpy as np
import pytest

from training import network as training_network
from training.network import (
    ACTIVATION_RANGE,
    CELL_RANGE,
    CLOSE_LIMITS,
    CONTEXT_LIMITS,
    FIRST_LIMITS,
    FRAME_RANGE,
    GATE_RANGE,
    LAST_LIMITS,
    MEAN_RANGE,
    PART_RANGE,
    SCALE_RANGE,
    FoldedConv2D,
    HeadLimits,
    NetworkSettings,
    Step,
    Unrolled,
    as_int8,
    build_step,
    take_over,
)

TINY = NetworkSettings(head_filters=4, head_layers=1, context_px=(4,), estimates=2)
Arrays = dict[str, np.ndarray]


def randomized(step: Step, seed: int, size: float = 0.4) -> Step:
    """Give every weight but the fixed interpolation's a random value: nothing stays at zero."""
    rng = np.random.default_rng(seed)
    for variable in step.trainable_variables:
        if "upsampling" not in variable.path:
            variable.assign(rng.normal(0, size, variable.shape).astype(np.float32))
    return step


@pytest.fixture(scope="module")
def step() -> Step:
    """A tiny step for frames of 16 x 20, weights random."""
    return randomized(build_step(TINY, 16, 20), 1)


def run(
    step: Step,
    frame: np.ndarray,
    mean: np.ndarray,
    state: Arrays,
    psf_sigma_px: float | np.ndarray = 0.0,
) -> Arrays:
    psf = np.full((len(frame), 1), psf_sigma_px, np.float32)
    inputs = {"frame": frame[..., None], "mean": mean[..., None], "psf_sigma_px": psf, **state}
    return {name: keras.ops.convert_to_numpy(value) for name, value in step(inputs).items()}


def zero_state(step: Step, batch: int, height: int, width: int) -> Arrays:
    zeros = np.zeros((batch, *step.state_shape(height, width)), np.float32)
    return {"h": zeros, "c": zeros}


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_the_state_stays_within_1_whatever_comes(size: float) -> None:
    """Catches separate input and forget gates, and an output without tanh: both grow.

    One unit in the last place, 1.2e-7, is what rounding may add.
    """
    step = randomized(build_step(TINY, 8, 8), 2, size=3.0)
    rng, state = np.random.default_rng(3), zero_state(step, 2, 8, 8)
    for _ in range(100):
        frame, mean = rng.normal(0, size, (2, 2, 8, 8)).astype(np.float32)
        outputs = run(step, frame, mean, state)
        state = {"h": outputs["h_out"], "c": outputs["c_out"]}
        for values in state.values():
            assert np.abs(values).max() <= 1 + 2e-7
    assert np.abs(state["c"]).max() > 0.9  # the test reaches the bound


def test_shapes_are_those_of_the_contract(step: Step) -> None:
    """Catches a swap of height and width, and another upsampling."""
    frame = np.zeros((1, 16, 20), np.float32)
    outputs = run(step, frame, frame, zero_state(step, 1, 16, 20))
    shapes = {name: value.shape for name, value in outputs.items()}
    assert shapes == {
        "image": (1, 32, 40, 1),
        "h_out": (1, 8, 10, 16),
        "c_out": (1, 8, 10, 16),
    }


def test_an_untrained_step_returns_the_mean_on_the_contracts_grid() -> None:
    """Inside, exactly `cv2.resize`: output pixel j at (j + 0.5) / 2 - 0.5.

    Catches phases in another order, a grid shifted by half an output pixel, and a correction that
    does not begin at zero. One output row at each edge differs: zeros lie beyond.
    """
    step = build_step(TINY, 16, 20)
    rng = np.random.default_rng(4)
    frame, mean = rng.random((2, 1, 16, 20), np.float32)
    image = run(step, frame, mean, zero_state(step, 1, 16, 20))["image"][0, :, :, 0]
    expected = cv2.resize(mean[0], (40, 32), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(image[1:-1, 1:-1], expected[1:-1, 1:-1], atol=1e-6)


def test_a_ramp_and_a_single_pixel_lie_where_the_contract_says() -> None:
    """The grid against the formula itself, not against OpenCV. Catches both agreeing on `[::2]`."""
    step = build_step(TINY, 16, 20)
    y, x = np.mgrid[:16, :20].astype(np.float32)
    ramp = (3 * y - 2 * x)[None]
    dot = np.zeros((1, 16, 20), np.float32)
    dot[0, 6, 11] = 1
    state = zero_state(step, 1, 16, 20)
    image = run(step, dot, ramp, state)["image"][0, :, :, 0]
    rows, columns = ((np.arange(n) + 0.5) / 2 - 0.5 for n in (32, 40))
    expected = np.maximum(3 * rows[:, None] - 2 * columns[None], 0)  # no negative light
    np.testing.assert_allclose(image[1:-1, 1:-1], expected[1:-1, 1:-1], atol=1e-4)
    spot = run(step, ramp, dot, state)["image"][0, :, :, 0]
    assert spot.sum() == pytest.approx(4, abs=1e-5)
    # Camera pixel 6 lies at output coordinate 2 * 6 + 0.5.
    assert np.sum(np.arange(32) * spot.sum(axis=1)) / 4 == pytest.approx(12.5, abs=1e-5)
    assert np.sum(np.arange(40) * spot.sum(axis=0)) / 4 == pytest.approx(22.5, abs=1e-5)


@pytest.mark.parametrize(("dy", "dx"), [(1, 0), (0, 1), (1, 1), (2, 3)])
def test_a_shifted_scene_gives_a_shifted_image(dy: int, dx: int) -> None:
    """Whole camera pixels, odd ones too, after three frames. Catches anything that knows where in
    the field it is, and the pattern of the folding. What is found from the whole image is left out:
    a scene that moves out of the field is another one."""
    rng = np.random.default_rng(5)
    scene = rng.random((3, 2, 1, 84, 84), np.float32)
    near = randomized(build_step(TINY.model_copy(update={"estimates": 0}), 16, 20), 1)
    images = []
    for y, x in ((0, 0), (dy, dx)):
        state = zero_state(near, 1, 80, 80)
        for frame, mean in scene[..., y : y + 80, x : x + 80]:
            outputs = run(near, frame, mean, state)
            state = {"h": outputs["h_out"], "c": outputs["c_out"]}
        images.append(outputs["image"][0, :, :, 0])
    one, two = images[0][2 * dy :, 2 * dx :], images[1]
    inside = slice(60, 100)  # output px: beyond what the edges reach in three frames
    np.testing.assert_allclose(one[inside, inside], two[inside, inside], atol=1e-4)
    assert two[inside, inside].std() > 0.1


@pytest.mark.parametrize(
    ("size_px", "groups", "apart_px"),
    [(1, 1, 1), (3, 1, 1), (5, 1, 1), (5, 3, 1), (3, 1, 2), (3, 2, 4), (5, 1, 4)],
)
def test_a_folded_convolution_is_one_at_full_sampling(
    size_px: int, groups: int, apart_px: int
) -> None:
    """The first channel of every set of four, whose kernel is as it is stored.

    Catches phases in another order, a mirrored kernel, taps at another distance and groups that are
    mixed up.
    """
    rng = np.random.default_rng(8)
    layer = FoldedConv2D(8, groups, size_px, apart_px, bias_initializer="normal")
    image = rng.normal(0, 1, (1, 12, 16, 4)).astype(np.float32)
    folded = layer(keras.ops.space_to_depth(image, 2))  # (1, 6, 8, groups x 4 x 8)
    plain = keras.ops.conv(image, layer.kernel, padding="same", dilation_rate=apart_px)
    plain += layer.bias
    for group, part in enumerate(keras.ops.split(folded, groups, axis=-1)):
        np.testing.assert_allclose(
            keras.ops.depth_to_space(part, 2)[..., :2],
            plain[..., 2 * group : 2 * group + 2],
            atol=1e-5,
        )


@pytest.mark.parametrize("axes", [(1,), (2,), (1, 2)])
def test_a_mirrored_sample_gives_the_mirrored_image(step: Step, axes: tuple[int, ...]) -> None:
    """After three frames, with the PSF told. Catches a kernel that is mirrored along the wrong axis
    or not at all, and mirrored channels taken for each other."""
    rng = np.random.default_rng(11)
    scene = rng.random((3, 2, 1, 16, 20), np.float32)
    images = []
    for axis in ((), axes):
        state = zero_state(step, 1, 16, 20)
        for frame, mean in np.flip(scene, [2 + a for a in axis]):
            outputs = run(step, frame, mean, state, psf_sigma_px=1.4)
            state = {"h": outputs["h_out"], "c": outputs["c_out"]}
        images.append(outputs["image"])
    np.testing.assert_allclose(np.flip(images[0], axes), images[1], atol=3e-5)
    assert np.abs(images[0] - images[1]).max() > 0.1


def test_the_whole_image_tells_the_same_wherever_the_sample_lies(step: Step) -> None:
    """Mutations: a phase or a mirror image that is left out of the average; a sum."""
    layer = step.whole_image
    x = np.zeros((1, 16, 16, 4), np.float32)
    x[0, 4:9, 5:9] = np.random.default_rng(5).random((5, 4, 4))
    moved, wide = np.roll(x, (3, 2), (1, 2)), np.tile(x, (1, 2, 1, 1))
    told = [np.asarray(layer(keras.ops.space_to_depth(each, 2))) for each in (x, moved, wide)]
    for other in told[1:]:
        np.testing.assert_allclose(other, told[0], atol=1e-5)
    assert np.abs(layer(keras.ops.space_to_depth(2 * x, 2)) - told[0]).max() > 1e-3


def test_a_larger_network_goes_on_from_a_smaller_one() -> None:
    """Mutations: new layers that change the image; rows of the PSF's modulation that are lost or
    mixed up; weights of another size that are passed over in silence."""
    plain = NetworkSettings(head_filters=4, head_layers=3)
    small = randomized(build_step(plain, 16, 20), 6, size=0.1)  # within all limits
    more = plain.model_copy(update={"context_px": (4, 8), "estimates": 3})
    large = build_step(more, 16, 20)
    take_over(large, small)
    frame, mean = np.random.default_rng(7).random((2, 1, 16, 20), np.float32)
    images = [
        run(each, frame, mean, zero_state(each, 1, 16, 20), 1.4)["image"] for each in (small, large)
    ]
    np.testing.assert_array_equal(*images)
    with pytest.raises(ValueError, match="context_px of the smaller network would be lost"):
        take_over(small, large)
    with pytest.raises(ValueError, match="estimates of the smaller network would be lost"):
        take_over(build_step(more.model_copy(update={"estimates": 4}), 16, 20), large)
    for other in ({"head_layers": 4}, {"psf_knots_px": (0.9, 1.5, 2.0)}):
        with pytest.raises(ValueError, match="differ in more"):
            take_over(build_step(more.model_copy(update=other), 16, 20), small)


@pytest.mark.parametrize("apart_px", [0, 3])
def test_taps_lie_an_even_number_of_pixels_apart(apart_px: int) -> None:
    """Mutation: taps between the phases, which a folded convolution cannot place."""
    with pytest.raises(ValueError, match="context_px must be even"):
        NetworkSettings(context_px=(4, apart_px))


def test_a_scaled_head_draws_the_same_image() -> None:
    """Mutations: a bias, the features of the whole image or the correction left as they were.

    Each of these changes the image by 9e-6 or more, where the head is not all 0.
    """
    rng = np.random.default_rng(11)
    frame, mean = rng.normal(0, 0.01, (2, 1, 16, 20)).astype(np.float32)
    small = randomized(build_step(TINY, 16, 20), 5, size=0.1)  # no activation at its limit
    state = zero_state(small, 1, 16, 20)
    before = run(small, frame, mean, state, psf_sigma_px=1.4)["image"]
    small.scale_head(2.0)
    np.testing.assert_allclose(
        run(small, frame, mean, state, psf_sigma_px=1.4)["image"], before, atol=1e-6
    )


def test_the_psf_changes_the_image(step: Step) -> None:
    """Catches an input that is asked for and not used, and one that is used in part of a batch."""
    frame, mean = np.random.default_rng(12).random((2, 2, 16, 20), np.float32)
    state = zero_state(step, 2, 16, 20)
    unknown, narrow, wide = (run(step, frame, mean, state, psf)["image"] for psf in (0, 1, 2.5))
    for one, other in ((unknown, narrow), (narrow, wide)):
        assert (np.abs(one - other).max(axis=(1, 2, 3)) > 0.01).all()


def test_the_psf_is_interpolated_between_its_knots(step: Step) -> None:
    """Mutations: a hat of another gap, the first one at an unknown width, the last one's fall."""
    knots = step.settings.psf_knots_px
    at_knots = hats(step, knots)
    np.testing.assert_allclose(at_knots, np.eye(len(knots)), atol=1e-5)
    between = np.linspace(knots[0], knots[-1], 50)
    wanted = [np.interp(between, knots, row) for row in np.eye(len(knots))]
    np.testing.assert_allclose(hats(step, between), np.transpose(wanted), atol=1e-5)
    beyond, unknown = hats(step, [2 * knots[-1], 0])
    np.testing.assert_allclose(beyond, at_knots[-1], atol=1e-5)
    assert not unknown.any()


def hats(step: Step, widths_px: Sequence[float]) -> np.ndarray:
    return np.asarray(step.psf(np.array(widths_px, np.float32)[:, None]))


def test_an_unknown_psf_changes_nothing_even_rounded(step: Step) -> None:
    """Mutations: hats that are not 0 at an unknown width, a scale whose steps do not hold 1, a
    product in other steps than what it is made of."""
    x = np.random.default_rng(13).normal(0, 1, (1, 4, 5, 4 * step.settings.head_filters))
    x = as_int8(x.astype(np.float32), CLOSE_LIMITS.summand)
    known, unknown = (hats(step, [sigma]) for sigma in (1.4, 0.0))
    for modulation in step.modulations:
        same = modulation(x, unknown, rounded=as_int8)
        np.testing.assert_allclose(as_int8(same, CLOSE_LIMITS.summand), x, atol=1e-6)
        assert np.abs(modulation(x, known) - x).max() > 0.01


@pytest.mark.parametrize("limits", [FIRST_LIMITS, CLOSE_LIMITS, CONTEXT_LIMITS, LAST_LIMITS])
def test_activations_and_what_is_added_to_them_have_the_same_steps(limits: HeadLimits) -> None:
    """Mutation: a range whose step is another one, in which a sum would be rounded once more."""
    assert limits.activation[0] == 0
    steps = [(high - low) / 255 for low, high in limits]
    assert steps[0] == pytest.approx(steps[1])
    assert limits.summand[0] / steps[1] == pytest.approx(round(limits.summand[0] / steps[1]))


def test_the_scale_that_changes_nothing_is_one_of_its_steps() -> None:
    """Mutation: limits between whose steps 1 or 0 is not."""
    step = (SCALE_RANGE[1] - SCALE_RANGE[0]) / 255
    assert SCALE_RANGE[0] / step == pytest.approx(round(SCALE_RANGE[0] / step))
    assert as_int8(np.ones(1), SCALE_RANGE) == 1


def test_the_heads_limits_are_in_the_order_of_its_layers() -> None:
    """Mutations: the close layers counted wrongly; those around left out."""
    of_head = {"head_layers": 6, "context_px": (4, 8, 16), "estimates": 2}
    settings = NetworkSettings(head_filters=4, **of_head)
    expected = [
        FIRST_LIMITS,
        CLOSE_LIMITS,
        CLOSE_LIMITS,
        CONTEXT_LIMITS,
        CONTEXT_LIMITS,
        CONTEXT_LIMITS,
        LAST_LIMITS,
        LAST_LIMITS,
        LAST_LIMITS,
        LAST_LIMITS,
    ]
    assert settings.head_limits() == expected
    assert NetworkSettings(head_layers=1).head_limits() == [FIRST_LIMITS, CLOSE_LIMITS]
    given = []

    def noted(x, limits):
        given.append(limits)
        return x

    step = build_step(settings, 16, 16)
    mean, h = np.zeros((1, 16, 16, 1), np.float32), zero_state(step, 1, 16, 16)["h"]
    step.read(mean, h, np.zeros((1, 1), np.float32), noted)
    first, *added = expected
    assert given[:5] == [PART_RANGE, PART_RANGE, first.summand, SCALE_RANGE, first.activation]
    of_layers = [[e.summand, SCALE_RANGE, e.summand, e.activation] for e in added]
    assert given[5:-1] == [limits for layer in of_layers for limits in layer]
    assert given[-1] == ACTIVATION_RANGE


def test_several_inputs_are_convolved_as_if_they_were_joined() -> None:
    """Catches a part of the kernel that goes with the wrong input, and a bias that is added twice.

    `space_to_depth` of joined channels interleaves them, phase by phase.
    """
    rng = np.random.default_rng(9)
    one, two = (rng.normal(0, 1, (1, 8, 8, c)).astype(np.float32) for c in (1, 4))
    layer = FoldedConv2D(4, bias_initializer="normal")
    separate = layer([keras.ops.space_to_depth(each, 2) for each in (one, two)])
    plain = keras.ops.conv(np.concatenate([one, two], -1), layer.kernel, padding="same")
    first = keras.ops.depth_to_space(separate, 2)[..., :1]  # whose kernel is as it is stored
    np.testing.assert_allclose(first, plain + layer.bias, atol=1e-5)


def test_no_image_is_negative(step: Step) -> None:
    """There is no negative light. Catches a correction that is added after the rectifier."""
    rng = np.random.default_rng(10)
    frame, mean = rng.normal(0, 1, (2, 1, 16, 20)).astype(np.float32)
    image = run(step, frame, mean, zero_state(step, 1, 16, 20))["image"]
    assert image.min() == 0
    assert (image > 0).mean() > 0.1


def test_fluctuation_reaches_the_image_by_way_of_products(step: Step) -> None:
    """Two series of the same mean and opposite fluctuations have equal products.

    With the linear way cut, they must give the same image, and no fluctuation another one. Catches
    products of the frame itself instead of its fluctuation.
    """
    linear = keras.ops.convert_to_numpy(step.gates_frame.kernel)
    bias = keras.ops.convert_to_numpy(step.factors.bias)
    cut = linear.copy()
    cut[:, :, 0] = 0  # the fluctuation is the first input
    try:
        step.gates_frame.kernel.assign(cut)
        step.factors.bias.assign(np.zeros_like(bias))
        rng = np.random.default_rng(6)
        mean, fluctuation = rng.random((2, 1, 16, 20), np.float32)
        state = zero_state(step, 1, 16, 20)
        up, down, none = (
            run(step, mean + sign * fluctuation, mean, state)["image"] for sign in (1, -1, 0)
        )
    finally:
        step.gates_frame.kernel.assign(linear)
        step.factors.bias.assign(bias)
    np.testing.assert_allclose(up, down, atol=1e-4)
    assert np.abs(up - none).max() > 0.01


@pytest.mark.parametrize("shape", [(16, 16), (32, 64)])
def test_weights_do_not_depend_on_the_size_of_the_field(shape: tuple[int, int]) -> None:
    """Catches a layer tied to the size: one file must serve any field."""
    assert build_step(TINY, *shape).count_params() == build_step(TINY, 8, 8).count_params()


def unrolled(step: Step, read_at: tuple[int, ...], chunk: int) -> Unrolled:
    network = Unrolled(step, 2, (16, 20), read_at)
    network(inputs_of(np.zeros((2, 2, chunk, 16, 20), np.float32), len(read_at)))
    return network


def inputs_of(series: np.ndarray, reads: int, fresh: tuple[float, float] = (1, 1)) -> Arrays:
    return {
        "frames": series[0],
        "means": series[1],
        "psf_sigma_px": np.array([[0.0], [1.4]], np.float32),
        "fresh": np.array(fresh, np.float32),
        "gain": np.ones((2, reads), np.float32),
    }


@pytest.fixture(scope="module")
def series() -> np.ndarray:
    """Frames and means of two places, (2, B, 6, 16, 20), on both grids of int8 steps."""
    steps = np.random.default_rng(7).integers(0, 50, (2, 2, 6, 16, 20))
    size = np.ptp([FRAME_RANGE, MEAN_RANGE], axis=1).reshape(2, 1, 1, 1, 1) / 255
    return (steps * size).astype(np.float32)


def images(network: Unrolled, inputs: Arrays) -> np.ndarray:
    return keras.ops.convert_to_numpy(network(inputs))


def test_unrolled_is_the_step_run_frame_by_frame(
    step: Step, series: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for int8's steps, and the limits of the cell's sums, which the step has not.

    Catches an image read from the state before, swapped inputs, and gain on the wrong axis.
    """

    def within_the_head_s(x, limits):
        return x if limits in (GATE_RANGE, CELL_RANGE) else training_network.within(x, limits)

    monkeypatch.setattr(training_network, "straight_through", within_the_head_s)
    network = unrolled(step, (2, 5), 6)
    inputs = inputs_of(series, 2) | {"gain": np.array([[1, 2], [3, 4]], np.float32)}
    read = images(network, inputs)
    state = zero_state(step, 2, 16, 20)
    for k in range(6):
        psf = inputs["psf_sigma_px"]
        outputs = run(step, series[0, :, k], series[1, :, k], state, psf)
        state = {"h": outputs["h_out"], "c": outputs["c_out"]}
        if k in (2, 5):
            n = (2, 5).index(k)
            expected = outputs["image"][..., 0] * inputs["gain"][:, n, None, None]
            np.testing.assert_allclose(read[:, n], expected, atol=1e-4)


def test_training_sees_the_steps_of_an_int8_input(step: Step, series: np.ndarray) -> None:
    """A quarter of a step changes nothing, a whole one does. Catches rounding that is left out."""
    inputs, quarter = inputs_of(series, 1), 0.25 * np.ptp(MEAN_RANGE) / 255
    images_of = [
        images(unrolled(step, (5,), 6), inputs | {"means": series[1] + np.float32(add)})
        for add in (0, quarter, 4 * quarter)
    ]
    np.testing.assert_allclose(images_of[1], images_of[0], atol=1e-4)
    assert np.abs(images_of[2] - images_of[0]).max() > 1e-3


def test_chunks_go_on_where_the_last_one_ended(step: Step, series: np.ndarray) -> None:
    """Three chunks of two frames are one of six. Catches a state that is not kept, or kept from
    the beginning of the chunk."""
    whole = images(unrolled(step, (5,), 6), inputs_of(series, 1))
    network = unrolled(step, (1,), 2)
    for k in range(3):
        fresh = (1.0, 1.0) if k == 0 else (0.0, 0.0)
        read = images(network, inputs_of(series[:, :, 2 * k : 2 * k + 2], 1, fresh))
    np.testing.assert_allclose(read, whole, atol=1e-5)


def test_fresh_resets_its_own_place_only(step: Step, series: np.ndarray) -> None:
    """Catches a reset of the whole batch, and of none."""
    first, second = series[:, :, :3], series[:, :, 3:]
    anew = images(unrolled(step, (2,), 3), inputs_of(second, 1))
    read = {}
    for fresh in ((0.0, 0.0), (0.0, 1.0)):
        network = unrolled(step, (2,), 3)
        network(inputs_of(first, 1))
        read[fresh] = images(network, inputs_of(second, 1, fresh))
    np.testing.assert_allclose(read[0.0, 1.0][0], read[0.0, 0.0][0], atol=1e-6)
    np.testing.assert_allclose(read[0.0, 1.0][1], anew[1], atol=1e-6)
    assert np.abs(read[0.0, 0.0][1] - anew[1]).max() > 1e-3


def test_a_step_is_saved_and_built_again_with_its_settings(step: Step) -> None:
    """Catches a setting that is left out of the configuration."""
    again = Step.from_config(step.get_config())
    assert again.settings == step.settings == TINY


def test_the_head_adds_up_within_the_limits_of_its_training():
    """Sums beyond them, as bright points make. Mutations: none at all; the same for int8, which
    has its own; others than training shows."""
    step = randomized(build_step(TINY, 16, 16), 4)
    step.scale_head(40)
    frame, mean = np.random.default_rng(4).uniform(0, 2, (2, 1, 16, 16, 1)).astype(np.float32)
    state = np.zeros((1, *TINY.state_shape(16, 16)), np.float32)
    psf = np.zeros((1, 1), np.float32)
    inputs = {"frame": frame, "mean": mean, "psf_sigma_px": psf, "h": state, "c": state}
    with_limits, without = step(inputs), step(inputs, limited=False)
    h = with_limits["h_out"]
    np.testing.assert_array_equal(h, without["h_out"])
    trained = step.read(mean, h, psf, lambda x, limits: keras.ops.clip(x, *limits))
    np.testing.assert_array_equal(with_limits["image"], trained)
    np.testing.assert_array_equal(without["image"], step.read(mean, h, psf))
    assert np.abs(with_limits["image"] - without["image"]).max() > 0.01


def test_the_step_sees_its_inputs_within_the_limits_of_its_training():
    """Mutations: a frame or a mean beyond them reaches the cell or the head, which never saw one;
    the mean that the image is made of is cut off, too."""
    step = randomized(build_step(TINY, 16, 16), 4)
    rng = np.random.default_rng(4)
    state = np.zeros((1, *TINY.state_shape(16, 16)), np.float32)
    rest = {"psf_sigma_px": np.zeros((1, 1), np.float32), "h": state, "c": state}
    frame, mean = rng.uniform(-3, 9, (2, 1, 16, 16, 1)).astype(np.float32)
    inside = {"frame": frame.clip(*FRAME_RANGE), "mean": mean.clip(*MEAN_RANGE)}
    ours, within = step({"frame": frame, "mean": mean} | rest), step(inside | rest)
    for name in ("h_out", "c_out"):
        np.testing.assert_array_equal(ours[name], within[name])
    beyond = step({"frame": frame, "mean": mean} | rest, limited=False)
    assert np.abs(beyond["c_out"] - within["c_out"]).max() > 0.01
    blank = build_step(TINY, 16, 16)  # whose correction is none: its image is the mean
    assert np.max(blank({"frame": frame, "mean": mean} | rest)["image"]) > MEAN_RANGE[1] + 1

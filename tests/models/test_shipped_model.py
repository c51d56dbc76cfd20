"""The model in models/: its figures are its own, and it puts things where they are."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tifffile
from ai_edge_litert import schema_py_generated as schema
from scipy.ndimage import gaussian_filter
from scipy.special import erf

from device import cli
from device.model import MODELS_DIR, load_step
from device.reconstructor import reconstruct_window
from training import (
    accuracy,
    baselines,
    frozen,
    golden,
    lattice,
    location,
    metrics,
    model_card,
    quantize,
    release,
    resolution,
    scenes,
)
from training.evaluate import REFERENCE
from training.example import normalized
from training.forward_model import WINDOW
from training.inspection import delegated_nodes
from training.narrowing import narrowed
from training.optics import image_formation
from training.recurrence import recurrence
from training.settings import TrainingSettings
from training.train import load_network

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def documents():
    return model_card.load(MODELS_DIR)


@pytest.fixture(scope="module")
def steps(documents):
    files = documents[0]["files"]
    return {form: load_step(MODELS_DIR / entry["file"]) for form, entry in files.items()}


def gains(evaluation, method, kind):
    """Difference to the bicubic mean on each stack of a kind, dB."""
    mine, mean = evaluation["psnr_db"][method], evaluation["psnr_db"][REFERENCE]
    return [
        mine[str(r.stack_id)] - mean[str(r.stack_id)] for r in frozen.recipes() if r.kind == kind
    ]


def settings_of(manifest):
    text = (MODELS_DIR / f"learn2sofi-{manifest['version']}.settings.json").read_text()
    return TrainingSettings.model_validate_json(text)


def test_its_settings_can_be_read(documents):
    """Mutation: a field of the settings is given up, and the runs that recorded it with it."""
    settings = settings_of(documents[0])
    assert list(settings.forward_model.psf_sigma_px) == documents[0]["psf_sigma_px"]


def test_the_evaluation_is_of_these_files(documents, steps):
    """Mutation: a model replaced without `release`."""
    assert documents[1]["models"] == {step.name: step.sha256 for step in steps.values()}
    assert documents[1]["frozen_version"] == frozen.VERSION


def test_card_and_readme_say_what_was_measured(documents):
    """Mutation: a figure typed by hand."""
    manifest, evaluation = documents
    weights = release.parameters(MODELS_DIR / f"learn2sofi-{manifest['version']}.weights.h5")
    card = (MODELS_DIR / "MODEL_CARD.md").read_text()
    assert card == model_card.render_card(manifest, evaluation, weights)
    assert model_card.render_summary(evaluation) in (REPOSITORY / "README.md").read_text()


@pytest.mark.parametrize("stack_id", [2, 17, 36])
def test_the_scores_can_be_had_again(documents, steps, stack_id):
    """Mutation: scores of another model, of other stacks, or an inference that has changed.

    0.05 dB is room for another processor's int8 kernels; a wrong zero point or a frame left out
    costs more.
    """
    stack = frozen.generate(frozen.recipes()[stack_id])
    for step in steps.values():
        image = reconstruct_window(step, stack.frames).image
        recorded = documents[1]["psnr_db"][f"{step.name}, window"][str(stack_id)]
        assert metrics.psnr_db(image, stack.target) == pytest.approx(recorded, abs=0.05)


def test_threads_change_nothing(steps):
    """Mutation: a kernel whose sums depend on how the image was divided; `threads` is free then."""
    frames = np.random.default_rng(8).poisson(200, (4, 48, 50)).astype(np.uint16)
    for form, step in steps.items():
        path = MODELS_DIR / f"{step.name}.tflite"
        images = [reconstruct_window(load_step(path, n), frames).image for n in (1, 2, 4)]
        for image in images[1:]:
            np.testing.assert_array_equal(image, images[0], form)


@pytest.mark.parametrize("shape", [(48, 48), (40, 54)])
def test_a_sample_on_its_side_gives_its_image_on_its_side(steps, shape):
    """Mutation: a window that is played once.

    Noise has nothing to be damped. Of a sample, what is damped is judged by halves of the window
    that are played as they lie: of four frozen stacks the sides differ by up to 0.4 % of the peak.
    """
    rng = np.random.default_rng(9)
    lit = 1200 * gaussian_filter((rng.random(shape) < 0.02).astype(float), 1.4)
    for mean, tolerance in ((200, 1e-6), (200 + lit, 0.01)):
        frames = rng.poisson(mean, (30, *shape)).astype(np.uint16)
        for form, step in steps.items():
            sides = (frames, frames.transpose(0, 2, 1))
            up, lying = (reconstruct_window(step, each, psf_sigma_px=1.4).image for each in sides)
            np.testing.assert_allclose(lying, up.T, atol=tolerance * up.max(), err_msg=form)


@pytest.mark.parametrize("mode", ["window", "stream 30", "stream 120"])
def test_it_beats_the_mean(documents, steps, mode):
    """What the first light had to show; the recorded scores are checked above."""
    for step in steps.values():
        method = f"{step.name}, {mode}"
        assert np.mean(gains(documents[1], method, "thin")) >= 1.0
        assert np.mean(gains(documents[1], method, "continuous")) >= 0.0


def test_two_lines_are_shown_apart_and_one_is_not_split(documents):
    """Nine of ten at two thirds of the distance that the mean needs; one line in 2 % at most."""
    content = documents[1]["resolution"]
    for name in documents[1]["models"]:
        for photons in content["photons"]:
            found = resolution.summary(content, name, photons)
            assert found["ratio_90%"] <= 2 / 3 and found["split"] <= 0.02, (name, photons)


def test_detail_of_the_measured_stack_repeats_and_is_no_lattice(documents):
    """As it was asked of int8; sharpness is relative to the bicubic mean's.

    Without what `device.output_filter` damps, odd and even frames correlated by 0.54 (damping
    raises that by itself); without its notch the lattice was 47 times its surroundings.
    """
    name = next(name for name in documents[1]["models"] if name.endswith("int8"))
    measured = documents[1]["measured"]
    scores = measured["scores"][f"{name}, window"]
    assert scores["rsp"] >= 0.97 and scores["odd_even"] >= 0.85
    assert scores["sharpness"] >= 1.3 * measured["scores"][REFERENCE]["sharpness"]
    peaks = documents[1]["lattice"]["measured"]["peak"][name]
    assert set(peaks) == set(lattice.LATTICES)
    assert all(peak["ratio"] <= 3 for peak in peaks.values())


def test_int8_is_near_float32(documents):
    """Mean over all stacks within 0.05 dB, in either direction, and 0.2 dB on the worst, as asked.

    Not so a stream of 120 frames: on one stack, which it shows at 38 dB, it loses 0.26 (the card).
    """
    losses = model_card.int8_losses(documents[1])
    assert set(losses) == {"window", "stream 30", "stream 120", "window, PSF told"}
    for mode, (mean, worst) in losses.items():
        assert abs(mean) <= 0.05
        assert worst > (-0.3 if mode == "stream 120" else -0.2)


def emitter_stack(y, x, rng):
    """Thirty frames of one emitter at input coordinates (y, x) that fluctuates, (30, 32, 40)."""
    edges = [np.arange(n + 1) - 0.5 for n in (32, 40)]
    rows, columns = (
        np.diff(erf((edge - centre) / (np.sqrt(2) * 1.3))) / 2
        for edge, centre in zip(edges, (y, x), strict=True)
    )
    spot = rows[:, None] * columns[None, :]
    brightness = rng.uniform(2000, 8000, 30)
    return rng.poisson(100 + brightness[:, None, None] * spot).astype(np.uint16)


def centroid(image):
    """Centre of mass of what rises above a fifth of the peak, within 5 px of the peak."""
    peak = np.unravel_index(image.argmax(), image.shape)
    cut = tuple(slice(p - 5, p + 6) for p in peak)
    part = np.clip(image[cut] - 0.2 * image[cut].max(), 0, None)
    return [
        (part.sum(1 - a) * np.arange(peak[a] - 5, peak[a] + 6)).sum() / part.sum() for a in (0, 1)
    ]


def found(folder, mode, y, x):
    """Output coordinates of an emitter at input (y, x), through file, command and network."""
    source, target = folder / "in.tif", folder / "out.tif"
    tifffile.imwrite(
        source, emitter_stack(y, x, np.random.default_rng(3)), photometric="minisblack"
    )
    assert cli.main(["reconstruct", str(source), str(target), "--mode", mode]) == 0
    return centroid(tifffile.imread(target).reshape(-1, 64, 80)[-1])


@pytest.mark.parametrize("mode", ["window", "stream"])
def test_emitters_are_where_the_contract_says(tmp_path, mode):
    """Output pixel j lies at input (j + 0.5) / 2 - 0.5: hardly anything is 0.1 output px beside it.

    Since 0.8.0 not nothing: behind this PSF a coordinate in ten may be, by 0.16 px at most, that in
    a stream. The card has how far they are behind others. The mean of ten is within 0.04 px.

    Mutations: rows and columns swapped, a crop off by one, `[::2]` instead of area binning (half
    an output pixel), a network that knows the phases of its folding apart.
    """
    places = np.random.default_rng(5).uniform((12, 14), (20, 26), (10, 2))
    expected = 2 * (places + 0.5) - 0.5
    errors = np.array([found(tmp_path, mode, *place) for place in places]) - expected
    assert np.quantile(np.abs(errors), 0.9) < 0.1
    np.testing.assert_allclose(errors, 0, atol=0.15 if mode == "window" else 0.165)
    np.testing.assert_allclose(errors.mean(axis=0), 0, atol=0.04)


def test_single_emitters_are_drawn_as_far_from_their_places_as_the_card_says(documents, steps):
    """Mutations: a table of another model, and errors that were rounded away.

    0.03 px is room for another processor's int8 kernels.
    """
    recorded = documents[1]["location"]["errors"]
    files = tuple(MODELS_DIR / f"{step.name}.tflite" for step in steps.values())
    found = location.do(location.Job(location.SIGMAS_PX[1], 4, files))
    for step in steps.values():
        expected = recorded[str(location.SIGMAS_PX[1])][step.name][:4]
        np.testing.assert_allclose(found[step.name], expected, atol=0.03)


def test_the_embedded_training_record_names_what_made_it(documents):
    """Mutation: a release of a run without its record."""
    about = first = documents[0]["training"]
    assert not about["git_revision"].endswith("+")  # a clean checkout, so that it can be had again
    assert about["command"].startswith("python -m training ")
    while "initial" in first:
        first = first["initial"]
    assert first["command"].startswith("python -m training train")
    settings = MODELS_DIR / f"learn2sofi-{documents[0]['version']}.settings.json"
    assert about["settings_sha256"] == release.sha256(settings)
    assert json.loads(settings.read_text())["seed"] == about["seed"]


def test_it_is_said_what_it_was_compared_with(documents):
    """Mutations: checksums of the networks of the release before, and none."""
    said = documents[1]["compared"]
    assert sorted(said) == ["original_network", "twin"]
    for folder, files in said.items():
        for name, checksum in files.items():
            assert release.sha256(MODELS_DIR / folder / name) == checksum
        assert len(files) >= 4


def int8_ranges(content):
    """Lowest and highest value of every int8 tensor."""
    graph = schema.ModelT.InitFromPackedBuf(content, 0).subgraphs[0]
    found = []
    for each in (t.quantization for t in graph.tensors if t.type == schema.TensorType.INT8):
        (scale, *_), (zero, *_) = each.scale, each.zeroPoint
        found.append([(-128 - zero) * scale, (127 - zero) * scale])
    return np.array(found)


def test_the_shipped_int8_is_narrowed(documents):
    """Mutation: `narrowed` left out of the conversion; narrowing again then changes something."""
    content = (MODELS_DIR / documents[0]["files"]["int8"]["file"]).read_bytes()
    again = int8_ranges(narrowed(content, settings_of(documents[0]).network))
    np.testing.assert_allclose(int8_ranges(content), again, rtol=1e-5)


def test_a_stream_of_a_standing_specimen_is_no_worse_than_a_window_after_30000_frames(documents):
    """Of the card's own figures: a release that did not play as long fails, too."""
    rows = dict(accuracy.drift_rows(documents[1]["accuracy"]))
    assert 30_000 in rows, "release it with --accuracy-frames 30000"
    for frames in (3_000, 30_000):
        streams, windows = (
            [rows[frames][f"{form}, {mode}"] for form in ("int8", "float32")]
            for mode in ("stream", "window")
        )
        assert all(stream >= window for stream, window in zip(streams, windows, strict=True))
        assert abs(streams[0] - streams[1]) < 0.1
        assert abs(windows[0] - windows[1]) < 0.1


def test_xnnpack_takes_every_node_of_int8(documents):
    """The op gate, on what is shipped; says how many nodes are taken. Mutations: an operator or a
    float tensor that `check_int8` refuses, a node that the delegate leaves at run time."""
    manifest = documents[0]
    for entry in (manifest["files"]["int8"], manifest["recurrences"]["int8"]):
        content = (MODELS_DIR / entry["file"]).read_bytes()
        quantize.check_int8(content)
        taken, nodes = delegated_nodes(content)
        assert nodes == sum(quantize.operators(content).values())
        assert taken == nodes, f"of {nodes} nodes of {entry['file']} XNNPACK takes {taken}"


def carried(run, step, frames, means):
    """What is made of each frame of a stream, the state carried on as the step's manifest says."""
    state, made = step.zero_state(), []
    for frame, mean in zip(frames, means, strict=True):
        images = {"frame": frame[None, :, :, None], "mean": mean[None, :, :, None]}
        told = {"psf_sigma_px": np.full((1, 1), 1.4, np.float32)}
        outputs = {name: np.asarray(value) for name, value in run(images | told | state).items()}
        state = {name: outputs[out] for name, out in step.manifest.state.items()}
        made.append(outputs)
    return made


@pytest.mark.parametrize("kind", golden.KINDS)
def test_the_files_are_the_network_built_from_its_weights(documents, steps, kind):
    """The ladder, on what is shipped: the network against its float32 file, and that against int8,
    frame by frame. Mutations: files of other weights, or of other ranges, than those beside them.

    Measured over the three kinds: 4e-6 at most between network and file; int8 off by 0.010 (image),
    0.006 (h) and 0.014 (c) in the rms of a frame, where float32's values spread by 0.3, 0.04, 0.2.
    """
    images, _ = golden.golden_stacks()[kind]
    frames, means, _ = normalized(images[:12], stream=True)
    network = load_network(MODELS_DIR / f"learn2sofi-{documents[0]['version']}.json").step
    for step in steps.values():
        step.resize(64, 64)
    float32, int8 = steps["float32"], steps["int8"]
    runs = ((network, float32), (float32.run, float32), (int8.run, int8))
    made = [carried(*each, frames, means) for each in runs]
    for by_keras, by_float, by_int8 in zip(*made, strict=True):
        for name, most in (("image", 0.015), ("h_out", 0.009), ("c_out", 0.022)):
            np.testing.assert_allclose(by_keras[name], by_float[name], rtol=0, atol=1e-4)
            off = np.sqrt(np.mean((by_int8[name] - by_float[name]) ** 2))
            assert most / 100 < off < most


@pytest.mark.parametrize("form", ["int8", "float32"])
def test_the_state_is_the_same_without_an_image(documents, steps, form):
    """Mutations: the recurrence of another model or form; a head that is still computed; an
    operator left out that the state needs."""
    step, manifest = steps[form], documents[0]
    whole = (MODELS_DIR / manifest["files"][form]["file"]).read_bytes()
    part = (MODELS_DIR / manifest["recurrences"][form]["file"]).read_bytes()
    assert part == recurrence(whole, manifest["state"].values())
    assert len(part) < len(whole) / 2
    step.resize(64, 80)
    rng = np.random.default_rng(6)
    state, carried = step.zero_state(), step.zero_state()
    for _ in range(8):
        frame, mean = (rng.uniform(0, 1, (1, 64, 80, 1)).astype(np.float32) for _ in range(2))
        inputs = {"frame": frame, "mean": mean, "psf_sigma_px": np.zeros((1, 1), np.float32)}
        outputs, less = step.run(inputs | state), step.run(inputs | carried, image=False)
        state, carried = (
            {n: each[out] for n, out in manifest["state"].items()} for each in (outputs, less)
        )
        for name in state:
            np.testing.assert_array_equal(carried[name], state[name])


def body_beside_a_peak(level, fluctuation):
    """A disc, flat and as bright as this over a bright spot, (T, H, W), and its truth."""
    side = 2 * (96 + 2 * scenes.MARGIN_PX)
    y, x = np.mgrid[:side, :side]
    spot = np.exp(-((y - 40) ** 2 + (x - 40) ** 2) / (2 * 8**2))
    brightness = (spot + level * (np.hypot(y - 130, x - 130) < 50)).astype(np.float32)
    light = image_formation(brightness, scenes.PSF_SIGMA_PX, scenes.MARGIN_PX, (96, 96))
    photons = scenes.PHOTONS / float(np.percentile(light, 99.9))
    none = np.zeros(0, np.int64)
    scene = scenes.Scene(brightness, fluctuation, none, none.astype(np.float32), photons)
    return np.stack(list(islice(scene.frames(np.random.default_rng(3)), WINDOW))), scene.truth()


@pytest.mark.parametrize("level", [0.1, 0.2, 0.4, 0.7])
def test_a_dim_body_is_whole(steps, level):
    """What fluctuates is no haze, however smooth and however dim beside what is bright.

    0.8.0, which saw no further than 16 px around, drew a ring where the body was a fifth as bright.
    0.14.0 adds up to 4 % of the brightest to what is even, int8 and float32 alike.
    """
    frames, truth = body_beside_a_peak(level, scenes.KINDS["rings, speckle"][1])
    image = reconstruct_window(steps["int8"], frames).image
    middle = np.s_[105:135, 105:135]
    expected = float(truth[middle].mean())
    assert image[middle].mean() == pytest.approx(expected, rel=0.1, abs=0.02 * expected / level)
    assert metrics.psnr_db(image, truth) > metrics.psnr_db(baselines.mean(frames), truth) - 1.5

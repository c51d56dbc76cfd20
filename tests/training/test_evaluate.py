"""The table is right: who is compared with whom, on which stacks, in which mode."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile

from device.errors import UserError
from device.model import Manifest, Step
from device.psf_width import PsfEstimate
from training import baselines, evaluate, frozen, metrics
from training.evaluate import Score

RECIPES = frozen.recipes()
SMALL = [RECIPES[9], RECIPES[13]]  # rings under speckle; blinking clusters


class SummingStep:
    """Stands in for a model: its image is the sum of all frames since the zero state, doubled."""

    sha256 = "0" * 64
    psf_width = None
    expected_error = None

    def __init__(self, name: str = "summing", takes_psf: bool = False) -> None:
        self.name = name
        frame = {"shape": (1, 128, 128, 1)}
        psf = {"psf_sigma_px": {"shape": (1, 1)}} if takes_psf else {}
        self.manifest = Manifest(
            format=1,
            name=name,
            version="1",
            signature="step",
            frames=30,
            upsampling=2,
            size_multiple=2,
            inputs={"frame": frame, "mean": frame, "h": frame, **psf},
            outputs={"image": {"shape": (1, 256, 256, 1)}, "h_out": frame},
            state={"h": "h_out"},
            normalization={
                "background_percentile": 5,
                "scale_percentile": 99.5,
                "min_contrast_sem": 3,
            },
            psf_sigma_px=(1.0, 2.6),
        )
        self.size = (0, 0)
        self.steps = 0
        self.told: set[float] = set()

    def resize(self, height: int, width: int) -> None:
        self.size = (height, width)

    def zero_state(self) -> dict[str, np.ndarray]:
        return {"h": np.zeros((1, *self.size, 1), np.float32)}

    def run(self, inputs: dict[str, np.ndarray], image: bool = True) -> dict[str, np.ndarray]:
        self.steps += 1
        self.told |= {float(x) for x in inputs.get("psf_sigma_px", np.zeros(0)).ravel()}
        h_out = inputs["h"] + inputs["frame"]
        return {"image": h_out.repeat(2, axis=1).repeat(2, axis=2), "h_out": h_out}


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return parser.parse_args(words)


def test_stack_is_scored_in_every_mode_and_by_the_same_frames() -> None:
    """Catches baselines that see more frames than the window, and streams cut at 30."""
    step = SummingStep()
    stack = frozen.generate(SMALL[0], 40)
    images = evaluate.stack_images(stack, {"ours": step}, (30, 40))
    np.testing.assert_array_equal(
        images[evaluate.REFERENCE], baselines.mean(stack.frames[: frozen.FRAMES])
    )
    # A window and two without fluctuation, each played twice, and one stream for both lengths.
    assert step.steps == 2 * 3 * 30 + 40
    assert {"ours, window", "ours, stream 30", "ours, stream 40"} < set(images)
    assert all(image.shape == (256, 256) for image in images.values())
    doubled = stack.frames[:30].astype(float).mean(0).repeat(2, 0).repeat(2, 1)
    assert metrics.pearson(images["ours, window"], doubled) == pytest.approx(1.0, abs=1e-6)
    # The stream's frames are scaled by other statistics each, so nearly the sum, not exactly.
    assert metrics.pearson(images["ours, stream 40"], doubled) > 0.98
    assert not np.array_equal(images["ours, stream 40"], images["ours, stream 30"])


def test_only_one_row_is_told_the_psf() -> None:
    """Catches a blind row that is told, and a told one that is blind."""
    blind, taking = SummingStep("blind"), SummingStep("taking", takes_psf=True)
    stack = frozen.generate(SMALL[0], 30)
    images = evaluate.stack_images(stack, {"blind": blind, "taking": taking}, ())
    told = [method for method in images if method.endswith("PSF told")]
    assert told == ["taking, window, PSF told"]
    assert taking.told == {0.0, np.float32(stack.recipe.psf_sigma_px)}
    evaluate.model_images({"taking": (again := SummingStep("again", True))}, stack.frames, ())
    assert again.told == {0.0}


def test_the_twin_sees_a_whole_window_of_one_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a twin that is fed frames, too few copies, or the mean of the last ones alone."""
    seen: dict[str, np.ndarray] = {}

    def window(_: object, frames: np.ndarray) -> Any:
        seen["frames"] = frames
        return SimpleNamespace(image=frames[0])

    monkeypatch.setattr(evaluate, "reconstruct_window", window)
    twin: Any = SimpleNamespace(manifest=SimpleNamespace(frames=30))
    for count in (4, 50):
        frames = np.random.default_rng(1).integers(0, 9, (count, 16, 16)).astype(np.uint16)
        evaluate.twin_image(twin, frames)
        assert seen["frames"].shape == (30, 16, 16)
        mean = np.broadcast_to(frames.mean(axis=0), (30, 16, 16))
        np.testing.assert_allclose(seen["frames"], mean, rtol=1e-6)


def test_the_twin_sees_the_mean_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a twin that is fed the frames; its image is 30 times the mean, enlarged."""
    monkeypatch.setattr(evaluate, "load_step", lambda path: SummingStep(path.stem))
    trained = evaluate.trained_methods(twin=Path("twin.tflite"))
    stack = frozen.generate(SMALL[0], 30)
    images = evaluate.stack_images(stack, {}, (), trained)
    doubled = stack.frames.astype(float).mean(0).repeat(2, 0).repeat(2, 1)
    assert metrics.pearson(images[evaluate.TWIN], doubled) == pytest.approx(1.0, abs=1e-6)
    assert evaluate.TWIN not in evaluate.stack_images(stack, {}, ())


def test_what_was_trained_to_compare_with_sees_what_the_baselines_see() -> None:
    """Catches the 120 frames of the stream in its place, and a row left out of a table."""
    seen: list[np.ndarray] = []

    def method(frames: np.ndarray) -> np.ndarray:
        seen.append(frames)
        return baselines.mean(frames)

    trained = {evaluate.ORIGINAL: method}
    stack = frozen.generate(SMALL[0], 40)
    images = evaluate.stack_images(stack, {}, (), trained)
    np.testing.assert_array_equal(seen[0], stack.frames[:30])
    rows = evaluate.summarized(evaluate.score(stack, images), SMALL)
    assert evaluate.ORIGINAL in evaluate.markdown(rows)
    assert evaluate.measured_methods({}, trained)[evaluate.ORIGINAL] is method
    assert evaluate.ORIGINAL not in evaluate.measured_methods({})


def test_what_fluctuation_tells_is_taken_and_the_rest_stays() -> None:
    """Catches a shuffling of whole frames, which keeps the correlations, and another mean."""
    rng = np.random.default_rng(1)
    common = rng.normal(0, 10, (30, 1, 1))  # what all pixels share
    frames = (100 + common + rng.normal(0, 1, (30, 16, 20))).astype(np.float32)
    changed = evaluate.without_fluctuation(frames, rng)
    for series in changed.values():
        assert series.shape == frames.shape
        np.testing.assert_allclose(series.mean(axis=0), frames.mean(axis=0), rtol=1e-6)
    assert np.ptp(changed["copies of the mean"], axis=0).max() == 0
    shuffled = changed["shuffled in time"]
    np.testing.assert_array_equal(np.sort(shuffled, axis=0), np.sort(frames, axis=0))

    def correlation(series: np.ndarray) -> float:
        return float(
            np.mean([np.corrcoef(series[:, k, 3], series[:, k, 4])[0, 1] for k in range(16)])
        )

    assert correlation(frames) > 0.95
    assert abs(correlation(shuffled)) < 0.25  # 16 pairs of 30 values: 5 / sqrt(16 * 29)


def test_the_true_sigma_is_each_stacks_own() -> None:
    """Catches one sigma for all stacks, or that of another stack."""
    whole = frozen.generate(SMALL[0], 4)
    stack = frozen.FrozenStack(whole.recipe, whole.frames[:, :40, :40], whole.target[:80, :80])
    images = evaluate.stack_images(stack, {}, ())
    sigma = stack.recipe.psf_sigma_px
    expected = baselines.richardson_lucy(stack.frames, 20, sigma)
    np.testing.assert_array_equal(images["RL true sigma, 20"], expected)


def test_summary_averages_over_the_group_and_finds_the_worst() -> None:
    """Catches stacks counted in the wrong group, a worst value over methods, a sign exchanged."""
    psnr = {  # stack: (mean, ours); 0 and 2 blink, 1 and 24 do not all; 33 is continuous
        0: (20.0, 24.0),
        1: (25.0, 24.5),
        26: (22.0, 25.0),
        33: (30.0, 29.0),
    }
    scores = [
        Score(stack_id, method, value, 0.5, 0.1)
        for stack_id, pair in psnr.items()
        for method, value in zip((evaluate.REFERENCE, "ours"), pair, strict=True)
    ]
    rows = {(row.method, row.group): row for row in evaluate.summarized(scores, RECIPES)}
    thin = rows["ours", "thin"]
    assert (thin.stacks, thin.psnr_db) == (3, pytest.approx(24.5))
    assert thin.gain_db == pytest.approx((4.0 - 0.5 + 3.0) / 3)
    assert thin.worst_gain_db == pytest.approx(-0.5)
    assert rows["ours", "thin, blinking"].stacks == 2
    assert rows["ours", "thin, speckle"].psnr_db == pytest.approx(24.5)
    assert rows["ours", "thin, unseen"].psnr_db == pytest.approx(25.0)
    assert rows["ours", "continuous"].worst_gain_db == pytest.approx(-1.0)
    assert rows[evaluate.REFERENCE, "thin"].worst_gain_db == 0.0
    assert ("ours", "continuous, blinking") not in rows


def test_groups_halve_each_kind() -> None:
    """Catches a stack that is in both halves or in none."""
    for kind in evaluate.KINDS:
        sizes = {
            name: sum(map(belongs, RECIPES))
            for name, belongs in evaluate.GROUPS.items()
            if name.startswith(kind)
        }
        assert sizes[f"{kind}, blinking"] + sizes[f"{kind}, speckle"] == sizes[kind]
        assert 0 < sizes[f"{kind}, unseen"] < sizes[kind]
    assert sum(map(evaluate.GROUPS["thin"], RECIPES)) == 32


def test_markdown_has_a_line_for_each_method_and_the_worst_gain() -> None:
    """Catches columns that do not fit their heads."""
    scores = [
        Score(0, evaluate.REFERENCE, 20.0, 0.5, 0.1),
        Score(0, "ours", 23.25, 0.75, 0.1),
    ]
    lines = evaluate.markdown(evaluate.summarized(scores, RECIPES)).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert lines[0].startswith("| PSNR, dB | thin (1) |")
    assert lines[3].startswith("| ours | 23.25 |")
    assert "| +3.25 |" in lines[3] and lines[3].endswith("| 0.750 |")


def test_report_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a report without the model's checksum, the generator's version, its pictures or what
    was trained to compare with."""
    monkeypatch.setattr(frozen, "recipes", lambda: SMALL)
    table = evaluate.report_frozen(
        *({"ours": SummingStep()}, tmp_path, (30,), tmp_path / "cache"),
        {evaluate.ORIGINAL: baselines.mean},
    )
    content = json.loads((tmp_path / "frozen.json").read_text())
    assert content["generator"] == frozen.version_key()
    assert content["models"] == {"ours": "0" * 64}
    methods = {each["method"] for each in content["scores"]}
    assert {"ours, window", "ours, stream 30", "RL blind, 20", evaluate.REFERENCE} <= methods
    assert evaluate.ORIGINAL in methods
    assert len(content["scores"]) == 2 * len(methods)
    assert (tmp_path / "frozen.md").read_text().endswith(table)
    assert (tmp_path / "panel-thin.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(tmp_path.glob("*.tmp"))


def measured_file(folder: Path, frames: int) -> Path:
    path = folder / "measured.tif"
    pages = frozen.generate(SMALL[1], frames).frames[:, :64, :48]
    tifffile.imwrite(path, pages, photometric="minisblack")
    return path


def test_measured_stack_is_judged_without_truth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a missing checksum, S that is not relative, a field that must be square."""
    monkeypatch.setattr(evaluate, "load_steps", lambda paths: {"ours": SummingStep()})
    path = measured_file(tmp_path, 32)
    arguments = parsed("--measured", str(path), "--out", str(tmp_path / "new" / "out"))
    assert evaluate.main(arguments) == 0
    content = json.loads((tmp_path / "new" / "out" / "measured.json").read_text())
    assert content["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert content["frames"] == 30
    assert content["scores"][evaluate.REFERENCE]["rsp"] > 0.99
    assert (
        content["scores"]["RL blind, 20"]["sharpness"]
        > 1.1 * (content["scores"][evaluate.REFERENCE]["sharpness"])
    )
    assert "ours, window" in content["scores"]
    mean_line = next(line for line in capsys.readouterr().out.splitlines() if "bicubic" in line)
    assert mean_line.split("|")[5].strip() == "1.00"
    assert (tmp_path / "new" / "out" / "panel-measured.png").exists()


def test_odd_and_even_frames_are_reconstructed_apart() -> None:
    """Catches halves of the stack in place of every other frame, or the whole used twice."""
    seen: list[np.ndarray] = []

    def method(frames: np.ndarray) -> np.ndarray:
        seen.append(frames[:, 0, 0].tolist())
        return baselines.mean(frames)

    rng = np.random.default_rng(0)
    frames = rng.random((6, 32, 32))
    frames[:, 0, 0] = range(6)
    evaluate.measured_scores(frames, method)
    assert seen == [[0, 1, 2, 3, 4, 5], [0, 2, 4], [1, 3, 5]]


def test_a_measured_stack_too_short_is_refused_with_a_sentence(tmp_path: Path) -> None:
    """Catches a crash inside the odd/even split."""
    with pytest.raises(UserError, match="3 frames; at least 4"):
        evaluate.read_window(measured_file(tmp_path, 3))


def test_models_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a table in which one model silently hides another."""
    monkeypatch.setattr(evaluate, "load_step", lambda path: SummingStep(Path(path).stem))
    two = [Path("a/m-1-int8.tflite"), Path("b/m-1-int8.tflite")]
    with pytest.raises(UserError, match="same file name"):
        evaluate.load_steps(two)
    steps: dict[str, Step] = evaluate.load_steps([two[0], Path("m-1-float32.tflite")])
    assert list(steps) == ["m-1-int8", "m-1-float32"]


def test_default_models_are_both_forms_of_the_newest(tmp_path: Path) -> None:
    """Catches a default that forgets the float32 form, or takes an old version."""
    assert evaluate.default_models(tmp_path) == []
    for name in ("0.9.0-int8", "0.10.0-int8", "0.10.0-float32"):
        (tmp_path / f"learn2sofi-{name}.tflite").touch()
    names = [path.name for path in evaluate.default_models(tmp_path)]
    assert names == ["learn2sofi-0.10.0-float32.tflite", "learn2sofi-0.10.0-int8.tflite"]


def test_command_line_refuses_streams_longer_than_the_stacks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Catches a crash after half an hour for an option that could be judged at once."""
    assert parsed().stream_frames == [30, 120]
    assert parsed("--stream-frames").stream_frames == []
    with pytest.raises(SystemExit):
        parsed("--stream-frames", "121")
    assert "not between 1 and 120" in capsys.readouterr().err


def test_deconvolution_gets_the_width_that_the_model_finds() -> None:
    """Mutations: the width that the network is told instead; none where nothing is found."""

    class Finding:
        def __init__(self, relative_error: float) -> None:
            self.found = PsfEstimate(1.9, relative_error)

        def estimate(self, frames: np.ndarray) -> PsfEstimate:
            assert np.percentile(frames.mean(axis=0), 50) < 1  # normalized
            return self.found

    window = frozen.generate(SMALL[0]).frames
    step = SummingStep(takes_psf=True)
    assert evaluate.found_psf({"blind": step}, window) == baselines.BLIND_SIGMA_PX
    for relative_error, width in ((0.1, 1.9), (0.9, baselines.BLIND_SIGMA_PX)):
        step.psf_width = Finding(relative_error)
        assert evaluate.found_psf({"one": step}, window) == width

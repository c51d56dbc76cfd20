"""The golden windows: what they tell is right, and what is wrong is told."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from device import cli, golden
from device.golden import FIDELITY_TOLERANCE_DB, LOST_TOLERANCE_DB, GoldenWindow
from device.model import MODELS_DIR, ModelError, load_step, newest_model
from training import metrics


def window(rng: np.random.Generator) -> GoldenWindow:
    """Frames of a few bright places, a truth, and two images that are not the stand-in's."""
    light = np.kron(rng.gamma(0.5, 100, (8, 8)), np.ones((4, 4)))
    frames = rng.poisson(50 + light, (6, 32, 32)).astype(np.uint16)
    truth = np.kron(light, np.ones((2, 2))) / light.max()
    images = {
        mode: rng.gamma(1.0, 50, (64, 64)).astype(np.float32) for mode in ("window", "stream")
    }
    return GoldenWindow("blocks", frames, truth.astype(np.float32), images)


@pytest.fixture
def blocks() -> GoldenWindow:
    return window(np.random.default_rng(4))


def test_windows_are_read_as_they_were_written(blocks):
    """Mutations: names cut at a comma, modes swapped, another type."""
    second = GoldenWindow("thin, blinking", blocks.frames + 1, blocks.truth, blocks.float32)
    first, read = golden.load(golden.save([blocks, second]))
    assert (first.name, read.name) == ("blocks", "thin, blinking")
    np.testing.assert_array_equal(read.frames, second.frames)
    assert read.frames.dtype == np.uint16
    for mode, image in second.float32.items():
        np.testing.assert_array_equal(read.float32[mode], image)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"no zip at all"])
def test_what_is_no_golden_file_is_a_sentence(content):
    """Mutation: an error of numpy or zipfile reaches the user."""
    with pytest.raises(ModelError, match="copy the release again"):
        golden.load(content)


def test_an_array_that_lacks_is_a_sentence(blocks):
    """Mutation: KeyError reaches the user."""
    one_mode = GoldenWindow("blocks", blocks.frames, blocks.truth, {"window": blocks.truth})
    with pytest.raises(ModelError, match="golden file"):
        golden.load(golden.save([one_mode]))


def test_the_psnr_is_that_of_the_evaluation(blocks):
    """Mutations: no fit, peak 1 instead of the truth's, root mean square for mean square."""
    truth = metrics.normalized_truth(blocks.truth)
    for image in blocks.float32.values():
        expected = metrics.psnr_db(image, blocks.truth)
        assert golden.psnr_db(image, truth.astype(np.float32)) == pytest.approx(expected, abs=1e-4)


def test_likeness_forgives_no_scale():
    """Mutation: the affine fit of the PSNR, by which a wrong scale or offset goes unseen.

    An error of a hundredth of the peak everywhere is 40 dB.
    """
    reference = np.linspace(0, 2, 64).reshape(8, 8).astype(np.float32)
    assert golden.fidelity_db(reference + 0.02, reference) == pytest.approx(40.0, abs=1e-3)
    assert golden.fidelity_db(reference, reference) == np.inf


@pytest.fixture
def released(model_file: Path, blocks: GoldenWindow, tmp_path: Path):
    """Copy the stand-in with a golden file; returns how to write its figures, and the model."""
    for path in model_file.parent.glob("stand_in-*"):
        shutil.copy(path, tmp_path)
    content = golden.save([blocks])
    (tmp_path / "stand_in-1.0.0.golden.npz").write_bytes(content)
    pair = tmp_path / "stand_in-1.0.0.json"
    step = load_step(tmp_path / model_file.name)
    true = {m: golden.measure(step, blocks, m)._asdict() for m in ("window", "stream")}

    def write(form: str = "int8", **off: float) -> Path:
        figures = {
            mode: {name: value + off.get(name, 0.0) for name, value in found.items()}
            for mode, found in true.items()
        }
        entry = {
            "file": "stand_in-1.0.0.golden.npz",
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
            "figures": {form: {"blocks": figures}},
        }
        pair.write_text(json.dumps(json.loads(pair.read_text()) | {"golden": entry}))
        return tmp_path / model_file.name

    return write


@pytest.mark.parametrize("share", [-0.9, 0.0, 0.9])
def test_within_the_tolerance_is_well(released, share):
    """Mutation: a tolerance tighter than other processors need."""
    off = {"lost_db": share * LOST_TOLERANCE_DB, "fidelity_db": share * FIDELITY_TOLERANCE_DB}
    findings = golden.examine(load_step(released(**off)))
    assert [finding.good for finding in findings] == [True, True]
    assert findings[0].text.startswith("blocks, stream: ")


@pytest.mark.parametrize(
    "off",
    [
        {"lost_db": -1.1 * LOST_TOLERANCE_DB},
        {"lost_db": 1.1 * LOST_TOLERANCE_DB},
        {"fidelity_db": -1.1 * FIDELITY_TOLERANCE_DB},
        {"fidelity_db": 1.1 * FIDELITY_TOLERANCE_DB},
    ],
)
def test_beyond_the_tolerance_is_wrong(released, off):
    """Mutations: one of the two figures not looked at; a gain, which is as suspect, let pass."""
    findings = golden.examine(load_step(released(**off)))
    assert [finding.good for finding in findings] == [False, False]
    assert "another runtime than ai-edge-litert" in findings[0].text


def test_an_image_that_is_not_finite_is_wrong(released, monkeypatch):
    """Mutation: a comparison that NaN passes."""
    step = load_step(released())
    bad = np.full((64, 64), np.nan, np.float32)
    monkeypatch.setattr(golden, "reconstructed", lambda *_: bad)
    assert not any(finding.good for finding in golden.examine(step))


def test_a_model_without_golden_windows_is_refused(model_file):
    """Mutation: nothing looked at, and nothing found wrong."""
    with pytest.raises(ModelError, match="without golden windows"):
        golden.examine(load_step(model_file))


def test_another_form_is_refused(released):
    """Mutation: the int8 form's figures expected of another."""
    with pytest.raises(ModelError, match="for this form"):
        golden.examine(load_step(released(form="float32")))


def test_a_golden_file_that_was_changed_or_lost_is_refused(released):
    """Mutation: the checksum not compared; OSError reaches the user."""
    step = load_step(released())
    path = step.folder / step.manifest.golden.file
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ModelError, match="checksum"):
        golden.examine(step)
    path.unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        golden.examine(step)


@pytest.mark.parametrize(("off", "code"), [(0.0, 0), (0.5, 1)])
def test_the_command_says_what_is_lost_and_ends_by_it(released, off, code, capsys):
    """Mutations: exit code 0 although it is wrong; the camera asked instead of the model."""
    model = released(lost_db=off)
    assert cli.main(["check", "--accuracy", "--model", str(model), "--camera", "picamera2"]) == code
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert [line[:5] for line in lines] == ["ok   " if code == 0 else "WRONG"] * 2
    assert "dB lost from float32 to int8" in lines[0]
    assert said.err.count("\n") == code


def test_the_shipped_model_is_accurate_here():
    """Mutation: a golden file of another model, or more of it than a small device should load."""
    step = load_step(newest_model(MODELS_DIR))
    findings = golden.examine(step)
    assert len(findings) == 6
    assert all(finding.good for finding in findings), findings
    assert step.manifest.golden.bytes < 2_000_000

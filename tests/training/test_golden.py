"""The golden stacks, and the file that is made of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from device import golden as device_golden
from device.model import MODELS_DIR, load_step, newest_model
from training import golden
from training.__main__ import main


def test_the_stacks_are_of_their_kinds_and_always_the_same():
    """Mutations: one seed for all, a window's length off, a truth in another unit."""
    stacks, again = golden.golden_stacks(), golden.golden_stacks()
    assert list(stacks) == list(golden.KINDS)
    assert len({frames.tobytes() for frames, _ in stacks.values()}) == len(stacks)
    for kind, (frames, truth) in stacks.items():
        assert (frames.shape, frames.dtype, truth.shape) == ((30, 64, 64), np.uint16, (128, 128))
        assert frames.max() < 2**12
        assert 1.0 <= truth.max() <= 1.5
        np.testing.assert_array_equal(frames, again[kind][0])


def test_the_shipped_golden_images_are_the_shipped_float32_forms():
    """Mutations: images of the int8 form, of another pair, or of the other mode.

    Another processor sums floats in another order, which is 1e-6 of an image and grows with 30
    steps; int8 is a hundred times further away.
    """
    int8 = newest_model(MODELS_DIR)
    float32 = load_step(int8.with_name(int8.name.replace("int8", "float32")))
    content = (MODELS_DIR / float32.manifest.golden.file).read_bytes()
    for window in device_golden.load(content):
        for mode, image in window.float32.items():
            found = device_golden.reconstructed(float32, window.frames, mode)
            assert np.abs(found - image).max() < 1e-4 * np.abs(image).max()


def test_the_command_renews_file_manifest_and_checksums(tmp_path: Path):
    """Mutations: figures of the form before; a checksum left as it was."""
    folder = tmp_path / "models"
    shutil.copytree(MODELS_DIR, folder)
    path = newest_model(folder)
    pair = path.with_name(path.name.replace("-int8.tflite", ".json"))
    fields = json.loads(pair.read_text())
    before = fields.pop("golden")
    pair.write_text(json.dumps(fields))
    (folder / before["file"]).unlink()
    assert main(["golden", "--models", str(folder)]) == 0
    renewed = json.loads(pair.read_text())["golden"]
    assert f"{renewed['sha256']}  {renewed['file']}" in (folder / "SHA256SUMS").read_text()
    step = load_step(path)
    assert all(finding.good for finding in device_golden.examine(step))
    for modes in renewed["figures"]["int8"].values():
        assert all(-1 < figures["lost_db"] < 1 for figures in modes.values())
        assert all(25 < figures["fidelity_db"] < 70 for figures in modes.values())

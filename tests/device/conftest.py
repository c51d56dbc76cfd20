"""A stand-in model whose image can be told beforehand, for tests of what lies around a model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from training.release import embed

STAND_IN = "stand_in-1.0.0-int8.tflite"


def _manifest() -> dict[str, Any]:
    frame = {"shape": [1, 32, 32, 1]}
    return {
        "format": 1,
        "name": "stand_in",
        "version": "1.0.0",
        "signature": "step",
        "frames": 30,
        "upsampling": 2,
        "size_multiple": 2,
        "inputs": {"frame": frame, "mean": frame, "h": frame},
        "outputs": {"image": {"shape": [1, 64, 64, 1]}, "h_out": frame},
        "state": {"h": "h_out"},
        "normalization": {
            "background_percentile": 5.0,
            "scale_percentile": 99.5,
            "min_contrast_sem": 3.0,
        },
        "psf_sigma_px": [1.0, 2.6],
    }


def _doubling_step(folder: Path) -> bytes:
    """Convert a step whose image shows each pixel of the mean four times; h collects frames."""
    import tensorflow as tf

    frame = tf.TensorSpec((1, 32, 32, 1))

    class Net(tf.Module):
        @tf.function(
            input_signature=[
                tf.TensorSpec(frame.shape, name="frame"),
                tf.TensorSpec(frame.shape, name="mean"),
                tf.TensorSpec(frame.shape, name="h"),
            ]
        )
        def step(self, frame, mean, h):
            image = tf.nn.depth_to_space(tf.concat([mean] * 4, -1), 2)
            return {"image": image, "h_out": h + frame}

    net = Net()
    tf.saved_model.save(net, str(folder), signatures={"step": net.step})
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=["step"])
    return converter.convert()


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the stand-in and its manifest: its image is the mean, each pixel doubled."""
    path = tmp_path_factory.mktemp("models") / STAND_IN
    manifest = _manifest()
    path.write_bytes(embed(_doubling_step(path.parent / "saved"), manifest))
    content = path.read_bytes()
    entry = {
        "file": path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
    }
    beside = {**manifest, "files": {"int8": entry}}
    path.with_name("stand_in-1.0.0.json").write_text(json.dumps(beside))
    return path

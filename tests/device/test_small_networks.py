"""What lies beside a model's file: read with it, or missed."""

import pytest

from device.model import MODELS_DIR, ModelError, load_step, newest_model


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("psf_width", "a PSF whose width nobody gives stays unknown"),
        ("expected_error", "how far an image may be off stays unknown"),
    ],
)
def test_a_damaged_estimator_is_refused_and_a_missing_one_is_said(tmp_path, caplog, name, without):
    """Mutations: its checksum is not looked at; other images than elsewhere, or an error that is
    never told, in silence."""
    model = newest_model(MODELS_DIR)
    stem = model.name.removesuffix("-int8.tflite")
    for path in MODELS_DIR.glob(f"{stem}*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    copy = tmp_path / model.name
    estimator = tmp_path / getattr(load_step(copy).manifest, name).file
    estimator.write_bytes(estimator.read_bytes() + b"\0")
    with pytest.raises(ModelError, match="checksum"):
        load_step(copy)
    estimator.unlink()
    assert getattr(load_step(copy), name) is None
    assert without in caplog.text

"""What is logged is what TensorBoard reads."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.tensorboard import TensorBoardLog


def test_numbers_and_pictures_come_back(tmp_path: Path) -> None:
    """Catches steps and tags that get lost, swapped height and width, wrong grey levels, and values
    outside of 0 to 1 that wrap around."""
    log = TensorBoardLog(tmp_path)
    log.scalars(3, {"loss": -1.5, "psnr_db": 20.25})
    log.scalars(7, {"loss": -2.5})
    image = np.zeros((4, 6), np.float32)
    image[0, :3] = 0.5, 1.0, 7.0
    image[1, 2] = -3.0
    log.picture(7, "0: mean", image)
    log.close()

    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert [(e.step, e.value) for e in read.Scalars("loss")] == [(3, -1.5), (7, -2.5)]
    assert [(e.step, e.value) for e in read.Scalars("psnr_db")] == [(3, 20.25)]
    (event,) = read.Images("0: mean")
    assert (event.step, event.height, event.width) == (7, 4, 6)
    encoded = np.frombuffer(event.encoded_image_string, np.uint8)
    grey = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    assert grey.shape == (4, 6)
    assert list(grey[0, :3]) == [127, 255, 255]
    assert grey[1, 2] == 0


def test_every_entry_is_on_disk_at_once(tmp_path: Path) -> None:
    """Catches a buffer: whoever watches a run, or kills it, sees all that was logged."""
    log = TensorBoardLog(tmp_path)
    log.scalars(1, {"loss": 1.0})
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert read.Scalars("loss")[0].value == pytest.approx(1.0)
    log.close()

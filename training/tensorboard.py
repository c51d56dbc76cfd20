"""TensorBoard logs without TensorFlow: scalars and pictures, on any backend."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter


class TensorBoardLog:
    """Writes events into a folder that ``tensorboard --logdir`` shows."""

    def __init__(self, folder: Path) -> None:
        self._writer = EventFileWriter(str(folder))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log named numbers."""
        self._add(step, [Summary.Value(tag=k, simple_value=float(v)) for k, v in values.items()])

    def picture(self, step: int, tag: str, image: np.ndarray) -> None:
        """Log an image, (H, W), values from 0 (black) to 1 (white)."""
        grey = (255 * np.clip(image, 0, 1)).astype(np.uint8)
        png = cv2.imencode(".png", grey)[1].tobytes()
        encoded = Summary.Image(
            height=grey.shape[0], width=grey.shape[1], colorspace=1, encoded_image_string=png
        )
        self._add(step, [Summary.Value(tag=tag, image=encoded)])

    def _add(self, step: int, values: list[Summary.Value]) -> None:
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        self._writer.add_event(event)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()

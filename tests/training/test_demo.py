"""The included stack is what the command makes."""

from pathlib import Path

import numpy as np
import tifffile

from device.cli import DEMO_STACK
from device.stack import open_stack
from training.__main__ import main
from training.demo import PIXEL_SIZE_UM


def test_the_included_stack_can_be_made_again(tmp_path: Path) -> None:
    """Mutation: a demo edited by hand, or a forward model changed without making it anew.

    A rounding of the last bit may move a Poisson draw here and there: one pixel in 10,000.
    """
    again = tmp_path / "demo.ome.tif"
    assert main(["demo", "--out", str(again)]) == 0
    shipped, made = tifffile.imread(DEMO_STACK), tifffile.imread(again)
    assert shipped.shape == made.shape == (150, 128, 128)
    assert np.mean(shipped != made) < 1e-4


def test_the_included_stack_is_read_with_its_pixel_size() -> None:
    """Mutation: the size written in another unit, or not at all."""
    with open_stack(DEMO_STACK) as stack:
        assert stack.pixel_size_um == PIXEL_SIZE_UM
        assert stack.dtype == np.uint8
        assert stack.read(0).max() < 255  # nothing saturates

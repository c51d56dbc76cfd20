"""The camera's tests can fail: five faults, built in by name, and the test that each must fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DEVICE = HERE.parent.parent / "device"
_RAN_AND_FAILED = 1  # pytest's exit code; others are faults of its own

MUTANTS = {
    "stride crop": (
        "pixel_format.py",
        "strides=(self.stride_bytes, self._bytes_per_px)",
        "strides=(self.width * self._bytes_per_px, self._bytes_per_px)",
        "test_pixel_format.py::test_luma_without_padding_and_chroma",
    ),
    "format read-back": (
        "picamera.py",
        'str(stream["format"]), width',
        '"R10", width',
        "test_picamera.py::test_the_format_is_read_back",
    ),
    "Bayer quad": (
        "pixel_format.py",
        '"SRGGB": ((0, 1), (1, 0))',
        '"SRGGB": ((0, 0), (1, 1))',
        "test_pixel_format.py::test_bayer_gives_the_mean_of_both_greens",
    ),
    "gap count": (
        "ring_buffer.py",
        "return max(0, slots - 1)",
        "return 0",
        "test_picamera.py::test_gaps_in_the_timestamps_are_counted",
    ),
    "reopened without release": (
        "picamera.py",
        "        self.close()\n        with self._changing:\n            picam2 =",
        "        with self._changing:\n            picam2 =",
        "test_picamera.py::test_reopening_releases_first",
    ),
}


def _outcome(folder: Path, test: str) -> int:
    """Run a test against the copy of the sources in a folder; pytest's exit code."""
    file, _, name = test.partition("::")
    shutil.copy(HERE / file, folder)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", "."]
    done = subprocess.run(
        [*command, f"{file}::{name}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        check=False,
    )
    return done.returncode


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mutant_dies(name, tmp_path):
    """Mutation: the named test no longer looks at what it says; or the fault is not one."""
    file, right, wrong, test = MUTANTS[name]
    shutil.copytree(DEVICE, tmp_path / "device", ignore=shutil.ignore_patterns("__pycache__"))
    source = (tmp_path / "device" / file).read_text()
    assert source.count(right) == 1, f"the source of '{name}' has changed: update the mutant"
    (tmp_path / "device" / file).write_text(source.replace(right, wrong))
    assert _outcome(tmp_path, test) == _RAN_AND_FAILED

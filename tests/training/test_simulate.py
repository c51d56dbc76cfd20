"""``python -m training simulate`` writes what Fiji opens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from training.__main__ import main
from training.specimen import FAMILIES

OPTIONS = ["--stacks", "2", "--frames", "3", "--size", "20"]


def written(folder: Path, *options: str) -> list[Path]:
    assert main(["simulate", "--out", str(folder), *OPTIONS, *options]) == 0
    return sorted(folder.glob("*.tif"))


def test_stacks_and_truths_lie_beside_each_other(tmp_path: Path) -> None:
    """Catches swapped axes, a truth of another stack's name, and parameters that are not kept."""
    paths = written(tmp_path / "new" / "folder")
    names = [path.name for path in paths]
    assert names == [
        "stack-000-truth.tif", "stack-000.tif", "stack-001-truth.tif", "stack-001.tif",
    ]  # fmt: skip
    with tifffile.TiffFile(paths[1]) as stack, tifffile.TiffFile(paths[0]) as truth:
        assert stack.series[0].axes == "TYX"
        assert (stack.series[0].shape, stack.series[0].dtype) == ((3, 20, 20), np.uint16)
        assert (truth.series[0].shape, truth.series[0].dtype) == ((40, 40), np.float32)
        metadata = stack.imagej_metadata
    assert metadata is not None
    about = json.loads(metadata["Info"])
    assert set(about["family"].split("+")) <= set(FAMILIES)
    assert about["psf_sigma_px"] > 0


def test_a_seed_is_a_folder_of_stacks(tmp_path: Path) -> None:
    """Catches stacks that differ from call to call, or are all the same."""
    one, two, other = (
        [tifffile.imread(path) for path in written(tmp_path / name, "--seed", seed)]
        for name, seed in (("a", "5"), ("b", "5"), ("c", "6"))
    )
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(one[1], other[1])
    assert not np.array_equal(one[1], one[3])


@pytest.mark.parametrize(
    "wrong", [["--stacks", "0"], ["--frames", "0"], ["--size", "4"], ["--seed", "-1"]], ids=" ".join
)
def test_impossible_numbers_are_refused(
    wrong: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a traceback, and a folder made for nothing."""
    assert main(["simulate", "--out", str(tmp_path / "out"), *OPTIONS, *wrong]) == 2
    assert wrong[0] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

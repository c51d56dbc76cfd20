"""Specimens cut from a folder of images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from training.__main__ import main
from training.forward_model import ForwardModelSettings, draw_specimen, simulate
from training.specimen import Grid
from training.specimen_images import crop

GRID = Grid(40, 56)


def blob(height: int, width: int, y: float, x: float, sigma: float) -> np.ndarray:
    """A bright spot on a background of 30, (h, w) uint8."""
    rows, columns = np.mgrid[:height, :width]
    spot = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * sigma**2))
    return np.rint(30 + 200 * spot).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A large image and a small one, and what a download leaves beside them."""
    path = tmp_path / "images"
    path.mkdir()
    cv2.imwrite(str(path / "a.png"), blob(200, 240, 100, 120, 30))
    cv2.imwrite(str(path / "b.JPG"), blob(24, 24, 12, 12, 4))
    (path / "a.json").write_text("{}")
    (path / ".c.png.12.tmp").write_bytes(b"half of an image")
    return str(path)


@pytest.mark.parametrize("seed", range(6))
def test_a_crop_is_a_density_without_background(seed: int, folder: str) -> None:
    """Catches swapped axes, a background left in, negative brightness, and the wrong maximum."""
    density = crop(folder, GRID, np.random.default_rng(seed))
    assert density.shape == GRID
    assert density.dtype == np.float32
    assert density.min() >= 0
    assert density.max() == 1


def test_the_background_is_dark_and_the_rest_keeps_its_proportions(tmp_path: Path) -> None:
    """Catches a background divided out or left in, and an offset of what is above it.

    The image is as large as the grid and has its shape: it can only be turned and mirrored. 16-bit,
    so that a conversion to 8 would flatten it.
    """
    image = np.full((32, 32), 1000, np.uint16)
    image[4:10, 20:28], image[20:24, 8:10] = 41_000, 11_000
    tifffile.imwrite(tmp_path / "a.tif", image)
    expected = (image.astype(float) - 1000) / 40_000
    drawn = [crop(str(tmp_path), Grid(32, 32), np.random.default_rng(s)) for s in range(40)]
    symmetries = [np.rot90(m, k) for m in (expected, expected[:, ::-1]) for k in range(4)]
    seen = {
        next(i for i, s in enumerate(symmetries) if np.allclose(s, density, atol=1e-3))
        for density in drawn
    }
    assert seen == set(range(8))  # 40 draws miss one of eight with a chance of 4 %, this seed none


def test_parts_scales_and_images_differ(folder: str) -> None:
    """Catches one part only, one scale only, and one image only."""
    rng = np.random.default_rng(3)
    widths, centres = [], []
    for _ in range(60):
        density = crop(folder, GRID, rng)
        widths.append(np.count_nonzero(density > 0.5))
        centres.append(np.argmax(density))
    assert max(widths) > 3 * min(widths)
    assert len(set(centres)) > 20


def test_a_seed_is_a_crop(folder: str) -> None:
    """Catches randomness from elsewhere than `rng`, and an order that the file system chose."""
    one, again, other = (crop(folder, GRID, np.random.default_rng(s)) for s in (5, 5, 6))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.1


def test_crops_beside_everything_are_drawn_anew(tmp_path: Path) -> None:
    """Catches noise of an empty corner stretched to a specimen: here all but one is empty."""
    rng = np.random.default_rng(1)
    image = rng.normal(30, 2, (400, 400)).clip(0).astype(np.uint8)
    image[180:190, 180:190] = 250
    cv2.imwrite(str(tmp_path / "a.png"), image)
    for seed in range(5):
        density = crop(str(tmp_path), Grid(64, 64), np.random.default_rng(seed))
        assert np.mean(density > 0.5) < 0.1  # the square; of noise it would be a fifth or more


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is no folder"),
        ({}, "has no images"),
        ({"a.json": b"{}"}, "has no images"),
        ({"a.png": b"no image"}, "a.png is no image"),
        ({"a.png": b""}, "a.png is no image"),
        ({"a.png": bytes(cv2.imencode(".png", np.full((64, 64), 9, np.uint8))[1])}, "nothing"),
    ],
    ids=["missing", "empty", "other files", "broken", "no bytes", "flat"],
)
def test_a_bad_folder_is_one_sentence(
    content: dict[str, bytes] | None,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Catches a traceback from the middle of a simulation, and a search without end."""
    folder = tmp_path / "images"
    if content is not None:
        folder.mkdir()
        for name, data in content.items():
            (folder / name).write_bytes(data)
    settings = tmp_path / "my.toml"
    settings.write_text(f'[forward_model]\nimages = "{folder}"\nimages_fraction = 1.0\n')
    options = ["--out", str(tmp_path / "out"), "--stacks", "1", "--frames", "2", "--size", "32"]
    assert main(["simulate", "--settings", str(settings), *options]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert str(folder) in error
    assert "Traceback" not in error and "\n" not in error


def test_a_fraction_without_a_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a setting that does nothing."""
    settings = tmp_path / "my.toml"
    settings.write_text("[forward_model]\nimages_fraction = 0.5\n")
    assert main(["simulate", "--settings", str(settings), "--out", str(tmp_path / "out")]) == 2
    assert "images_fraction" in capsys.readouterr().err


def test_images_are_drawn_as_often_as_asked(folder: str) -> None:
    """Catches a share that is ignored or swapped; 200 draws of 0.3 scatter by 0.032, thrice that
    is allowed."""
    model = ForwardModelSettings(images=folder, images_fraction=0.3)
    rng = np.random.default_rng(1)
    families = [draw_specimen(model, Grid(24, 24), rng)[0] for _ in range(200)]
    assert families.count("image") / 200 == pytest.approx(0.3, abs=0.1)


def test_a_stack_of_an_image_is_whole(folder: str) -> None:
    """Catches a density that the fluctuation or the optics cannot use."""
    model = ForwardModelSettings(images=folder, images_fraction=1.0)
    for seed in range(4):
        stack = simulate(model, 3, (32, 24), np.random.default_rng(seed))
        assert stack.about["family"] == "image"
        assert stack.truth.shape == (64, 48)
        assert stack.truth.max() > 1


def test_without_images_a_seed_draws_what_it_drew(folder: str) -> None:
    """Catches a number drawn for a share of 0, after which every stack is another one."""
    plain, off = ForwardModelSettings(), ForwardModelSettings(images=folder)
    for seed in range(3):
        a, b = np.random.default_rng(seed), np.random.default_rng(seed)
        one, two = draw_specimen(plain, GRID, a), draw_specimen(off, GRID, b)
        assert one[0] == two[0]
        np.testing.assert_array_equal(one[1], two[1])
        assert a.bit_generator.state == b.bit_generator.state


def test_the_first_draw_of_a_specimen_is_its_kind() -> None:
    """Catches any draw added before the others, with images off: seeds name stacks."""

    class Counting:
        """The first number decides between one family and two over each other."""

        def __init__(self) -> None:
            self.rng, self.drawn = np.random.default_rng(1), 0

        def random(self) -> float:
            self.drawn += 1
            return 0.05 if self.drawn == 1 else 0.99

        def __getattr__(self, name: str) -> object:
            return getattr(self.rng, name)

    family, _ = draw_specimen(ForwardModelSettings(), GRID, Counting())  # type: ignore[arg-type]
    assert "+" in family

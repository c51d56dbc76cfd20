"""The card's figures are computed, and blocks are replaced in place."""

import importlib
import inspect
from pathlib import Path

import pytest

from training.model_card import PICTURES, _chosen, _filtered, _further, int8_losses, replace_block


def test_int8_losses_compare_stack_by_stack() -> None:
    """Mutations: the worst taken for the best, the sign turned, modes mixed up."""
    evaluation = {
        "psnr_db": {
            "m-float32, window": {"0": 30.0, "1": 20.0},
            "m-int8, window": {"0": 29.5, "1": 20.1},
            "m-float32, stream 30": {"0": 10.0, "1": 10.0},
            "m-int8, stream 30": {"0": 10.0, "1": 9.0},
            "mean (bicubic)": {"0": 1.0, "1": 2.0},
        }
    }
    losses = int8_losses(evaluation)
    assert losses["window"] == pytest.approx((-0.2, -0.5))
    assert losses["stream 30"] == pytest.approx((-0.5, -1.0))
    assert len(losses) == 2


def test_the_card_says_that_estimates_were_shrunk() -> None:
    """Mutations: always said, or never."""
    chosen = {"weights": "best", "updates": 3, "validation_db": 2.0, "mean_db": 1.0}
    assert "shrunk" not in _chosen(chosen)
    assert "whole image shrunk by 0.4" in _chosen(chosen | {"shrinkage": 0.4})


def test_the_card_says_what_is_filtered_out() -> None:
    """Mutations: numbers of another model, or mixed up; a model without a filter that fails."""
    numbers = {"notch_order": 5, "none": 0.1, "full": 0.3, "floor": 0.4}
    said = _filtered({"output_filter": numbers})
    assert all(part in said for part in ("order 5", "below 0.30", "to 0.4 at 0.10"))
    assert _filtered({}) == "none"


def test_a_block_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    """Mutations: the markers lost (a second run would fail), text around them taken along."""
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- scores: by a command -->\nold\n<!-- /scores -->\nafter\n")
    for text in ("first \\1\n", "second\n"):  # a backslash is not a group of the pattern
        replace_block(page, "scores", text)
        assert page.read_text() == (
            f"before\n<!-- scores: by a command -->\n{text}<!-- /scores -->\nafter\n"
        )


def test_a_page_without_the_block_is_refused(tmp_path: Path) -> None:
    """Mutation: figures silently written nowhere."""
    page = tmp_path / "README.md"
    page.write_text("no block\n")
    with pytest.raises(ValueError, match="no block scores"):
        replace_block(page, "scores", "x\n")


def test_the_card_has_a_section_for_what_was_measured_and_none_for_what_was_not() -> None:
    """Mutations: a section lost, a picture of another name, an old evaluation that breaks."""
    content = {
        "model": "m-int8",
        "size_px": 128,
        "step_cpu_ms": 0.5,
        "original_window_cpu_ms": 100.0,
        "original_over_step": 200.0,
    }
    stacks = {"base": {"photons": 100.0}, "stacks": 8}
    text = _further({"speed": content, "sweeps": stacks}, "m-1")
    assert "200 times" in text and "(m-1.sweeps.png)" in text
    assert "Two lines" not in text
    assert _further({}, "m-1") == ""


def test_every_picture_is_one_that_a_measurement_writes() -> None:
    """Mutation: a release that ends, after minutes, with a file that is not there."""
    for name in PICTURES:
        module = importlib.import_module(f"training.{name}")
        assert f'"{name}.png"' in inspect.getsource(module.report)

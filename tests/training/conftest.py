"""A training run as small as it can be, made once for all tests that look at one."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.__main__ import main

# No processes of its own, 4 checkpoints of 2 updates each.
TINY = """
seed = 3
updates = 8
epoch_updates = 2
learning_rate = 2e-3
warmup_updates = 2
clip_norm = 1.0

[network]
filters = 4
products = 4
head_filters = 4
head_layers = 1

[dataset]
batch = 2
size_px = 32
chunk = 5
read_at = [4]
stream_chunks = [2, 8]
validation_stacks = 3
workers = 0
"""


@pytest.fixture(scope="session")
def tiny_settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings file of the tiny run."""
    path = tmp_path_factory.mktemp("settings") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny_settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny run, trained to its end by the command line; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", "--settings", str(tiny_settings), "--run", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def quantized_run(tiny_run: Path) -> Path:
    """The tiny run with both TFLite files beside its weights."""
    assert main(["quantize", "--run", str(tiny_run), "--stacks", "2"]) == 0
    return tiny_run

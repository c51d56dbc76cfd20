"""Files that are there whole or not at all: written beside, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_or_nothing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it on success, remove it on any failure.

    Parameters
    ----------
    path : Path
        The file to be written; what is there already stays until the end.

    Yields
    ------
    Path
        Where to write meanwhile: the same folder, hence the same file system.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        _flush_to_disk(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    # Without it, a power cut after the rename could leave a file of the right name and no content.
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with whole_or_nothing(path) as beside:
        beside.write_text(text, encoding="utf-8")

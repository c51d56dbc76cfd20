"""What every report is written with: tables, figures, and files that are whole or not there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a Markdown table; all columns but the first are figures."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def write_text(path: Path, text: str) -> None:
    """Write beside, then rename."""
    beside = path.with_suffix(path.suffix + ".tmp")
    beside.write_text(text)
    beside.replace(path)


def save_figure(path: Path, figure: Any) -> None:
    """Write a Matplotlib figure as PNG: beside, then renamed."""
    beside = path.with_suffix(".tmp")
    figure.savefig(beside, format="png", dpi=100)
    beside.replace(path)

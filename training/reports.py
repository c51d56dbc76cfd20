"""What every report is written with: tables, and figures that are whole or not there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from device.files import whole_or_nothing, write_text


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a Markdown table; all columns but the first are figures."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def save_json(path: Path, content: Any) -> None:
    """Write what was measured, whole or not at all."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def save_figure(path: Path, figure: Any) -> None:
    """Write a Matplotlib figure as PNG, whole or not at all."""
    with whole_or_nothing(path) as beside:
        figure.savefig(beside, format="png", dpi=100)

"""Which version of the code is running."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git_revision() -> str:
    """Return the commit of the working tree, with ``+`` where files differ from it."""
    here = Path(__file__).parent
    try:
        describe = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        return subprocess.check_output(
            describe, cwd=here, text=True, stderr=subprocess.DEVNULL
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

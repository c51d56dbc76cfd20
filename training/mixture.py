"""Stacks of which a part is drawn by other settings: how it is asked for, and which are.

Imports no Keras, as simulating processes do not.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from device.errors import UserError
from training.forward_model import ForwardModelSettings

ALSO_PART = 0.15
"""Of the stacks, where other settings are named and no part is."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``--also`` and ``--also-part``."""
    parser.add_argument(
        "--also", metavar="SETTINGS",
        help="draw a part of the stacks by the forward model of these settings",
    )  # fmt: skip
    parser.add_argument(
        "--also-part", type=float, metavar="PART",
        help=f"which part, from 0 to 1 (default: {ALSO_PART:g})",
    )  # fmt: skip


def also_part(arguments: argparse.Namespace) -> float:
    """Return the part that was asked for.

    Raises
    ------
    UserError
        It is not a number from 0 to 1, or is one of nothing.
    """
    given = arguments.also_part
    if given is None:
        return ALSO_PART
    if not 0 <= given <= 1:
        raise UserError(f"--also-part is {given:g}; give a number from 0 to 1.")
    if not arguments.also:
        raise UserError("--also-part is a part of nothing: name settings with --also, too.")
    return float(given)


def chosen(
    models: Sequence[ForwardModelSettings], also_part: float, rng: np.random.Generator
) -> ForwardModelSettings:
    """Choose what draws a stack: where there are two, the second in `also_part` of the cases."""
    return models[-1] if rng.random() < also_part else models[0]

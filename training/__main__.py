"""``python -m training COMMAND``: simulate, train, quantize, evaluate, release."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys

from device.errors import Learn2sofiError, UserError

_INTERRUPTED = 130
DEBUG = "--debug"

COMMANDS = {
    "simulate": "write simulated stacks and their truth as TIFF",
    "download": "fetch images to cut specimens from, with licence and source beside each",
    "demo": "write the stack that `make run` plays",
    "train": "train the network; goes on where an interrupted run stopped",
    "head": "train the head of a released network further, on the states that its int8 cell makes",
    "shrinkage": "have a network trust less what it finds from the whole image",
    "psf_width": "train what finds the PSF's width in the frames",
    "expected_error": "train what says how far each pixel of a reconstruction may be off",
    "quantize": "turn a run's weights into a float32 and an int8 step",
    "evaluate": "score every method and every model form on the frozen test stacks",
    "simulated": "score every method on simulated stacks, by default of the original's own kind",
    "resolution": "say from which distance on each method shows two lines apart, or one as two",
    "sweeps": "score against frames, photons, PSF width and fluctuation, one after the other",
    "gains": "map what the frames give beyond their mean, over the twin trained on the mean",
    "sparse": "say what frames of sparse blinking give beyond their mean, over the twin",
    "bound": "say how much nearer two emitters are told apart from frames than from their mean",
    "lattice": "look for patterns of the network's own grid, and shift its input",
    "location": "say how far from its place each method draws a single emitter",
    "calibration": "say whether the error that is expected of each pixel is the actual one",
    "speed": "time one int8 step against the architecture of the original",
    "accuracy": "say what int8 costs, and whether a stream stays what it was",
    "golden": "renew the windows that a device checks its accuracy with",
    "release": "write models/: the pair, manifest, checksums, model card, what it is compared with",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code (2 for bad input, 1 for a fault)."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    words = sys.argv[1:] if argv is None else argv
    try:
        return _run(words)
    except Learn2sofiError as error:
        if DEBUG in words:
            raise
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        if DEBUG in words or error.filename is None:
            raise
        sys.stderr.write(
            f"{error.filename}: {error.strerror}; expected a path that can be read or written "
            "there; name another\n"
        )
        return UserError.exit_code
    except KeyboardInterrupt:
        if DEBUG in words:
            raise
        sys.stderr.write("interrupted\n")
        return _INTERRUPTED


def _run(words: list[str]) -> int:
    """Import the command that is named, and run it."""
    name = next((word for word in words if word in COMMANDS), None)
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument(DEBUG, action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command, summary in COMMANDS.items():
        sub = commands.add_parser(command, help=summary, description=summary)
        if command == name:  # the others' imports are slow and not needed
            module = importlib.import_module(f"training.{command}")
            module.add_arguments(sub)
    arguments = parser.parse_args(words)
    return int(module.main(arguments))


if __name__ == "__main__":
    sys.exit(main())

"""What the command line turns into one sentence and an exit code."""

from __future__ import annotations

from typing import ClassVar


class Learn2sofiError(Exception):
    """Base of all errors whose text is one sentence for the user; raise one of its children.

    The sentence says what was wrong, what was expected and what to do.
    """

    exit_code: ClassVar[int]


class UserError(Learn2sofiError):
    """The input is at fault: a file, an option, a setting. Exit code 2."""

    exit_code = 2


class FaultError(Learn2sofiError):
    """Something failed that the user could not have given otherwise. Exit code 1."""

    exit_code = 1

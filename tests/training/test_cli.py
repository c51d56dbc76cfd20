"""``python -m training``: commands, sentences and exit codes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from training.__main__ import COMMANDS, main

KNOWN = (
    "base, limit, limit_twin, mean, original, original_drawn, original_network, smoke, twin, voids"
)
"""Settings files, as a missing one is answered."""


def test_every_command_is_listed_and_says_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a command that is declared but cannot be imported, or takes no --help."""
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    listed = capsys.readouterr().out
    for command in COMMANDS:
        assert f"    {command} " in listed or f"    {command}\n" in listed
        assert importlib.import_module(f"training.{command}").__doc__
        with pytest.raises(SystemExit) as end:
            main([command, "--help"])
        assert end.value.code == 0
        assert "--" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["fly"], ["train", "--no-such-option"]], ids=str)
def test_what_is_no_command_ends_with_2(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a command line that is guessed at; an empty list is not the process's own."""
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train", "--settings", "no-such-file"], KNOWN),
        (["simulate", "--out", "OUT", "--settings", "no-such-file"], KNOWN),
        (["quantize", "--run", "no-such-run"], "train first"),
        (["quantize", "--run", "no-such-run", "--stacks", "0"], "--stacks"),
        (["evaluate", "--original", "no-such-run"], "train first"),
        (["release", "--run", "no-such-run", "--version", "1.0"], "name a trained run"),
        (["release", "--run", "no-such-run", "--version", "../1"], "0.1.0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    argv: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Catches a traceback, another exit code, and files left behind."""
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert "Traceback" not in error
    assert error.count("\n") == 0
    assert not list(tmp_path.iterdir())


def test_debug_shows_where_an_error_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a --debug that changes nothing, and the process's arguments taken for those given."""
    monkeypatch.setattr(sys, "argv", ["training", "evaluate"])
    with pytest.raises(Exception, match=KNOWN):
        main(["--debug", "train", "--settings", "no-such-file"])


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (FileExistsError(17, "File exists", "a-file"), 2, "a-file: File exists; expected"),
    ],
    ids=["Ctrl-C", "a file named as folder"],
)
def test_what_a_user_causes_shows_no_traceback(
    raised: BaseException,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Catches the exception let through."""

    def stopped(_: object) -> int:
        raise raised

    monkeypatch.setattr("training.evaluate.main", stopped)
    assert main(["evaluate"]) == code
    error = capsys.readouterr().err.strip()
    assert words in error
    assert error.count("\n") == 0

"""The rule of `conftest.py`: nothing is left out silently where it counts."""

from __future__ import annotations

from pathlib import Path

import pytest

CASES = {
    "skip": "def test_it():\n    pytest.skip('no camera')",
    "mark": "@pytest.mark.skip(reason='later')\ndef test_it():\n    pass",
    "module": "pytest.importorskip('no_such_module_at_all')\ndef test_it():\n    pass",
    "xfail": "@pytest.mark.xfail\ndef test_it():\n    assert False",
    "xpass": "@pytest.mark.xfail\ndef test_it():\n    pass",
}


def _exit_code(pytester: pytest.Pytester, body: str) -> int:
    rule = Path(__file__).with_name("conftest.py").read_text()
    pytester.makeconftest(rule.replace('pytest_plugins = ["pytester"]', ""))
    pytester.makepyfile(f"import pytest\n{body}\n")
    return int(pytester.runpytest_inprocess("-p", "no:cacheprovider").ret)


@pytest.mark.parametrize("case", CASES)
def test_in_ci_a_test_left_out_fails(
    case: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a hook that lets one of the five ways of leaving a test out pass."""
    monkeypatch.setenv("CI", "true")
    assert _exit_code(pytester, CASES[case]) != 0


def test_elsewhere_skips_stay_skips(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches the rule applied to everyone, and in CI to tests that ran."""
    monkeypatch.delenv("CI", raising=False)
    assert _exit_code(pytester, CASES["skip"]) == 0
    monkeypatch.setenv("CI", "true")
    assert _exit_code(pytester, "def test_it():\n    pass") == 0

"""The rule of `conftest.py`: nothing is left out silently where it counts."""

from __future__ import annotations

from pathlib import Path

import pytest

CASES = """
import pytest

def test_that_runs():
    pass

def test_that_skips_itself():
    pytest.skip("no camera")

@pytest.mark.skip(reason="later")
def test_that_is_marked():
    pass

@pytest.mark.xfail
def test_that_may_fail():
    assert False

@pytest.mark.xfail
def test_that_may_fail_and_does_not():
    pass
"""
MODULE = "import pytest\npytest.importorskip('no_such_module_at_all')\n"


@pytest.mark.parametrize(
    ("ci", "expected"),
    [
        ("true", {"passed": 1, "failed": 3, "errors": 2}),
        ("", {"passed": 1, "skipped": 3, "xfailed": 1, "xpassed": 1}),
    ],
    ids=["in CI", "elsewhere"],
)
def test_a_test_left_out_fails_in_ci_and_only_there(
    ci: str, expected: dict[str, int], pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a hook that lets one of the five ways of leaving a test out pass, and one that fails
    what ran."""
    rule = Path(__file__).with_name("conftest.py").read_text()
    pytester.makeconftest(rule.replace('pytest_plugins = ["pytester"]', ""))
    pytester.makepyfile(test_cases=CASES, test_module=MODULE)
    monkeypatch.setenv("CI", ci)
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "--continue-on-collection-errors"
    )
    assert (result.ret == 0) == (ci == "")
    result.assert_outcomes(**expected)

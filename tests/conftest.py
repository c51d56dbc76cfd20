"""In CI a test that did not run, or was allowed to fail, is a failure."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

pytest_plugins = ["pytester"]

_NOT_RUN = "In CI a skipped or expected-to-fail test is a failure: {}"


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() == "true"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn skip, xfail and xpass into failures."""
    report = yield
    if _in_ci() and (report.skipped or hasattr(report, "wasxfail")):
        reason = getattr(report, "wasxfail", report.longrepr)
        vars(report).pop("wasxfail", None)
        report.outcome, report.longrepr = "failed", _NOT_RUN.format(reason)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn modules that skip themselves into failures."""
    report = yield
    if _in_ci() and report.skipped:
        report.outcome, report.longrepr = "failed", _NOT_RUN.format(report.longrepr)
    return report

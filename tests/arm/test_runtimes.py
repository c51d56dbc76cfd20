"""The shipped int8 file on the processors and runtimes that it is meant for, 64-bit Arm emulated.

What runs there is the device's own `learn2sofi check --accuracy`: it reconstructs the golden
windows and compares with what was found where the model was released. `make-roots` has made the
systems; emulation says what is computed, not how fast.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.arm

REPOSITORY = Path(__file__).parents[2]
ROOTS = REPOSITORY / "build" / "arm"
WINDOWS = 6  # three kinds of stack in two modes
COMMAND = "import sys; from device.cli import main; sys.exit(main(sys.argv[1:]))"


@dataclass(frozen=True)
class Case:
    """A system, the processor that is emulated (none: this one), and the runtime."""

    root: str
    python: str
    cpu: str | None
    runtime: str

    def __str__(self) -> str:
        return f"{self.root}, {self.cpu or 'native'}, {self.runtime}"

    def interpreter(self) -> list[str]:
        """The command that starts the system's Python; nothing of it needs to be root."""
        system = ROOTS / self.root / "system"
        python = str(system / "usr" / "bin" / f"python{self.python}")
        if self.cpu is not None:
            return ["qemu-aarch64-static", "-cpu", self.cpu, "-L", str(system), python]
        libraries = ":".join(str(system / part / "x86_64-linux-gnu") for part in ("lib", "usr/lib"))
        loader = str(system / "lib64" / "ld-linux-x86-64.so.2")
        return [loader, "--library-path", libraries, python]

    def run(self, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python code in the system, with the device's packages and this tree."""
        root = ROOTS / self.root
        environment = {
            "PYTHONHOME": str(root / "system" / "usr"),
            "PYTHONPATH": f"{REPOSITORY}:{root / 'packages'}",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [*self.interpreter(), "-c", code, *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=900, check=False
        )


CASES = [
    Case("bookworm-arm64", "3.11", "cortex-a72", "tflite-runtime"),
    Case("bookworm-arm64", "3.11", "cortex-a76", "tflite-runtime"),
    Case("bookworm-arm64", "3.11", "cortex-a72", "ai-edge-litert"),
    Case("trixie-arm64", "3.13", "cortex-a72", "ai-edge-litert"),
    Case("trixie-arm64", "3.13", "cortex-a76", "ai-edge-litert"),
    Case("bookworm-amd64", "3.11", None, "tflite-runtime"),
]


@pytest.fixture(scope="module")
def checks() -> Iterator[dict[Case, Future[subprocess.CompletedProcess[str]]]]:
    """Every system's check, as many at once as there are processors: emulation is slow."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        asked = ("check", "--accuracy", "--runtime")
        yield {case: pool.submit(case.run, COMMAND, *asked, case.runtime) for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_golden_windows_are_as_at_the_release(
    case: Case, checks: dict[Case, Future[subprocess.CompletedProcess[str]]]
) -> None:
    """Mutations: kernels that round otherwise by more than a bit, a file that a runtime refuses.

    The tolerances are those of `device.golden`. Seen: ai-edge-litert on Arm the same figures as on
    x86-64 to 0.04 dB and 2.1 dB of likeness, tflite-runtime up to 0.03 dB and 3.3 dB from them.
    """
    done = checks[case].result()
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line[:6] for line in lines] == ["ok    "] * WINDOWS, done.stdout


@pytest.mark.parametrize(
    ("case", "machine", "numpy"),
    [(CASES[0], "aarch64", "1."), (CASES[3], "aarch64", "2."), (CASES[5], "x86_64", "1.")],
    ids=str,
)
def test_the_systems_are_what_they_are_called(case: Case, machine: str, numpy: str) -> None:
    """Mutation: the host's own Python or numpy run instead, and everything above is green."""
    done = case.run(
        "import platform, sys, numpy; v = sys.version_info\n"
        "sys.stdout.write(f'{platform.machine()} {v[0]}.{v[1]} {numpy.__version__}')"
    )
    found = done.stdout.split()
    assert found[:2] == [machine, case.python], done.stderr
    assert found[2].startswith(numpy)

"""The same deploy into 64-bit Arm, emulated: some hundred times slower, so a suite of its own.

systemd does not run under emulation, so this goes up to where it would be asked to switch: the
release is there, its environment is built of Arm packages, and it has reconstructed the demo stack.
"""

import pytest

from .machine import Machine
from .test_deploy import REPOSITORY

pytestmark = pytest.mark.deploy_arm


# Natively it takes seconds.
FLAGS = "--preflight-only --preflight-within-s=1500"


class ArmMachine(Machine):
    base = "root-arm64"
    # The folder says that systemd is there: on_device.py insists on it.
    inside = (
        *("sh", "-c"),
        "mkdir -p /run/sshd /run/systemd/system /run/lock && exec /usr/sbin/sshd -D -e",
    )
    # Emulated programs gain no rights from their files: sudo works for root alone.
    user, home = "root", "root"
    patience_s = 1800


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    with ArmMachine(tmp_path_factory.mktemp("arm")) as machine:
        yield machine


def test_the_first_reconstruction_is_made_with_the_arm_packages(machine):
    """Mutation: a package without a wheel for 64-bit Arm; one that does not load there."""
    assert machine.root_does("uname -m") == "aarch64"
    code, said = machine.make("deploy", REPOSITORY, f"DEPLOY_ARGS={FLAGS}")
    assert code == 0, said
    assert "reconstructs the demo stack" in said
    libraries = machine.root_does(
        "find /opt/learn2sofi/venvs -name '*.so' -path '*ai_edge_litert*' | head -1 "
        "| xargs od -An -tx1 -j18 -N1"
    )
    assert libraries == "b7"  # ELF's machine number of 64-bit Arm
    assert machine.root_does("ls /opt/learn2sofi/releases") == ""

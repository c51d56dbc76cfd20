"""`make deploy` from this tree to a real systemd; the tests run in the order in which they stand.

Each takes the machine as the one before left it: with a release that works in service.
"""

import json
import logging
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from .machine import CutLine, Downtime, Machine, wait_until

log = logging.getLogger(__name__)

pytestmark = pytest.mark.deploy

REPOSITORY = Path(__file__).resolve().parents[2]
# A Pi's user would not notice less. The machine of the tests has two busy cores.
SECONDS = 30


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    with Machine(tmp_path_factory.mktemp("machine")) as machine:
        yield machine


@pytest.fixture(scope="module")
def token(machine):
    return machine.root_does("cat /etc/learn2sofi/token")


def copy_of_tree(folder):
    """Copy the working tree as git sees it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        source = REPOSITORY / name
        if source.is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / name)
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The working tree; a file makes its reconstruction hang, another unplugs its camera."""
    tree = copy_of_tree(tmp_path_factory.mktemp("good"))
    change(
        tree / "device" / "pipeline.py",
        '        """Reconstruct with the newest frame and publish',
        '        while __import__("os").path.exists("/var/lib/learn2sofi/hang"):\n'
        "            time.sleep(0.1)\n",
        before=True,
    )
    change(
        tree / "device" / "replay.py",
        "        self.close()\n        try:",
        '        if Path("/var/lib/learn2sofi/unplugged").exists():\n'
        '            raise CameraError("unplugged for the test")\n',
        before=True,
    )
    return tree


@pytest.fixture
def tree(tmp_path, good):
    """A tree to spoil."""
    return shutil.copytree(good, tmp_path / "tree")


def change(path, anchor, text, before=False):
    """Put text before or after an anchor that stands there once."""
    content = path.read_text()
    assert content.count(anchor) == 1, f"{path.name} has {content.count(anchor)} times {anchor!r}"
    path.write_text(content.replace(anchor, text + anchor if before else anchor + text))


def as_a_new_release(tree, mark):
    (tree / "models" / "MODEL_CARD.md").write_text(f"{mark}\n")


def state(machine, token=None):
    return json.loads(machine.get("/api/state", token)[1])


def test_a_fresh_install_serves_and_shows_the_token_once(machine, good):
    """Mutation: the service is not enabled, the demo not reconstructed, the token not shown."""
    code, said = machine.make("deploy", good)
    assert code == 0, said
    assert state(machine)["reconstructions"] > 0
    (shown,) = re.findall(r"[0-9a-f]{64}", said)
    assert machine.root_does("cat /etc/learn2sofi/token") == shown
    assert machine.root_does("stat -c '%a %U %G' /etc/learn2sofi/token") == "640 root learn2sofi"
    assert machine.root_does("systemctl is-enabled learn2sofi") == "enabled"
    assert machine.shown("User") == "learn2sofi"
    assert "reconstructions/s" in wait_for_status(machine)


def wait_for_status(machine):
    wait_until(lambda: "frames/s" in machine.shown("StatusText"), "STATUS with the rates", SECONDS)
    return machine.shown("StatusText")


def test_a_second_deploy_changes_nothing_and_says_so(machine, good, token):
    """Mutation: the release's name depends on time; the service is restarted every time."""
    before = machine.shown("MainPID"), machine.current(), machine.releases()
    code, said = machine.make("deploy", good)
    assert code == 0
    assert "nothing was changed" in said
    assert token not in said
    assert (machine.shown("MainPID"), machine.current(), machine.releases()) == before


def test_systemd_finds_nothing_to_say_about_the_unit(machine):
    """Mutation: a misspelt key, of which systemd-analyze tells but ends with 0."""
    unit = "/etc/systemd/system/learn2sofi.service"
    said = machine.root_does(f"systemd-analyze verify {unit} 2>&1")
    assert "learn2sofi" not in said
    said = machine.root_does(f"systemd-analyze security --offline=true --threshold=20 {unit}")
    (exposure,) = re.findall(r"Overall exposure level for .*: ([\d.]+) ", said)
    (claimed,) = re.findall(r"exposure of ([\d.]+) of 10", (REPOSITORY / "README.md").read_text())
    assert exposure == claimed


def test_only_the_devices_files_are_there_and_nobody_else_can_write_them(machine):
    """Mutation: the whole tree is sent; the release belongs to the user who deployed."""
    current = "/opt/learn2sofi/current"
    there = {name for name in machine.root_does(f"ls {current}/").split() if "-info" not in name}
    expected = {"LICENSE", "bin", "device", "models", "release.sha256", "systemd", "venv"}
    assert there == expected
    assert machine.root_does(f"find {current}/ ! -user root -o -perm /022 ! -type l") == ""


def deploy_and_expect_rollback(machine, tree, reason):
    """Deploy something bad: it is refused, what ran goes on, and the old one is hardly missed."""
    before, kept = machine.current(), machine.releases()
    with Downtime(machine) as downtime:
        code, said = machine.make("deploy", tree)
    assert code != 0, said
    assert reason in said
    assert (machine.current(), machine.releases()) == (before, kept)
    assert state(machine)["reconstructions"] > 0
    assert downtime.answered > 0
    assert downtime.longest_s < SECONDS
    log.info("the service was silent for %.1f s at most", downtime.longest_s)
    return said


def test_a_release_that_crashes_is_rolled_back(machine, tree):
    """Mutation: that systemd started the unit is taken for its running."""
    change(
        tree / "device" / "cli.py",
        "def _serve(settings: Settings, stopper: _Stopper, once: bool) -> None:\n",
        '    raise SystemExit("spoiled for the test")\n',
    )
    said = deploy_and_expect_rollback(machine, tree, "the service does not start")
    assert "spoiled for the test" in said  # the last lines of its log


def test_a_release_that_crashes_a_while_after_its_start_is_rolled_back(machine, tree):
    """Mutation: the first reconstruction is taken for proof that it goes on."""
    change(
        tree / "device" / "cli.py",
        "            heartbeat.ready(address)\n",
        '            threading.Timer(2, __import__("os")._exit, (3,)).start()\n',
    )
    deploy_and_expect_rollback(machine, tree, "the service crashes")


def test_a_release_that_serves_but_never_reconstructs_is_rolled_back(machine, tree):
    """Mutation: /healthz is taken for enough."""
    change(
        tree / "device" / "pipeline.py",
        '        while __import__("os")',
        "        return\n",
        before=True,
    )
    deploy_and_expect_rollback(machine, tree, "reconstructs nothing")


def test_a_release_with_a_broken_model_is_not_switched_to(machine, tree):
    """Mutation: no preflight; the old one would be stopped for it."""
    pid = machine.shown("MainPID")
    for model in (tree / "models").glob("*-int8.tflite"):
        content = bytearray(model.read_bytes())
        content[len(content) // 2] ^= 0xFF
        model.write_bytes(content)
    said = deploy_and_expect_rollback(machine, tree, "was not switched to")
    assert ".tflite" in said
    assert machine.shown("MainPID") == pid


def test_a_network_cut_in_the_middle_of_the_transfer_harms_nothing(machine, tree, tmp_path):
    """Mutation: files are sent into the release that runs."""
    pid, before = machine.shown("MainPID"), machine.current()
    noise = bytes(range(256)) * 8_000
    (tree / "device" / "demo.ome.tif").write_bytes(
        (tree / "device" / "demo.ome.tif").read_bytes() + noise
    )
    as_a_new_release(tree, "sent at the second attempt")
    with CutLine(machine.ssh_port, limit_bytes=600_000) as line:
        config = tmp_path / "ssh_config"
        config.write_text(machine.ssh_settings(line.port))
        code, said = machine.make("deploy", tree, ssh_config=config)
        assert line.cut.is_set()
    assert code != 0
    assert "broke off" in said
    assert (machine.shown("MainPID"), machine.current()) == (pid, before)
    code, said = machine.make("deploy", tree)
    assert code == 0, said
    assert machine.current() != before


def test_a_full_disk_is_told_and_harms_nothing(machine, tree):
    """Mutation: half a release is switched to; half a release is left behind."""
    as_a_new_release(tree, "x" * 4_000_000)
    before = machine.current()
    free_kb = machine.root_does("df --output=avail /opt/learn2sofi | tail -1")
    machine.root_does(f"fallocate -l {int(free_kb) - 1_000}K /var/filler")
    try:
        assert "MB free" in deploy_and_expect_rollback(machine, tree, "not ready")
        # Without asking first: the transfer fills the disk.
        code, said = machine.make("deploy", tree, "DEPLOY_ARGS=--min-free-mb=0")
        assert code != 0
        assert "broke off" in said
        # With room for the transfer alone: the release itself cannot be laid down.
        machine.root_does(f"rm /var/filler && fallocate -l {int(free_kb) - 6_000}K /var/filler")
        code, said = machine.make("deploy", tree, "DEPLOY_ARGS=--min-free-mb=0")
        assert code != 0
        assert "No space left" in said
    finally:
        machine.root_does("rm -f /var/filler")
    assert machine.current() == before
    assert machine.answers()
    assert not [name for name in machine.releases() if name.endswith(".partial")]


def test_three_releases_are_kept_and_rollback_goes_to_the_one_before(machine, good, tree):
    """Mutation: releases heap up; rollback goes to the oldest; it forgets the unit."""
    for mark in ("one", "two"):
        as_a_new_release(tree, mark)
        before = machine.current()
        code, said = machine.make("deploy", tree)
        assert code == 0, said
    assert len(machine.releases()) == 3
    code, said = machine.make("rollback", tree)
    assert code == 0, said
    assert machine.current() == before
    assert state(machine)["reconstructions"] > 0


def test_a_reboot_brings_it_back_by_itself(machine):
    """Mutation: the unit is started but not enabled."""
    machine.ssh("sudo systemctl reboot")
    wait_until(lambda: not machine.answers(), "the machine to go down", SECONDS)
    took_s = wait_until(machine.answers, "the service after a reboot", 2 * SECONDS)
    log.info("back %.1f s after the machine went down", took_s)
    machine.wait_for_ssh()
    assert machine.shown("NRestarts") == "0"


def test_killed_it_is_back_within_seconds(machine):
    """Mutation: Restart= is missing."""
    pid = machine.shown("MainPID")
    machine.root_does(f"kill -9 {pid}")
    took_s = wait_until(
        lambda: machine.answers() and machine.shown("MainPID") not in (pid, "0"), "it", SECONDS
    )
    log.info("back %.1f s after it was killed", took_s)
    assert machine.shown("NRestarts") == "1"


def test_a_hung_pipeline_is_restarted_by_the_watchdog(machine):
    """Mutation: the watchdog is fed by a timer, whatever the pipeline does."""
    pid = machine.shown("MainPID")
    machine.root_does("touch /var/lib/learn2sofi/hang")
    # WatchdogSec, and what the load of this machine adds.
    took_s = wait_until(lambda: machine.shown("MainPID") != pid, "the watchdog", 3 * SECONDS)
    log.info("taken for hung after %.1f s", took_s)
    machine.root_does("rm /var/lib/learn2sofi/hang")
    wait_until(machine.answers, "the service after the watchdog", SECONDS)
    assert "Watchdog timeout" in machine.root_does("journalctl --unit learn2sofi --no-pager")


def test_a_bad_setting_keeps_it_down_with_one_clear_line(machine, tree):
    """Mutation: Restart=always without RestartPreventExitStatus=2."""
    machine.root_does("cp -p /etc/learn2sofi/config.toml /var/tmp/config")
    restarts = machine.shown("NRestarts")
    machine.root_does("echo 'mode = \"sideways\"' >>/etc/learn2sofi/config.toml")
    machine.root_does("systemctl restart learn2sofi || true")
    wait_until(
        lambda: machine.shown("ActiveState") == "failed", "the service to stay down", SECONDS
    )
    invocation = machine.shown("InvocationID")
    lines = machine.root_does(f"journalctl -o cat _SYSTEMD_INVOCATION_ID={invocation}")
    (line,) = [line for line in lines.splitlines() if "learn2sofi:" in line]
    assert "sideways" in line
    assert "/etc/learn2sofi/config.toml" in line
    assert machine.shown("NRestarts") in (restarts, "0")
    as_a_new_release(tree, "does not help against a bad setting")
    code, said = machine.make("deploy", tree)
    assert code != 0
    assert "sideways" in said
    machine.root_does("cp -p /var/tmp/config /etc/learn2sofi/config.toml")
    machine.root_does("systemctl restart learn2sofi")
    assert machine.answers()


def test_listening_on_a_network_takes_the_token(machine, good, token):
    """Mutation: the guard covers the page but not the socket; wrong tokens can be tried freely."""
    assert machine.get("/api/state")[0] == 200  # on loopback nobody is asked
    code, said = machine.make("listen", good, "NETWORK=127.0.0.0/8")
    assert code == 0, said
    assert token not in said
    assert machine.get("/healthz")[0] == 200
    for path in ("/", "/api/state", "/metrics", "/docs", "/snapshot.png"):
        assert machine.get(path)[0] == 401
        assert machine.get(path, token)[0] == 200
    socket = machine.address.replace("http", "ws") + "/live"
    with pytest.raises(InvalidStatus):
        connect(socket)
    with connect(socket, additional_headers={"Authorization": f"Bearer {token}"}) as live:
        live.send('{"credit": 1}')
        assert len(live.recv(timeout=SECONDS)) > 1000
    codes = {machine.get("/api/state", "0" * 64)[0] for _ in range(15)}
    assert codes == {401, 429}
    assert machine.get("/api/state", token)[0] == 200
    assert machine.make("listen", good, "NETWORK=none")[0] == 0
    assert machine.get("/api/state")[0] == 200


def test_a_missing_camera_is_told_and_no_reason_to_go_back(machine, tree):
    """Mutation: a deploy insists on frames; it dies of a missing camera; it never tries again."""
    machine.root_does("touch /var/lib/learn2sofi/unplugged && systemctl restart learn2sofi")
    assert machine.get("/healthz")[0] == 503
    as_a_new_release(tree, "deployed without a camera")
    before = machine.current()
    code, said = machine.make("deploy", tree)
    assert code == 0, said
    assert "the camera is missing, as before: unplugged for the test" in said
    assert machine.current() != before
    pid = machine.shown("MainPID")
    machine.root_does("rm /var/lib/learn2sofi/unplugged")
    wait_until(machine.answers, "frames to come again", SECONDS)
    assert machine.shown("MainPID") == pid


def test_status_and_logs_show_how_it_stands(machine, good):
    """Mutation: status says well of a service that is down."""
    code, said = machine.make("status", good)
    assert code == 0
    assert "reconstructions/s" in said
    assert "ready http://" in machine.make("logs", good)[1]


def test_undeploy_leaves_what_is_the_users_and_names_it(machine, good):
    """Mutation: recordings are removed with the service; something else is left."""
    machine.root_does("echo '# mine' >>/etc/learn2sofi/config.toml")
    machine.root_does("echo gold >/var/lib/learn2sofi/recordings/cell.ome.tif")
    code, said = machine.make("undeploy", good)
    assert code == 0, said
    assert "/etc/learn2sofi" in said
    assert "/var/lib/learn2sofi" in said
    assert machine.root_does("cat /var/lib/learn2sofi/recordings/cell.ome.tif") == "gold"
    assert not machine.answers()
    left = machine.root_does("find /etc /opt /usr -name '*learn2sofi*' ! -path '*.service.d'")
    assert left == "/etc/learn2sofi"


def test_a_first_install_that_fails_is_stopped(machine, tree):
    """Mutation: what has nothing to go back to is left in a restart loop."""
    change(
        tree / "device" / "cli.py",
        "def _serve(settings: Settings, stopper: _Stopper, once: bool) -> None:\n",
        '    raise SystemExit("spoiled for the test")\n',
    )
    code, said = machine.make("deploy", tree)
    assert code != 0
    assert "it is stopped" in said
    assert machine.shown("ActiveState") in ("inactive", "failed")
    assert machine.ssh("systemctl is-enabled learn2sofi").stdout.strip() != "enabled"


def test_no_deploy_touches_the_users_configuration(machine, good):
    """Mutation: the configuration comes with the release; a new token at every install."""
    before = machine.root_does("cat /etc/learn2sofi/config.toml /etc/learn2sofi/token")
    stat = machine.root_does("stat -c '%y %i' /etc/learn2sofi/config.toml")
    code, said = machine.make("deploy", good)
    assert code == 0, said
    assert machine.root_does("cat /etc/learn2sofi/config.toml /etc/learn2sofi/token") == before
    assert machine.root_does("stat -c '%y %i' /etc/learn2sofi/config.toml") == stat


def test_purging_removes_the_users_files_too(machine, good):
    """Mutation: PURGE=1 does not reach the device."""
    assert machine.make("undeploy", good, "PURGE=1")[0] == 0
    assert (
        machine.root_does("ls -d /etc/learn2sofi /var/lib/learn2sofi 2>&1 || true").count("No such")
        == 2
    )
    assert machine.ssh("id learn2sofi").returncode != 0

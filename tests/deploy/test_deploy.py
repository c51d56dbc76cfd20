"""`make deploy` from this tree to a real systemd; the tests run in the order in which they stand.

Each takes the machine as the one before left it: with a release that works in service.
"""

import contextlib
import functools
import http.client
import http.server
import json
import logging
import re
import shutil
import socket
import ssl
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from .machine import BUILD, CutLine, Downtime, Machine, free_port, wait_until

log = logging.getLogger(__name__)

pytestmark = pytest.mark.deploy

REPOSITORY = Path(__file__).resolve().parents[2]
# A Pi's user would not notice less. The machine of the tests has two busy cores.
SECONDS = 30
NEVER = '        while __import__("os")'  # where a return keeps it from reconstructing


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


def test_a_fresh_install_serves_and_shows_the_token_once(machine):
    """Mutation: the service is not enabled, the demo not reconstructed, the token not shown."""
    code, said = machine.make("deploy", REPOSITORY)
    assert code == 0, said
    assert "picamera2 is not installed" in said  # the check of the device
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


def test_the_model_is_as_accurate_there_as_at_its_release(machine):
    """Mutation: the golden windows are not sent; the pinned runtime rounds otherwise."""
    assert "WRONG" not in machine.root_does(
        "/opt/learn2sofi/current/bin/learn2sofi check --accuracy"
    )


def test_a_second_deploy_changes_nothing_and_says_so(machine, token):
    """Mutation: the release's name depends on time; the service is restarted every time."""
    before = machine.shown("MainPID"), machine.current(), machine.releases()
    code, said = machine.make("deploy", REPOSITORY)
    assert code == 0
    assert "nothing was changed" in said
    assert token not in said
    assert (machine.shown("MainPID"), machine.current(), machine.releases()) == before


def test_a_unit_that_was_changed_by_hand_is_put_right(machine):
    """Mutation: a deploy says that nothing was changed, while a unit without a watchdog runs."""
    unit = "/etc/systemd/system/learn2sofi.service"
    machine.root_does(f"sed -i /WatchdogSec/d {unit}")
    code, said = machine.make("deploy", REPOSITORY)
    assert code == 0, said
    assert "nothing was changed" not in said
    assert machine.root_does(f"cmp {unit} /opt/learn2sofi/current/systemd/learn2sofi.service") == ""
    assert machine.shown("WatchdogUSec") == "30s"


def test_a_new_release_takes_the_place_of_the_old_one(machine, good, token):
    """Mutation: the old one is stopped before the new one was sent; it is removed."""
    before = machine.current()
    with Downtime(machine) as downtime:
        code, said = machine.make("deploy", good)
    assert code == 0, said
    assert token not in said
    assert machine.current() != before
    assert machine.releases() == {before, machine.current()}
    assert downtime.answered > 0
    assert downtime.longest_s < SECONDS
    log.info("nothing was reconstructed for %.1f s at most", downtime.longest_s)


def test_a_recording_can_be_made_and_nothing_else_be_written(machine):
    """Mutation: the recordings' folder is out of the hardened service's reach."""
    recordings = "/var/lib/learn2sofi/recordings"
    assert machine.get("/api/recording", recording=True)[0] == 200
    wait_until(lambda: recording(machine)["frames"] > 3, "frames to be recorded", SECONDS)
    assert machine.get("/api/recording", recording=False)[0] == 200
    assert int(machine.root_does(f"stat -c %s {recordings}/*.ome.tif")) > 1000
    machine.root_does(f"rm {recordings}/*.ome.tif")
    sandbox = "nsenter --all --target=$(systemctl show --value --property=MainPID learn2sofi)"
    assert machine.root_does(f"{sandbox} sh -c 'touch {recordings}/x && rm {recordings}/x'") == ""
    for folder in ("/etc/learn2sofi", "/opt/learn2sofi", "/usr", "/home"):
        done = machine.ssh(f"sudo {sandbox} touch {folder}/x")
        assert "Read-only" in done.stderr, folder


def recording(machine):
    return json.loads(machine.get("/api/recording")[1])


def test_systemd_finds_nothing_to_say_about_the_unit(machine):
    """Mutation: a misspelt key, of which systemd-analyze tells but ends with 0."""
    unit = "/etc/systemd/system/learn2sofi.service"
    recovery = "/etc/systemd/system/learn2sofi-recover.service"
    assert machine.root_does(f"systemd-analyze verify {unit} {recovery} 2>&1") == ""
    said = machine.root_does(f"systemd-analyze security --offline=true --threshold=20 {unit}")
    (exposure,) = re.findall(r"Overall exposure level for .*: ([\d.]+) ", said)
    assert float(exposure) <= 2.0
    for page, claim in (("README.md", "exposure of"), ("docs/pi.md", "taken\\s+over at")):
        text = (REPOSITORY / page).read_text()
        assert re.findall(rf"{claim} ([\d.]+) of 10", text) == [exposure], page


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
    log.info("nothing was reconstructed for %.1f s at most", downtime.longest_s)
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
        NEVER,
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


def test_a_release_beside_which_the_camera_stack_does_not_load_is_not_switched_to(machine, tree):
    """Mutation: packages that picamera2 was not built for; the camera is called missing then."""
    pid = machine.shown("MainPID")
    stand_in = "/usr/lib/python3/dist-packages/picamera2.py"
    said = "import sys; assert sys.prefix == sys.base_prefix, 'numpy.dtype size changed'"
    machine.root_does(f'echo "{said}" >{stand_in}')
    as_a_new_release(tree, "has a numpy of its own")
    try:
        said = deploy_and_expect_rollback(machine, tree, "picamera2 does not load")
    finally:
        machine.root_does(f"rm {stand_in}")
    assert "numpy.dtype size changed" in said
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


def cut_on_trial(machine, tree, cut):
    """Deploy what serves and reconstructs nothing, and cut it off while it is being watched."""
    change(tree / "device" / "pipeline.py", NEVER, "        return\n", before=True)
    before = machine.link()
    with ThreadPoolExecutor(1) as pool:
        deploying = pool.submit(machine.make, "deploy", tree)
        wait_until(lambda: machine.link() not in (before, ""), "the switch", 4 * SECONDS)
        cut()
        code, said = deploying.result()
    assert code != 0
    assert "broke off" in said


def test_a_power_cut_before_the_release_was_proved_ends_with_the_one_before(machine, tree):
    """Mutation: what was switched to last is what starts at boot, whether it works or not."""
    before, kept = machine.current(), machine.releases()
    cut_on_trial(machine, tree, machine.cut_the_power)
    machine.wait_for_ssh()
    wait_until(machine.answers, "the service after the cut", SECONDS)
    assert (machine.current(), machine.releases()) == (before, kept)
    wait_until(lambda: state(machine)["reconstructions"], "a reconstruction", SECONDS)
    journal = machine.root_does("journalctl --boot --unit learn2sofi-recover --no-pager")
    assert "cut off before it had proved itself: back to " + before in journal
    assert machine.ssh("test -e /opt/learn2sofi/pending").returncode == 1
    assert machine.shown("NRestarts") == "0"


KILL_DEPLOY = """for process in /proc/[0-9]*; do
  if tr '\\0' ' ' <$process/cmdline | grep -q '^python3 - install'; then
    kill -KILL ${process#/proc/}; fi; done 2>/dev/null; true"""


def test_a_deploy_that_dies_before_the_release_was_proved_is_taken_back_by_status(machine, tree):
    """Mutation: only a boot looks for a release that was never proved."""
    before, kept = machine.current(), machine.releases()
    cut_on_trial(machine, tree, lambda: machine.root_does(KILL_DEPLOY))
    assert machine.current() != before
    code, said = machine.make("status", tree)
    assert code == 0, said
    assert f"before it had proved itself: back to {before}, which runs" in said
    assert (machine.current(), machine.releases()) == (before, kept)
    assert state(machine)["reconstructions"] > 0


def test_a_reboot_brings_it_back_by_itself(machine):
    """Mutation: the unit is started but not enabled."""
    machine.ssh("sudo systemctl reboot")
    wait_until(lambda: not machine.answers(), "the machine to go down", SECONDS)
    # Before it boots, systemd may wait 90 s for a session that does not end.
    took_s = wait_until(machine.answers, "the service after a reboot", 4 * SECONDS)
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


def test_on_a_network_a_wrong_token_is_refused_and_the_right_one_let_in(machine, good, token):
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


def test_what_the_service_cannot_listen_with_is_taken_back(machine, good, token):
    """Mutation: the page is opened for good, although the service then does not start."""
    code, said = machine.make("listen", good, "NETWORK=192.168.1.0/240")
    assert code != 0
    assert "192.168.1.0/240 is no network" in said
    machine.root_does("echo short >/etc/learn2sofi/token")
    code, said = machine.make("listen", good, "NETWORK=127.0.0.0/8")
    machine.root_does(f"echo {token} >/etc/learn2sofi/token")
    assert code != 0
    assert "could be guessed" in said
    assert "it runs as before" in said
    assert machine.get("/api/state")[0] == 200


def test_behind_the_documented_proxy_everything_goes_through_tls(machine, token, tmp_path):
    """Mutation: what docs/pi.md says does not work: token not asked for, cookie not for TLS only,
    the socket refused for its origin."""
    machine.root_does("cp -p /etc/learn2sofi/config.toml /var/tmp/config")
    machine.root_does("echo 'require_token = true' >>/etc/learn2sofi/config.toml")
    machine.root_does("systemctl restart learn2sofi")
    with proxy(machine, tmp_path) as (port, context):
        name, form = f"microscope.local:{port}", "application/x-www-form-urlencoded"
        assert over_tls(port, context, "GET", "/api/state").status == 401
        headers = {"Authorization": f"Bearer {token}"}
        assert over_tls(port, context, "GET", "/metrics", headers=headers).status == 200
        answer = over_tls(port, context, "POST", "/login", f"token={token}", {"Content-Type": form})
        assert answer.status == 303
        cookie = answer.getheader("Set-Cookie")
        assert "; Secure" in cookie
        headers = {"Cookie": cookie.partition(";")[0]}
        with connect(
            f"wss://{name}/live",
            sock=socket.create_connection(("127.0.0.1", port)),
            ssl=context,
            origin=f"https://{name}",
            additional_headers=headers,
        ) as live:
            live.send('{"credit": 1}')
            assert len(live.recv(timeout=SECONDS)) > 1000
    machine.root_does("cp -p /var/tmp/config /etc/learn2sofi/config.toml")
    machine.root_does("systemctl restart learn2sofi")
    assert machine.get("/api/state")[0] == 200


@contextlib.contextmanager
def proxy(machine, folder):
    """Caddy on the machine, with the file that docs/pi.md shows; its port, and whom to trust."""
    port = free_port()
    page = (REPOSITORY / "docs" / "pi.md").read_text()
    (site,) = re.findall(r"^```\n(microscope\.local \{\n.*?)^```", page, re.M | re.S)
    ports = f"{{\nadmin off\nskip_install_trust\nhttp_port {free_port()}\nhttps_port {port}\n}}\n"
    site = site.replace("127.0.0.1:8000", f"127.0.0.1:{machine.port}")
    (machine.root / "etc/caddy/Caddyfile").write_text(ports + site)
    machine.root_does(
        "systemd-run --quiet --unit=proxy --setenv=XDG_DATA_HOME=/var/tmp/proxy "
        "caddy run --config /etc/caddy/Caddyfile"
    )
    authority = machine.root / "var/tmp/proxy/caddy/pki/authorities/local/root.crt"
    wait_until(authority.is_file, "the proxy's certificate", SECONDS)
    context = ssl.create_default_context(cafile=authority)
    wait_until(lambda: has_tls(port, context), "the proxy", SECONDS)
    yield port, context
    machine.root_does("systemctl stop proxy")


def has_tls(port, context):
    try:
        return over_tls(port, context, "GET", "/healthz").status == 200
    except OSError:
        return False


def over_tls(port, context, method, path, body=None, headers=None):
    """Ask `microscope.local`, which no resolver knows here."""
    asking = http.client.HTTPConnection("microscope.local", port)
    asking.sock = context.wrap_socket(
        socket.create_connection(("127.0.0.1", port), timeout=10),
        server_hostname="microscope.local",
    )
    asking.request(method, path, body, headers or {})
    answer = asking.getresponse()
    answer.read()
    return answer


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


def test_a_power_cut_during_the_first_install_leaves_it_stopped(machine, tree):
    """Mutation: what has nothing to go back to is started at the next boot."""
    cut_on_trial(machine, tree, machine.cut_the_power)
    machine.wait_for_ssh()
    wait_until(lambda: machine.link() == "", "the link to go", SECONDS)
    assert machine.shown("ActiveState") in ("inactive", "failed")
    assert machine.ssh("systemctl is-enabled learn2sofi").stdout.strip() != "enabled"
    assert machine.releases() == set()


def test_from_an_index_only_packages_with_the_right_hash_are_taken(machine, good, tmp_path):
    """Mutation: the device cannot do without a wheelhouse; an index is trusted."""
    machine.root_does("rm -rf /opt/learn2sofi/venvs/*")
    for wheel in (BUILD.parent / "wheelhouse").glob("*-x86_64/*.whl"):
        project = re.sub(r"[-_.]+", "-", wheel.name.partition("-")[0]).lower()
        (tmp_path / project).mkdir(exist_ok=True)
        shutil.copy(wheel, tmp_path / project)
    (wheel,) = (tmp_path / "idna").iterdir()
    right = wheel.read_bytes()
    with index(tmp_path) as address:
        machine.root_does(f"printf '[global]\\nindex-url = {address}\\n' >/etc/pip.conf")
        wheel.write_bytes(right + b"tampered")
        code, said = machine.make("deploy", good, "WHEELHOUSE=none")
        assert code != 0
        assert "DO NOT MATCH THE HASHES" in said
        assert "was not switched to" in said
        assert machine.releases() == set()
        wheel.write_bytes(right)
        code, said = machine.make("deploy", good, "WHEELHOUSE=none")
        assert code == 0, said
    assert "sending the packages" not in said
    assert state(machine)["reconstructions"] > 0


@contextlib.contextmanager
def index(folder):
    """A package index: a folder for each project, listed over HTTP."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_a_user_who_may_not_become_root_is_told_and_the_first_steps_help(machine, good):
    """Mutation: sudo's words alone, which do not say what to do; first steps that leave it so."""
    machine.root_does("echo pi:raspberry | chpasswd")
    allowed = machine.root / "etc/sudoers.d/pi"
    kept = allowed.rename(machine.root / "var/tmp/pi")
    try:
        code, said = machine.make("deploy", good)
        assert machine.ssh("sudo -n true").returncode != 0
        page = (REPOSITORY / "docs" / "pi.md").read_text()
        (command,) = re.findall(r"^ssh -t \S+ \"(.*sudo.*)\"  # \d+$", page, re.M)
        machine.type_password(command, "raspberry")
        assert machine.ssh("sudo -n true").returncode == 0
    finally:
        kept.rename(allowed)
    assert code != 0
    assert "expected python3 there, and sudo without a password" in said


def test_no_deploy_touches_the_users_configuration(machine):
    """Mutation: the configuration comes with the release; a new token at every install."""
    before = machine.root_does("cat /etc/learn2sofi/config.toml /etc/learn2sofi/token")
    stat = machine.root_does("stat -c '%y %i' /etc/learn2sofi/config.toml")
    assert before.startswith("# This file is yours")
    assert "\n# mine\n" in before  # written before the service was removed, long ago
    code, said = machine.make("deploy", REPOSITORY)
    assert code == 0, said
    assert "nothing was changed" not in said
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

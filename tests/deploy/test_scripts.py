"""What can be told of the deploy without a device; the rest is `make test-deploy`."""

import argparse
import errno
import hashlib
import importlib.util
import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from contextlib import nullcontext
from pathlib import Path

import pytest

from device.access import MIN_TOKEN_CHARS
from device.cli import _parser
from device.settings import Settings

from .machine import Machine, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
SYSTEMD = REPOSITORY / "systemd"
LOCKS = sorted((SYSTEMD / "requirements").glob("python*.txt"))


def load(name):
    """Import one of the two programs, which are no package."""
    spec = importlib.util.spec_from_file_location(f"systemd_{name}", SYSTEMD / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


deploy = load("deploy")


@pytest.fixture
def there(tmp_path, monkeypatch):
    """The program on the device, at work in a folder."""
    module = load("on_device")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "CURRENT", tmp_path / "current")
    monkeypatch.setattr(module, "HISTORY", tmp_path / "history")
    monkeypatch.setattr(module, "PENDING", tmp_path / "pending")
    return module


def releases(there, *names, current):
    for name in names:
        there.release_path(name).mkdir(parents=True)
    there.write_history(list(names))
    if current:
        there.link(f"releases/{current}", there.CURRENT)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_every_package_is_pinned_and_hashed(lock):
    """Mutation: a package without hash, which pip would refuse on the device."""
    packages = re.split(r"^(?=\w)", lock.read_text(), flags=re.M)[1:]
    assert len(packages) > 20
    for package in packages:
        assert re.match(r"[\w.-]+==\S+ \\\n +--hash=sha256:[0-9a-f]{64}", package), package


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_the_pinned_packages_are_those_of_the_project(lock):
    """Mutation: a library is added to pyproject.toml and not to the device."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["device"]]
    names = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in wanted}
    assert names <= set(re.findall(r"^([\w.-]+)==", lock.read_text(), flags=re.M))


def test_numpy_fits_what_the_system_was_built_for():
    """Mutation: numpy 2 beside bookworm's simplejpeg, on which picamera2 then fails to import."""
    major = {lock.stem: re.search(r"^numpy==(\d+)", lock.read_text(), re.M)[1] for lock in LOCKS}
    assert major == {"python3.11": "1", "python3.12": "1", "python3.13": "2"}


def test_a_release_holds_what_the_device_needs_and_nothing_else(tmp_path):
    """Mutation: the page is forgotten; the training is sent."""
    release = deploy.stage(tmp_path)
    there = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {"device/cli.py", "device/default.toml", "device/web/index.html"} <= there
    assert {"device/demo.ome.tif", "bin/learn2sofi", "systemd/learn2sofi.service"} <= there
    listed = (REPOSITORY / "models" / "SHA256SUMS").read_text().split()[1::2]
    missing = [name for name in listed if f"models/{name}" not in there]
    # Weights and settings to train on with; how the rest was made; the card's figures and pictures.
    records = (".settings.json", ".psf_width.json", ".expected_error.json", ".evaluation.json")
    not_for_the_device = (".h5", *records, ".png")
    assert [name for name in missing if not name.endswith(not_for_the_device)] == []
    assert {path.split("/")[0] for path in there if "dist-info" not in path} == {
        *("LICENSE", "bin", "device", "models", "release.sha256", "systemd"),
    }
    assert not [path for path in there if path.endswith((*not_for_the_device, ".pyc"))]
    assert release.startswith(deploy.version() + "-")
    assert (tmp_path / "bin" / "learn2sofi").stat().st_mode & 0o111


def test_a_release_is_named_after_its_content(tmp_path, monkeypatch):
    """Mutation: the name depends on time or place, so that every deploy is a new one."""
    one, same, other, tree = (tmp_path / name for name in ("one", "same", "other", "tree"))
    for folder in (one, same, other, tree):
        folder.mkdir()
    name = deploy.stage(one)
    assert deploy.stage(same) == name
    for part in ("device", "models", "systemd", "pyproject.toml", "LICENSE"):
        copy = shutil.copytree if (REPOSITORY / part).is_dir() else shutil.copy
        copy(REPOSITORY / part, tree / part)
    monkeypatch.setattr(deploy, "REPOSITORY", tree)
    (tree / "device" / "errors.py").write_text("# changed\n")
    assert deploy.stage(other) != name


def test_both_sides_name_an_environment_alike(there):
    """Mutation: one side hashes something else: the packages are sent and built every time."""
    python = there.python_version()
    lock = LOCKS[0].with_name(f"python{python}.txt")
    assert there.venv_key(lock) == deploy.venv_key(python)


def test_the_unit_starts_what_is_deployed(there):
    """Mutation: one of the folders is renamed at one place only."""
    unit = (SYSTEMD / "learn2sofi.service").read_text()
    program = load("on_device")
    assert f"ExecStart={program.CURRENT}/bin/learn2sofi run --config {program.CONFIG}\n" in unit
    assert f"LEARN2SOFI_TOKEN_FILE={program.TOKEN}\n" in unit
    assert str(program.ROOT) == deploy.REMOTE_ROOT


def test_what_was_sent_in_part_is_refused(there, tmp_path):
    """Mutation: the list of checksums is not compared with the release's name."""
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    name = deploy.stage(incoming)
    assert there.broken_files(incoming) == []
    with pytest.raises(there.DeployError, match="not whole"):
        there.receive("0.1.0-000000000000")
    (incoming / "LICENSE").write_text("half")
    with pytest.raises(there.DeployError, match=r"not whole \(LICENSE\)"):
        there.receive(name)
    (incoming / "release.sha256").unlink()
    with pytest.raises(there.DeployError, match="not whole"):
        there.receive(name)


@pytest.mark.parametrize(
    ("known", "current", "deployed", "back_to"),
    [
        ((), None, "a", None),
        (("a",), "a", "b", "a"),
        (("a", "b"), "b", "c", "b"),
        (("a", "b"), "b", "a", "b"),
        (("a", "b"), "b", "b", "a"),  # the current one is deployed anew, for it was broken
        (("a",), "a", "a", None),
    ],
)
def test_where_a_failed_deploy_goes_back_to(there, known, current, deployed, back_to):
    """Mutation: the newest release but one, whichever is current."""
    releases(there, *known, current=current)
    assert there._release_before(deployed) == back_to


def test_rollback_needs_a_release_before_the_current_one(there):
    """Mutation: rollback goes in a circle."""
    releases(there, "a", "b", current="a")
    with pytest.raises(there.DeployError, match="no release before"):
        there.rollback(argparse.Namespace())


def test_pruning_keeps_environments_that_are_used(there, tmp_path):
    """Mutation: the environment of the release before is removed, so nothing can go back to it."""
    releases(there, "a", "b", "c", current="c")
    for release, venv in (("a", "old"), ("b", "shared"), ("c", "shared")):
        (tmp_path / "venvs" / venv).mkdir(parents=True, exist_ok=True)
        (there.release_path(release) / "venv").symlink_to(tmp_path / "venvs" / venv)
    there.prune(["b", "c"])
    assert {path.name for path in (tmp_path / "releases").iterdir()} == {"b", "c"}
    assert {path.name for path in (tmp_path / "venvs").iterdir()} == {"shared"}
    assert there.history() == ["b", "c"]


@pytest.mark.parametrize(
    ("error", "age_s", "missing"),
    [
        (None, None, False),  # it has not begun yet
        ("no camera", None, True),
        ("no camera", 60.0, True),
        ("the step cannot be made", 0.01, False),  # frames come: it is the release
    ],
)
def test_what_counts_as_a_missing_camera(there, error, age_s, missing):
    """Mutation: any error excuses a release that does not reconstruct."""
    assert there.camera_missing({"error": error, "last_frame_age_s": age_s}) is missing
    assert not there.camera_missing(None)


def test_a_clock_that_is_off_and_a_python_that_is_old_are_told(there, monkeypatch):
    """Mutation: a Pi without network time, to which every certificate is invalid."""
    monkeypatch.setattr(there.time, "time", lambda: 1_000_000.0)
    (problem,) = there._clock_problems(1_000_600.0)
    assert "600 s behind" in problem
    assert not list(there._clock_problems(1_000_299.0))
    assert any("its Python is" in problem for problem in there._machine_problems("3.9"))
    assert not list(there._machine_problems(there.python_version()))


def test_a_32_bit_system_is_told_even_where_its_kernel_is_64_bit(there, monkeypatch):
    """Mutation: only the kernel is asked, which is a 64-bit one on a 32-bit Raspberry Pi OS."""
    python = there.python_version()
    monkeypatch.setattr(there.platform, "machine", lambda: "armv7l")
    assert ["64-bit one is expected" in text for text in there._machine_problems(python)] == [True]
    monkeypatch.setattr(there.platform, "machine", lambda: "aarch64")
    assert not list(there._machine_problems(python))
    monkeypatch.setattr(there.struct, "calcsize", lambda _: 4)
    (problem,) = there._machine_problems(python)
    assert "32-bit aarch64" in problem


def test_all_that_is_missing_is_said_at_once(there, monkeypatch):
    """Mutation: the first problem hides the others, and each takes another deploy."""
    monkeypatch.setattr(there.shutil, "which", lambda _: None)
    failed = subprocess.CompletedProcess([], 1, "", "")
    monkeypatch.setattr(there, "run", lambda *_, **__: failed)
    options = argparse.Namespace(pythons="3.9", venv_keys="", now=0.0, min_free_mb=10**9)
    with pytest.raises(there.DeployError) as raised:
        there.check(options)
    for part in ("its Python is", "it lacks rsync python3-venv", "its clock is", "MB free"):
        assert part in str(raised.value)


def test_a_full_disk_is_told_before_anything_is_sent(there, monkeypatch):
    """Mutation: megabytes compared with bytes; the environment that is there already is counted."""
    usage = argparse.Namespace(free=100_000_000)
    monkeypatch.setattr(there.shutil, "disk_usage", lambda _: usage)
    key = f"python{there.python_version()}-x"
    (problem,) = there._disk_problems(key, None)
    assert "100 MB free" in problem
    venv = there.ROOT / "venvs" / key
    venv.mkdir(parents=True)
    (venv / "complete").touch()
    assert not list(there._disk_problems(key, None))
    usage.free = 40_000_000
    assert list(there._disk_problems(key, None))


def test_a_connection_that_is_gone_does_not_end_the_work(there, monkeypatch):
    """Mutation: half switched, the program dies of a closed pipe."""

    class Gone:
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    there.say("anything")


def test_the_checksums_are_those_that_sha256sum_reads(tmp_path):
    """Mutation: a single blank between sum and name."""
    deploy.stage(tmp_path)
    for line in (tmp_path / "release.sha256").read_text().splitlines():
        content, _, name = line.partition("  ")
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == content


# --- a release on trial ---------------------------------------------------------------------------


@pytest.fixture
def switches(there, monkeypatch):
    """The releases that are switched to, in a world without systemd; what was pending then."""
    seen = []

    def switch(release):
        seen.append((release, there.pending()))
        there.link(f"releases/{release}", there.CURRENT)

    done = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(there, "switch", switch)
    monkeypatch.setattr(there, "point_to", switch)
    monkeypatch.setattr(there, "problem", lambda camera_was_missing: None)
    monkeypatch.setattr(there, "run", lambda *_, **__: done)
    return seen


def test_the_trial_is_marked_before_the_switch_and_until_its_end(there, switches):
    """Mutation: the marker is written after the switch: a cut between the two goes unseen."""
    releases(there, "a", "b", current="a")
    assert there.trial("b", "a", camera_was_missing=False) is None
    assert switches == [("b", ("b", "a"))]
    assert there.pending() == ("b", "a")
    there.end_trial()
    assert there.pending() is None


def test_a_switch_that_fails_halfway_is_a_reason_to_go_back(there, switches, monkeypatch):
    """Mutation: a disk that is full when the unit is written leaves the new release in service."""
    releases(there, "a", "b", current="a")
    monkeypatch.setattr(there, "switch", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    assert there.trial("b", "a", camera_was_missing=False) == "disk full"


@pytest.mark.parametrize("command", ["take_back", "recover"])
def test_what_was_cut_off_on_trial_goes_back_to_the_one_before(there, switches, command):
    """Mutation: the unproven release stays; its folder or the marker is left behind."""
    releases(there, "a", "b", current="b")
    there.write_history(["a"])
    there.write_whole(there.PENDING, "b\na\n")
    arguments = [argparse.Namespace()] if command == "recover" else []
    getattr(there, command)(*arguments)
    assert [release for release, _ in switches] == ["a"]
    assert there.current_id() == "a"
    assert not there.release_path("b").exists()
    assert there.pending() is None


@pytest.mark.parametrize("command", ["take_back", "recover"])
@pytest.mark.parametrize("before", ["", "removed-by-hand"])
def test_a_first_install_that_was_cut_off_is_stopped(there, switches, command, before):
    """Mutation: the link is left, so that the next boot starts what never proved itself."""
    releases(there, "b", current="b")
    there.write_history([])
    there.write_whole(there.PENDING, f"b\n{before}\n")
    arguments = [argparse.Namespace()] if command == "recover" else []
    getattr(there, command)(*arguments)
    assert switches == []
    assert there.current_id() is None
    assert there.pending() is None


def test_what_cannot_be_written_whole_is_not_there_at_all(there, tmp_path, monkeypatch):
    """Mutation: on a full disk the token is made empty, and no deploy makes it again."""

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "kept").write_text("before")
    monkeypatch.setattr(there, "TOKEN", tmp_path / "token")
    monkeypatch.setattr(there, "USER", pwd.getpwuid(os.getuid()).pw_name)
    monkeypatch.setattr(there.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        there._make_token()
    with pytest.raises(OSError, match="No space left"):
        there.write_whole(tmp_path / "kept", "half")
    monkeypatch.setattr(there.shutil, "copyfile", lambda *_: full(None))
    with pytest.raises(OSError, match="No space left"):
        there.put(SYSTEMD / "config.toml", tmp_path / "config.toml")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_text() == "before"


def test_a_token_is_for_the_service_alone_whatever_the_umask(there, tmp_path):
    """Mutations: others may read it; under a strict umask the service may not."""
    before = os.umask(0o077)
    try:
        there.write_whole(tmp_path / "token", "secret", mode=0o640, group=os.getgid())
    finally:
        os.umask(before)
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o640


def test_without_a_trial_nothing_is_taken_back(there, switches):
    """Mutation: every status restarts the service."""
    releases(there, "a", "b", current="b")
    there.take_back()
    assert there.recover(argparse.Namespace()) == {"release": "b"}
    assert switches == []


GOOD = {"uptime_s": 5.0, "reconstructions": 9, "error": None, "last_frame_age_s": 0.0}


@pytest.mark.parametrize(
    ("state", "was_missing", "problem"),
    [
        (GOOD, False, None),
        (GOOD | {"reconstructions": 0, "uptime_s": 11.0}, False, "reconstructs nothing"),
        # The camera is missing before and after; or it went with the new release.
        (GOOD | {"reconstructions": 0, "error": "gone", "last_frame_age_s": None}, True, None),
        (
            GOOD
            | {"reconstructions": 0, "error": "gone", "last_frame_age_s": None, "uptime_s": 11.0},
            False,
            r"reconstructs nothing \(gone\)",
        ),
        (GOOD | {"uptime_s": 0.1}, False, "not well"),  # it starts anew, again and again
        (None, False, "does not answer"),
    ],
)
def test_what_proves_a_release(there, monkeypatch, state, was_missing, problem):
    """Mutation: a camera that the new release does not find is excused; a start is enough."""
    times_s = iter(range(1000))
    done = subprocess.CompletedProcess([], 0, "0\n", "")
    monkeypatch.setattr(there, "run", lambda *_, **__: done)
    monkeypatch.setattr(there, "base_address", lambda: "http://x")
    monkeypatch.setattr(there, "ask", lambda path, _=None: state)
    monkeypatch.setattr(there.time, "monotonic", lambda: next(times_s))
    monkeypatch.setattr(there.time, "sleep", lambda _: None)
    found = there.problem(was_missing)
    assert found is None if problem is None else re.search(problem, found)


@pytest.mark.parametrize(
    ("system", "environment", "reason"),
    [
        (0, 0, None),
        (1, 1, None),  # there is none: `check` says so, and the demo plays
        (0, 1, "numpy.dtype size changed; expected the packages of Raspberry Pi OS"),
    ],
)
def test_a_camera_stack_that_the_packages_break_is_told(
    there, monkeypatch, system, environment, reason
):
    """Mutation: a numpy that picamera2 was not built for; the page says 'no camera' for ever."""

    def run(*command, **_):
        code = system if command[0] == "/usr/bin/python3" else environment
        return subprocess.CompletedProcess(command, code, "", "Traceback\nnumpy.dtype size changed")

    monkeypatch.setattr(there, "run", run)
    monkeypatch.setattr(there, "as_service", lambda *command: list(command))
    expected = pytest.raises(there.DeployError, match=reason) if reason else nullcontext()
    with expected:
        there._load_camera_stack(Path("release"), 1)


# --- what the user asks for -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "host", "allowed"),
    [
        ("any", "0.0.0.0", "any"),
        ("192.168.1.0/24", "0.0.0.0", "192.168.1.0/24"),
        ("192.168.1.7", "0.0.0.0", "192.168.1.7"),
        ("fd00::/8", "::", "fd00::/8"),
    ],
)
def test_the_network_that_is_asked_for_is_the_one_that_is_let_in(there, network, host, allowed):
    """Mutation: everybody is let in, whatever network was named."""
    drop_in = there._network_drop_in(network)
    assert f"\nEnvironment=LEARN2SOFI_HOST={host}\n" in drop_in
    assert re.findall(r"^IPAddressAllow=(.*)$", drop_in, re.M) == [allowed]


@pytest.mark.parametrize("network", ["192.168.1.0/240", "home", "", "10.0.0.0/8\nUser=root"])
def test_what_is_no_network_is_refused(there, network):
    """Mutation: systemd gets to read it, ignores it, and the user is told that the page is open."""
    with pytest.raises(there.DeployError, match="no network; expected an address such as"):
        there._network_drop_in(network)
    assert there._network_drop_in("none") is None


def test_what_hangs_on_the_device_is_ended_with_all_that_it_started(there, tmp_path):
    """Mutation: a preflight that hangs holds every later deploy up."""
    hanging = ["sh", "-c", f"sleep 60 >/dev/null 2>&1 & echo $! >{tmp_path}/child; wait"]
    with pytest.raises(there.DeployError, match="did not come to an end in time"):
        there.must(*there.within(3, hanging))
    child = (tmp_path / "child").read_text().strip()
    # It was sent the signal; on a busy machine it takes a while to end of it. By itself: 60 s.
    wait_until(lambda: has_ended(child), "its child to end", 20)


def has_ended(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        (deploy.EXIT_TOLD, "as said above"),
        (deploy.EXIT_BAD_INPUT, "as said above"),
        (1, "sudo without a password"),
        (127, "expected python3"),
        (255, "broke off"),
        (137, "broke off"),
    ],
)
def test_what_ended_on_the_device_is_told_from_what_never_began(there, code, meaning):
    """Mutation: sudo's 1 is taken for ours, and 'as said above' points at nothing."""
    assert (deploy.EXIT_TOLD, deploy.EXIT_BAD_INPUT) == (there.EXIT_TOLD, there.EXIT_BAD_INPUT)
    assert meaning in deploy.Device("microscope")._meaning(code, "check")


@pytest.mark.parametrize(
    ("wrong", "code"), [("network", 2), ("setting", 2), ("release", 1), ("disk", 1)]
)
def test_bad_input_ends_with_2_and_a_fault_with_1(there, monkeypatch, tmp_path, wrong, code):
    """Mutation: who scripts a deploy cannot tell a bad setting from a Pi that is off."""
    faults = {
        "setting": subprocess.CompletedProcess([], 2, "", "setting mode is 'sideways'"),
        "release": subprocess.CompletedProcess([], 1, "", "internal fault"),
    }
    monkeypatch.setattr(there, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(there.signal, "signal", lambda *_: None)
    monkeypatch.setattr(there, "receive", lambda _: there.settings(Path("release")))
    monkeypatch.setattr(there, "run", lambda *_, **__: faults[wrong])
    monkeypatch.setattr(there, "as_service", lambda *command: list(command))
    if wrong == "disk":
        monkeypatch.setattr(there, "receive", lambda _: (_ for _ in ()).throw(OSError("full")))
    (tmp_path / "current").mkdir()
    command = ["listen", "home"] if wrong == "network" else ["install", "0.1.0-0"]
    done = subprocess.CompletedProcess([], there.main(command), b"")
    monkeypatch.setattr(deploy.shutil, "which", lambda name: name)
    monkeypatch.setattr(deploy.subprocess, "run", lambda *_, **__: done)
    assert deploy.main(["rollback", "microscope"]) == code


def test_a_tool_that_this_machine_lacks_is_named(monkeypatch, capsys):
    """Mutation: '[Errno 2] No such file or directory', after the device was changed."""
    monkeypatch.setattr(deploy.shutil, "which", lambda name: None if name == "rsync" else name)
    assert deploy.main(["status", "microscope"]) == 1
    assert "this machine lacks rsync; expected ssh and rsync" in capsys.readouterr().err


# --- the unit and the documents -------------------------------------------------------------------


def unit(name):
    """Read a unit: every key with all its values."""
    found = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", (SYSTEMD / name).read_text(), re.M):
        found.setdefault(key, []).append(value)
    return found


def test_the_unit_lets_the_camera_in_and_nothing_else():
    """Mutation: a class of devices is lost, which a machine without camera cannot miss.

    Or one of the firmware's two, by which the page knows of heat and power.
    """
    found = unit("learn2sofi.service")
    assert found["DevicePolicy"] == ["closed"]
    assert sorted(found["DeviceAllow"]) == [
        *("/dev/vcio rw", "/dev/vcio_gencmd rw"),
        *("char-dma_heap rw", "char-media rw", "char-video4linux rw"),
    ]
    assert found["IPAddressDeny"] == ["any"]
    assert found["IPAddressAllow"] == ["localhost"]
    assert "m learn2sofi  video" in (SYSTEMD / "learn2sofi.sysusers.conf").read_text()


def test_every_block_of_the_unit_says_why():
    """Mutation: a hardening line put in without a reason, which nobody dares to take out."""
    blocks = re.split(r"\n\s*\n", (SYSTEMD / "learn2sofi.service").read_text())
    for block in blocks:
        keys = [line for line in block.splitlines() if re.match(r"\w+=", line)]
        assert "\n#" in f"\n{block}" or keys == ["WantedBy=multi-user.target"], block


def test_a_newcomer_needs_ten_commands_or_fewer():
    """Mutation: one more step is added, and then one more."""
    page = (REPOSITORY / "docs" / "pi.md").read_text()
    (commands,) = re.findall(r"## First steps.*?```sh\n(.*?)```", page, re.S)
    numbers = [int(number) for number in re.findall(r"  # (\d+)\b", commands)]
    assert numbers == list(range(1, len(commands.splitlines()) + 1))
    assert len(numbers) <= 10


def test_every_command_of_the_pages_is_there():
    """Mutation: a target is renamed in the Makefile alone."""
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    for name in ("README.md", "docs/pi.md"):
        text = (REPOSITORY / name).read_text()
        named = set(re.findall(r"(?:^ {4}|`)make ([a-z-]+)", text, re.M))
        assert named
        assert named <= targets, name


def dry_run(target):
    """Say what a target would do; under `make test` make would add a line about its folder."""
    command = ["make", "--no-print-directory", "--dry-run", "--always-make", target]
    return subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_the_camera_tests_kill_their_mutants_too():
    """Mutation: `make test-camera` is green with tests that can no longer fail."""
    (line,) = (line for line in dry_run("test-camera") if "test_camera_mutants.py" in line)
    assert (REPOSITORY / line.split()[-1]).is_file()


def test_the_deploy_tests_say_how_long_they_took(tmp_path):
    """Mutations: nobody sees when they outgrow their ten minutes; the packages are not counted."""
    lines = dry_run("test-deploy")
    began = next(line for line in lines if "date +%s >" in line)
    assert lines.index(began) < next(n for n, line in enumerate(lines) if "pip install" in line)
    done = subprocess.run(
        ["sh", "-euc", f"{began}\n{lines[-1]}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert re.fullmatch(r"make test-deploy took \d+ s\n", done.stdout), done.stderr


def commands_of(page):
    """Find the lines of a page that call the command, each as its arguments."""
    text = (REPOSITORY / "docs" / page).read_text()
    for block in re.findall(r"```sh\n(.*?)```", text, re.S):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0].rpartition("/")[2] == "learn2sofi":
                yield words


@pytest.mark.parametrize(
    ("page", "kinds"),
    [
        ("pi.md", {"config", "check", "calibrate", "record"}),
        ("hardware.md", {"calibrate"}),
    ],
)
def test_the_commands_of_a_page_can_be_given(page, kinds):
    """Mutation: an option that does not exist, or not any more."""
    commands = list(commands_of(page))
    assert {words[1] for words in commands} == kinds
    for words in commands:
        _parser().parse_args(words[1:])


def test_calibrating_on_a_pi_leads_to_the_service():
    """Mutations: the camera is still held; another release, user, file or folder than its own."""
    installed = load("on_device")
    page = (REPOSITORY / "docs" / "pi.md").read_text()
    (block,) = (b for b in re.findall(r"```sh\n(.*?)```", page, re.S) if "calibrate dark" in b)
    first, *_, last = block.splitlines()
    assert first.endswith(f"systemctl stop {installed.USER}")
    assert last.endswith(f"systemctl start {installed.USER}")
    program = f"{installed.CURRENT}/bin/learn2sofi"
    assert f"learn2sofi='sudo -u {installed.USER} {program}'" in block
    for words in commands_of("pi.md"):
        assert words[words.index("--config") + 1] == str(installed.CONFIG)
        for word in words[2:]:
            assert (
                not word.startswith("/")
                or word == str(installed.CONFIG)
                or (Path(word).is_relative_to(installed.STATE_DIR))
            )
    assert f'`calibration = "{installed.STATE_DIR}/calibration"`' in page


def test_the_step_to_the_camera_is_one(tmp_path):
    """Mutation: the newcomer does as the page says and sees the demo stack all the same."""
    page = (REPOSITORY / "docs" / "pi.md").read_text()
    (command,) = re.findall(r"^ssh \S+ (\".*sed.*\")", page, re.M)
    (remote,) = shlex.split(command)
    config = tmp_path / "config.toml"
    shutil.copy(SYSTEMD / "config.toml", config)
    here = remote.replace("/etc/learn2sofi/config.toml", str(config)).removeprefix("sudo ")
    for _ in range(2):  # done twice, it is no other
        subprocess.run(["sh", "-c", here], check=True)
        assert Settings.load(config).camera == "picamera2"


def test_the_page_says_how_long_a_token_is():
    """Mutation: a length that the daemon refuses."""
    page = (REPOSITORY / "docs" / "pi.md").read_text()
    assert f"at least {MIN_TOKEN_CHARS} characters" in " ".join(page.split())


# --- where the deploy's own tests cannot run ------------------------------------------------------


def program(folder, name, text):
    """Put a program of ours before the system's."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_an_environment_that_refuses_to_mount_is_told_in_one_sentence(tmp_path, monkeypatch):
    """Mutation: mmdebstrap's or mount's words alone; or the tests pass without having run."""
    program(tmp_path, "unshare", "echo 'unshare: Operation not permitted' >&2; exit 1")
    program(tmp_path, "sudo", 'exec "$@"')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    done = subprocess.run(
        [REPOSITORY / "tests/deploy/may-mount"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "mounting is refused (unshare: Operation not permitted); expected root" in line


def test_a_container_that_does_not_boot_is_told_in_one_sentence(tmp_path, monkeypatch):
    """Mutation: every test waits a minute for sshd and fails of that."""
    program(tmp_path, "systemd-nspawn", "echo 'Failed to create cgroup: denied' >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    machine = Machine(tmp_path)
    machine._keep_on()
    with pytest.raises(pytest.exit.Exception, match="boots no system .Failed to create cgroup"):
        machine.wait_for_ssh()

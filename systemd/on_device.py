"""What `make deploy` does on the device, as root. `deploy.py` sends this file through ssh.

Python's own library only, for nothing is installed there yet. What it says goes to stderr, a
command's result to stdout as JSON. Once a release is being switched to, the work goes on to its end
although the connection may be gone: to the new release, or back to the old one.

    /opt/learn2sofi/incoming           what was sent, whole or not
    /opt/learn2sofi/wheels             packages, where they were sent along
    /opt/learn2sofi/venvs/KEY          one environment for each list of pinned packages
    /opt/learn2sofi/releases/ID        side by side; ID names the content
    /opt/learn2sofi/current            -> releases/ID, switched atomically
    /opt/learn2sofi/history            IDs in the order in which they were switched to
    /opt/learn2sofi/pending            there while a release that was switched to is on trial
    /opt/learn2sofi/on_device.py       this file, for the boot after a cut in that time
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import hashlib
import ipaddress
import json
import os
import platform
import pwd
import secrets
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path("/opt/learn2sofi")
CONFIG_DIR = Path("/etc/learn2sofi")
STATE_DIR = Path("/var/lib/learn2sofi")
CONFIG, TOKEN = CONFIG_DIR / "config.toml", CONFIG_DIR / "token"
CURRENT, HISTORY = ROOT / "current", ROOT / "history"
PENDING, PROGRAM = ROOT / "pending", ROOT / "on_device.py"
SERVICE = "learn2sofi.service"
USER = "learn2sofi"
SYSTEM_FILES = {
    Path("/etc/systemd/system") / SERVICE: SERVICE,
    Path("/etc/sysusers.d/learn2sofi.conf"): "learn2sofi.sysusers.conf",
    Path("/etc/tmpfiles.d/learn2sofi.conf"): "learn2sofi.tmpfiles.conf",
}
RECOVERY = "learn2sofi-recover.service"
RECOVERY_UNIT = Path("/etc/systemd/system") / RECOVERY
LOCK = Path("/run/lock/learn2sofi-deploy")
NETWORK_DROP_IN = Path("/etc/systemd/system") / f"{SERVICE}.d" / "network.conf"

KEPT_RELEASES = 3
VENV_MB = 900
RELEASE_MB = 50
MAX_CLOCK_ERROR_S = 300
WELL_WITHIN_S = 30.0
NO_RESULT_S = 10.0
STEADY_S = 4.0
PREFLIGHT_WITHIN_S = 180
LOG_LINES = 15
# Not sudo's own 1 nor Python's 2: `deploy.py` tells them apart.
EXIT_TOLD = 9
EXIT_BAD_INPUT = 10
EXIT_LATE = 124  # timeout(1)


class DeployError(Exception):
    """What went wrong, what was expected and what to do, in one sentence."""

    exit_code = EXIT_TOLD


class BadInput(DeployError):
    """What only the user can mend: a setting, an argument."""

    exit_code = EXIT_BAD_INPUT


def say(text: str) -> None:
    """Tell the user; who has lost the connection cannot be told, and the work goes on."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command and keep what it says; its exit code is the caller's business."""
    # Never the connection: whoever writes to a closed one dies of it.
    return subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def must(*command: str | Path, **options: Any) -> str:
    """Run a command that has to succeed, and return what it says."""
    done = run(*command, **options)
    if done.returncode == EXIT_LATE and command[0] == "timeout":
        raise DeployError(f"'{shlex.join(map(str, command))}' did not come to an end in time")
    if done.returncode:
        tail = (done.stderr or done.stdout).strip().splitlines()[-LOG_LINES:]
        raise DeployError(
            f"'{shlex.join(map(str, command))}' failed with exit code {done.returncode}; it said:\n"
            + "\n".join(f"    {line}" for line in tail)
        )
    return done.stdout


def within(limit_s: float, command: list[str]) -> list[str]:
    """Make a command end in time, with all that it started; its exit code is `EXIT_LATE` then."""
    return ["timeout", "--kill-after=10", str(limit_s), *command]


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Give a place to make a file, which then takes the path's whole, or leaves nothing."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    try:
        yield new
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def write_whole(path: Path, text: str, mode: int = 0o644, group: int = -1) -> None:
    """Write a file whole or not at all, whenever the disk is full or the power is cut."""
    with beside(path) as new:
        new.touch(mode=0o600)
        os.chown(new, -1, group)
        new.chmod(mode)
        with new.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


# --- check ----------------------------------------------------------------------------------------


def check(options: argparse.Namespace) -> dict[str, Any]:
    """Look whether the device can take a release; say everything that is missing at once."""
    problems = [
        *_machine_problems(options.pythons),
        *_software_problems(),
        *_clock_problems(options.now),
        *_disk_problems(options.venv_keys, options.min_free_mb),
    ]
    if problems:
        raise DeployError("the device is not ready:\n" + "\n".join(f"  - {p}" for p in problems))
    for hint in _hints():
        say(f"note: {hint}")
    return {
        "python": python_version(),
        "machine": platform.machine(),
        "has_venv": has_venv(options.venv_keys),
        "running": current_id() if is_sound() else None,
    }


def python_version() -> str:
    """The device's Python as MAJOR.MINOR."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _machine_problems(pythons: str) -> Iterator[str]:
    bits = 8 * struct.calcsize("P")
    if platform.machine() not in ("aarch64", "x86_64") or bits != 64:
        yield (
            f"its system is {bits}-bit {platform.machine()}; a 64-bit one is expected; "
            "install Raspberry Pi OS (64-bit)"
        )
    if python_version() not in pythons.split(","):
        yield (
            f"its Python is {python_version()}; expected {pythons}; install a Raspberry Pi OS "
            "that has one of these"
        )


def _software_problems() -> Iterator[str]:
    if not Path("/run/systemd/system").is_dir():
        yield "it was not started by systemd; expected Raspberry Pi OS or another Debian"
    missing = [] if shutil.which("rsync") else ["rsync"]
    if run(sys.executable, "-c", "import venv, ensurepip").returncode:
        missing.append("python3-venv")
    if missing:
        names = " ".join(missing)
        yield f"it lacks {names}; install: sudo apt install --yes {names}"


def _clock_problems(now_s: float) -> Iterator[str]:
    error_s = time.time() - now_s
    if abs(error_s) > MAX_CLOCK_ERROR_S:
        yield (
            f"its clock is {abs(error_s):.0f} s {'ahead' if error_s > 0 else 'behind'}; expected "
            f"at most {MAX_CLOCK_ERROR_S} s; set it: sudo timedatectl set-ntp true"
        )


def _disk_problems(venv_keys: str, min_free_mb: int | None) -> Iterator[str]:
    folder = ROOT if ROOT.is_dir() else ROOT.parent
    needed_mb = min_free_mb
    if needed_mb is None:
        needed_mb = RELEASE_MB + (0 if has_venv(venv_keys) else VENV_MB)
    free_mb = shutil.disk_usage(folder).free // 1_000_000
    if free_mb < needed_mb:
        yield (
            f"its disk has {free_mb} MB free at {folder}; expected {needed_mb} MB; remove what is "
            "not needed (recordings lie in /var/lib/learn2sofi)"
        )


def _hints() -> Iterator[str]:
    if run("/usr/bin/python3", "-c", "import picamera2").returncode:
        yield "picamera2 is not installed (sudo apt install python3-picamera2): no Pi camera"
    if "NTPSynchronized=no" in run("timedatectl", "show").stdout:
        yield "the clock is not synchronized with any time server"
    controllers = Path("/sys/fs/cgroup/cgroup.controllers")
    if controllers.is_file() and "memory" not in controllers.read_text().split():
        yield (
            "the kernel limits no memory; add 'cgroup_enable=memory' to "
            "/boot/firmware/cmdline.txt for the service's limit to hold"
        )


# --- releases -------------------------------------------------------------------------------------


def release_path(release: str) -> Path:
    """Return a release's folder."""
    return ROOT / "releases" / release


def current_id() -> str | None:
    """Return the release that is switched to, or None."""
    return CURRENT.resolve().name if CURRENT.is_dir() else None


def history() -> list[str]:
    """Return the releases that are still there, in the order in which they were switched to."""
    lines = HISTORY.read_text().split() if HISTORY.is_file() else []
    return [line for line in lines if release_path(line).is_dir()]


def write_history(releases: list[str]) -> None:
    """Write the releases' order whole or not at all."""
    write_whole(HISTORY, "".join(f"{release}\n" for release in releases))


def broken_files(folder: Path) -> list[str]:
    """Return the files that are not what the release's list says; all of them if it has none."""
    if not (folder / "release.sha256").is_file():
        return ["release.sha256"]
    done = run("sha256sum", "--check", "--quiet", "release.sha256", cwd=folder)
    return [line.partition(":")[0] for line in done.stdout.splitlines()]


def content_hash(folder: Path) -> str:
    """Return what a release's name ends with."""
    return hashlib.sha256((folder / "release.sha256").read_bytes()).hexdigest()[:12]


def is_sound() -> bool:
    """Tell whether the current release is what was sent, is started at boot and does its work."""
    return (
        CURRENT.is_dir()
        and not broken_files(CURRENT)
        and (CURRENT / "venv" / "complete").is_file()
        and all(_is_copy(path, CURRENT / "systemd" / name) for path, name in SYSTEM_FILES.items())
        and run("systemctl", "is-enabled", SERVICE).returncode == 0
        and run("systemctl", "is-active", SERVICE).returncode == 0
        and (state := ask("/api/state")) is not None
        and bool(state["reconstructions"] or camera_missing(state))
    )


def _is_copy(path: Path, source: Path) -> bool:
    return path.is_file() and path.read_bytes() == source.read_bytes()


def receive(release: str) -> Path:
    """Put what was sent beside the other releases, whole or not at all."""
    incoming, folder = ROOT / "incoming", release_path(release)
    broken = broken_files(incoming)
    if not broken and not release.endswith(f"-{content_hash(incoming)}"):
        broken = ["release.sha256"]
    if broken:
        raise DeployError(
            f"what was sent is not whole ({', '.join(broken[:3])}); nothing was changed; deploy "
            "again, it goes on where it stopped"
        )
    if folder.is_dir() and not broken_files(folder):
        return folder
    partial = folder.with_name(f"{release}.partial")
    for left in (partial, folder):
        shutil.rmtree(left, ignore_errors=True)
    partial.parent.mkdir(exist_ok=True)
    must("cp", "--recursive", "--no-target-directory", incoming, partial)
    must("chown", "-R", "root:root", partial)
    must("chmod", "-R", "u=rwX,go=rX", partial)
    partial.rename(folder)
    return folder


def venv_key(lock: Path) -> str:
    """Name an environment after what it holds."""
    return f"python{python_version()}-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"


def venv_is_complete(key: str) -> bool:
    """Tell whether an environment was built to its end."""
    return (ROOT / "venvs" / key / "complete").is_file()


def has_venv(keys: str) -> bool:
    """Tell whether one of these environments was built for the Python that is here now."""
    mine = f"python{python_version()}-"
    return any(venv_is_complete(key) for key in keys.split(",") if key.startswith(mine))


def build_venv(release: Path, offline: bool) -> None:
    """Give a release its environment; releases with the same pinned packages share it."""
    lock = release / "systemd" / "requirements" / f"python{python_version()}.txt"
    key = venv_key(lock)
    venv = ROOT / "venvs" / key
    if not venv_is_complete(key):
        say("building the environment; this takes minutes on a Pi")
        shutil.rmtree(venv, ignore_errors=True)
        try:
            _fill_venv(venv, lock, offline)
        except DeployError:
            shutil.rmtree(venv, ignore_errors=True)
            raise
    link(str(venv), release / "venv")
    # The service cannot write its compiled code, and would compile at every start.
    must(venv / "bin" / "python", "-m", "compileall", "-q", release / "device")


def _fill_venv(venv: Path, lock: Path, offline: bool) -> None:
    # The system's packages stay visible: picamera2 comes from apt, together with libcamera.
    must("/usr/bin/python3", "-m", "venv", "--system-site-packages", venv)
    source = ["--no-index", f"--find-links={ROOT / 'wheels'}"] if offline else []
    must(
        *(venv / "bin" / "pip", "install", "--quiet", "--no-deps", "--ignore-installed"),
        *("--require-hashes", "--only-binary=:all:", "--no-cache-dir", *source),
        *("--requirement", lock),
    )
    (venv / "complete").touch()


def prune(keep: list[str]) -> None:
    """Remove releases that are not to be kept, and environments that none of the others uses."""
    for folder in (ROOT / "releases").iterdir():
        if folder.name not in keep:
            shutil.rmtree(folder)
    used = {(release_path(release) / "venv").resolve() for release in keep}
    for venv in (ROOT / "venvs").iterdir():
        if venv not in used:
            shutil.rmtree(venv)
    shutil.rmtree(ROOT / "wheels", ignore_errors=True)


# --- the system around a release ------------------------------------------------------------------


def prepare_system(release: Path) -> None:
    """Make the user, the folders, and what the user owns from then on: configuration and token."""
    must("systemd-sysusers", release / "systemd" / "learn2sofi.sysusers.conf")
    must("systemd-tmpfiles", "--create", release / "systemd" / "learn2sofi.tmpfiles.conf")
    if not CONFIG.exists():
        put(release / "systemd" / "config.toml", CONFIG)
        say(f"{CONFIG} is yours from now on")
    if not TOKEN.exists():
        _make_token()


def prepare_recovery(release: Path) -> None:
    """See to it that a release which has not proved itself does not outlive a cut of the power.

    What does that comes from the tree that deploys and stays: no release can take it away.
    """
    put(release / "systemd" / "on_device.py", PROGRAM)
    put(release / "systemd" / RECOVERY, RECOVERY_UNIT)
    must("systemctl", "daemon-reload")
    must("systemctl", "enable", "--quiet", RECOVERY)


def _make_token() -> None:
    token = secrets.token_hex(32)
    write_whole(TOKEN, f"{token}\n", mode=0o640, group=pwd.getpwnam(USER).pw_gid)
    say(f"access token, shown this once (it lies in {TOKEN}): {token}")


def environment() -> dict[str, str]:
    """Return the environment that the service sets, the user's drop-ins included."""
    shown = run("systemctl", "show", "--property=Environment", "--value", SERVICE).stdout
    return dict(part.split("=", 1) for part in shlex.split(shown) if "=" in part)


def as_service(*command: str | Path) -> list[str]:
    """Make a command run as the service's user, in its environment."""
    variables = [f"{name}={value}" for name, value in environment().items()]
    program = [str(part) for part in command]
    return ["runuser", "-u", USER, "--", "env", "--chdir=/", *variables, *program]


def settings(release: Path, limit_s: float = PREFLIGHT_WITHIN_S) -> dict[str, Any]:
    """Return the settings as the service will see them with a release."""
    program = release / "bin" / "learn2sofi"
    done = run(*within(limit_s, as_service(program, "config", "--config", CONFIG)))
    if done.returncode:
        silence = "it came to no end" if done.returncode == EXIT_LATE else "it says nothing"
        reason = (done.stderr.strip().splitlines() or [silence])[-1]
        kind = BadInput if done.returncode == 2 else DeployError
        raise kind(f"the release does not take {CONFIG}: {reason}; mend it and deploy again")
    found = {}
    for line in done.stdout.splitlines():
        name, _, rest = line.partition(" ")
        with contextlib.suppress(ValueError):
            found[name], _ = json.JSONDecoder().raw_decode(rest.strip())
    return found


def preflight(release: Path, limit_s: float) -> None:
    """Reconstruct the demo stack with a release before anything is switched to it."""
    settings(release, limit_s)
    _load_camera_stack(release, limit_s)
    folder = Path("/var/tmp") / f"learn2sofi-preflight-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o700)
    shutil.chown(folder, USER, USER)
    program, stack = release / "bin" / "learn2sofi", release / "device" / "demo.ome.tif"
    image = folder / "preflight.tif"
    try:
        command = as_service(program, "reconstruct", stack, image, "--frames", "0:30")
        must(*within(limit_s, command))
        if not image.is_file():
            raise DeployError("the release said that it reconstructed the demo stack, and did not")
    finally:
        shutil.rmtree(folder)


def _load_camera_stack(release: Path, limit_s: float) -> None:
    """See that the system's picamera2, where there is one, loads beside the release's packages."""
    loading = ["-c", "import picamera2"]
    if run("/usr/bin/python3", *loading).returncode:
        return  # `check` has told
    done = run(*within(limit_s, as_service(release / "venv" / "bin" / "python", *loading)))
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it came to no end"])[-1]
        raise DeployError(
            f"the system's picamera2 does not load beside the release's packages: {reason}; "
            "expected the packages of Raspberry Pi OS; bring them up to date (sudo apt "
            "full-upgrade) and deploy again"
        )


# --- switching ------------------------------------------------------------------------------------


def link(target: str, path: Path) -> None:
    """Make a symbolic link, or have it point elsewhere, atomically."""
    with beside(path) as new:
        new.symlink_to(target)


def put(source: Path, path: Path) -> None:
    """Copy a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as new:
        shutil.copyfile(source, new)


def point_to(release: str) -> None:
    """Have everything name a release that is to be started: link, unit, user and folders."""
    os.sync()  # who pulls the plug now finds whole files
    link(f"releases/{release}", CURRENT)
    # The unit comes with the release: it goes forth and back together with its code.
    for path, name in SYSTEM_FILES.items():
        put(CURRENT / "systemd" / name, path)
    run("systemctl", "daemon-reload")
    run("systemctl", "enable", "--quiet", SERVICE)


def switch(release: str) -> None:
    """Start a release in the place of the one before. That it started is for `problem` to see."""
    point_to(release)
    run("systemctl", "reset-failed", SERVICE)
    run("systemctl", "restart", SERVICE)


def trial(release: str, before: str | None, camera_was_missing: bool) -> str | None:
    """Switch to a release and watch it; return what is wrong with it, or None.

    Until `end_trial`, whoever looks next (a boot, a deploy, a status) goes back to the one before.
    """
    write_whole(PENDING, f"{release}\n{before or ''}\n")
    return watched_switch(release, camera_was_missing)


def watched_switch(release: str, camera_was_missing: bool) -> str | None:
    """Switch, and return what is wrong with that or with the release; None if all is well."""
    try:
        switch(release)
        return problem(camera_was_missing)
    except (DeployError, OSError) as error:
        return str(error)


def end_trial() -> None:
    """What is switched to now stays; on the disk, too."""
    os.sync()
    PENDING.unlink(missing_ok=True)
    os.sync()


def pending() -> tuple[str, str | None] | None:
    """Return the release that has yet to prove itself and the one before; None if all have."""
    if not PENDING.is_file():
        return None
    release, before = PENDING.read_text().split("\n")[:2]
    return release, before if before and release_path(before).is_dir() else None


def take_back() -> None:
    """Return from a release whose trial was cut off: by the power, or by the end of its deploy."""
    if (found := pending()) is None:
        return
    release, before = found
    say(f"the switch to {release} was cut off before it had proved itself: {return_to(before)}")
    end_trial()
    _drop(release)


def recover(options: argparse.Namespace) -> dict[str, Any]:
    """Do the same at boot, before the service starts; it must not be waited for here."""
    if (found := pending()) is None:
        return {"release": current_id()}
    release, before = found
    where = f"back to {before}" if before else "it is stopped, for there is no release before it"
    say(f"the switch to {release} was cut off before it had proved itself: {where}")
    if before is None:
        run("systemctl", "disable", "--quiet", SERVICE)
        run("systemctl", "--no-block", "stop", SERVICE)
        CURRENT.unlink(missing_ok=True)
    else:
        point_to(before)
        run("systemctl", "--no-block", "start", SERVICE)
    end_trial()
    _drop(release)
    return {"release": current_id()}


def base_address() -> str:
    """Return the address at which the service answers from this machine."""
    return _address_of(CURRENT.resolve())


@functools.cache  # on a Pi it takes a second to ask
def _address_of(release: Path) -> str:
    known = settings(release)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(known["host"], known["host"])
    return f"http://{f'[{host}]' if ':' in host else host}:{known['port']}"


def ask(path: str, address: str | None = None) -> dict[str, Any] | None:
    """Ask the service; None where it does not answer, also if it answers that it is not well."""
    token = TOKEN.read_text().strip() if TOKEN.exists() else ""
    try:
        url = (address or base_address()) + path
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=3) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except (OSError, ValueError, DeployError, KeyError):
        return None


def camera_missing(state: dict[str, Any] | None) -> bool:
    """Tell whether the service says of itself that its camera gives no frames."""
    if state is None or not state["error"]:
        return False
    age_s = state["last_frame_age_s"]
    return age_s is None or age_s > 2


def problem(camera_was_missing: bool) -> str | None:
    """Watch the service that was just started; return what is wrong with it, or None.

    Parameters
    ----------
    camera_was_missing : bool
        It need not reconstruct: the release before had no camera either, or there was none.
    """
    if run("systemctl", "is-active", SERVICE).returncode:
        return "the service does not start"
    address, began_s, state = base_address(), time.monotonic(), None
    while time.monotonic() - began_s < WELL_WITHIN_S:
        if _crashed():
            return "the service crashes"
        state = ask("/api/state", address)
        if state and state["uptime_s"] > STEADY_S:
            if state["reconstructions"] and ask("/healthz", address):
                return None
            if camera_was_missing and camera_missing(state):
                say(f"note: the camera is missing, as before: {state['error']}")
                return None
            if not state["reconstructions"] and state["uptime_s"] > NO_RESULT_S:
                reason = state["error"] or "no error"
                return f"the service serves but reconstructs nothing ({reason})"
        time.sleep(0.3)
    return "the service does not answer" if state is None else "the service is not well (/healthz)"


def _crashed() -> bool:
    shown = run("systemctl", "show", "--property=NRestarts", "--value", SERVICE).stdout.strip()
    return shown not in ("", "0") or run("systemctl", "is-active", SERVICE).returncode == 3


def last_lines(since_s: float) -> str:
    """Return the last lines of the service's journal since a time (seconds since 1970)."""
    done = run(
        *("journalctl", "--unit", SERVICE, f"--since=@{since_s:.0f}", f"--lines={LOG_LINES}"),
        *("--no-pager", "--output=cat"),
    )
    return "\n".join(f"    {line}" for line in done.stdout.splitlines())


def install(options: argparse.Namespace) -> dict[str, Any]:
    """Bring what was sent into service, or leave everything as it was."""
    try:
        folder = receive(options.release)
        build_venv(folder, options.offline)
        prepare_system(folder)
        preflight(folder, options.preflight_within_s)
        if not options.preflight_only:
            prepare_recovery(folder)
    except (DeployError, OSError) as error:
        _drop(options.release)
        kind = BadInput if isinstance(error, BadInput) else DeployError
        raise kind(f"the release was not switched to: {error}") from error
    if options.preflight_only:
        _drop(options.release)
        return {"release": options.release, "address": None}
    return _bring_into_service(options.release)


def _bring_into_service(release: str) -> dict[str, Any]:
    """Switch to a release, and back if it is not well."""
    before = _release_before(release)
    state = ask("/api/state") if before else None
    say(f"switching {f'from {before} ' if before else ''}to {release}")
    began_s = time.time()
    if reason := trial(release, before, before is None or camera_missing(state)):
        _go_back(release, before, reason, began_s)
    kept = [*(r for r in history() if r != release), release][-KEPT_RELEASES:]
    write_history(kept)
    end_trial()
    prune(kept)
    if settings(CURRENT)["host"] not in ("127.0.0.1", "::1", "localhost"):
        _warn_of_firewall()
    return {"release": release, "address": base_address()}


def _warn_of_firewall() -> None:
    allowed = run("systemctl", "show", "--property=IPAddressAllow", "--value", SERVICE).stdout
    if set(allowed.split()) <= {"127.0.0.0/8", "::1/128"}:
        say(
            f"note: {CONFIG} has the page served to a network, and the unit lets this machine "
            "alone in; use `make listen`"
        )


def _release_before(release: str) -> str | None:
    """Return what to go back to: the current release, or where that is deployed anew, its last."""
    now = current_id()
    others = [known for known in history() if known != release]
    return now if now not in (None, release) else (others[-1] if others else None)


def _drop(release: str) -> None:
    """Remove a release that never came into service."""
    if release not in (current_id(), *history()):
        for left in ROOT.glob(f"releases/{release}*"):
            shutil.rmtree(left, ignore_errors=True)


def return_to(before: str | None) -> str:
    """Put the release before back into service, or stop what has none; tell what came of it."""
    if before is None:
        run("systemctl", "disable", "--now", "--quiet", SERVICE)
        CURRENT.unlink(missing_ok=True)
        return "it is stopped, for there is no release before it"
    trouble = watched_switch(before, camera_was_missing=True)
    return f"back to {before}, which {f'has a problem too: {trouble}' if trouble else 'runs'}"


def _go_back(release: str, before: str | None, reason: str, began_s: float) -> None:
    """Return to the release before, or to nothing, and tell why."""
    log = last_lines(began_s)
    where = return_to(before)
    end_trial()
    _drop(release)
    raise DeployError(f"{reason}: {where}. The last lines of its log:\n{log}")


def rollback(options: argparse.Namespace) -> dict[str, Any]:
    """Switch to the release before the current one."""
    known, now = history(), current_id()
    earlier = known[: known.index(now)] if now in known else known
    if not earlier:
        raise DeployError("there is no release before the current one; deploy one instead")
    before, began_s = earlier[-1], time.time()
    say(f"switching from {now} to {before}")
    if reason := trial(before, now, camera_was_missing=True):
        log = last_lines(began_s)
        where = return_to(now)
        end_trial()
        raise DeployError(f"{reason}: {where}. The last lines of its log:\n{log}")
    write_history(earlier)
    end_trial()
    return {"release": before, "address": base_address()}


# --- the rest -------------------------------------------------------------------------------------


def status(options: argparse.Namespace) -> dict[str, Any]:
    """Say how the device stands."""
    if not CURRENT.is_dir():
        raise DeployError("there is no release on the device; deploy one")
    say(run("systemctl", "status", "--no-pager", "--lines=5", SERVICE).stdout.rstrip())
    for release in history():
        say(f"{'->' if release == current_id() else '  '} {release}")
    return {"release": current_id(), "address": base_address(), "state": ask("/api/state")}


def listen(options: argparse.Namespace) -> dict[str, Any]:
    """Open the page to a network, or close it again; what the service does not take is undone."""
    if not CURRENT.is_dir():
        raise DeployError("there is no release on the device; deploy one first")
    before = NETWORK_DROP_IN.read_text() if NETWORK_DROP_IN.is_file() else None
    began_s = time.time()
    if reason := _restart_with(_network_drop_in(options.network)):
        log = last_lines(began_s)
        trouble = _restart_with(before)
        runs = f"has a problem as before, too: {trouble}" if trouble else "runs as before"
        raise DeployError(f"{reason}; taken back, it {runs}. The last lines of its log:\n{log}")
    return {"release": current_id(), "address": base_address(), "network": options.network}


def _network_drop_in(network: str) -> str | None:
    """Return the unit's drop-in that serves a network; None for the one that serves none."""
    if network == "none":
        return None
    try:
        version = 4 if network == "any" else ipaddress.ip_network(network, strict=False).version
    except ValueError as error:
        raise BadInput(
            f"{network} is no network; expected an address such as 192.168.1.0/24, 'any' or "
            "'none'; give one with NETWORK="
        ) from error
    return (
        "# Written by `make listen`; NETWORK=none removes it.\n[Service]\n"
        f"Environment=LEARN2SOFI_HOST={'0.0.0.0' if version == 4 else '::'}\n"
        f"IPAddressAllow={network}\n"
    )


def _restart_with(drop_in: str | None) -> str | None:
    """Write the network's drop-in, or remove it, and start anew; return what is wrong then."""
    if drop_in is None:
        NETWORK_DROP_IN.unlink(missing_ok=True)
    else:
        NETWORK_DROP_IN.parent.mkdir(parents=True, exist_ok=True)
        write_whole(NETWORK_DROP_IN, drop_in)
    run("systemctl", "daemon-reload")
    run("systemctl", "reset-failed", SERVICE)
    run("systemctl", "restart", SERVICE)
    return problem(camera_was_missing=True)


def undeploy(options: argparse.Namespace) -> dict[str, Any]:
    """Remove everything but what is the user's; with `purge` that too."""
    for unit in (SERVICE, RECOVERY):
        run("systemctl", "disable", "--now", "--quiet", unit)
    for path in (*SYSTEM_FILES, RECOVERY_UNIT):
        path.unlink(missing_ok=True)
    NETWORK_DROP_IN.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # drop-ins of the user's own stay
        NETWORK_DROP_IN.parent.rmdir()
    run("systemctl", "daemon-reload")
    run("systemctl", "reset-failed", SERVICE)
    _empty(ROOT)
    own = [folder for folder in (CONFIG_DIR, STATE_DIR) if folder.is_dir()]
    if options.purge:
        for folder in own:
            shutil.rmtree(folder)
        run("userdel", USER)
        say("removed, with configuration, token and recordings")
    else:
        _name_left(own)
    return {"left": [] if options.purge else [str(folder) for folder in own]}


def _empty(folder: Path) -> None:
    """Remove a folder; one that is a disk of its own is emptied."""
    if folder.is_dir():
        for child in folder.iterdir():
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            else:
                child.unlink()
        with contextlib.suppress(OSError):
            folder.rmdir()


def _name_left(folders: list[Path]) -> None:
    say("removed; left alone, because it is yours (PURGE=1 removes it too):")
    for folder in folders:
        files = [path for path in folder.rglob("*") if path.is_file()]
        megabytes = sum(path.stat().st_size for path in files) / 1e6
        say(f"  {folder}: {len(files)} files, {megabytes:.1f} MB")


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let one deploy work at a time."""
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DeployError("another deploy is at work on this device; wait for it") from error
        yield


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line that `deploy.py` makes."""
    parser = argparse.ArgumentParser(prog="on_device")
    commands = parser.add_subparsers(required=True)

    def add(command: Any) -> argparse.ArgumentParser:
        added = commands.add_parser(command.__name__)
        added.set_defaults(command=command)
        return added

    checking = add(check)
    checking.add_argument("--pythons", required=True)
    checking.add_argument("--venv-keys", required=True)
    checking.add_argument("--now", type=float, required=True)
    checking.add_argument("--min-free-mb", type=int)
    installing = add(install)
    installing.add_argument("release")
    installing.add_argument("--preflight-only", action="store_true")
    installing.add_argument("--preflight-within-s", type=int, default=PREFLIGHT_WITHIN_S)
    installing.add_argument("--offline", action="store_true")
    add(listen).add_argument("network")
    add(undeploy).add_argument("--purge", action="store_true")
    for command in (rollback, status, recover):
        add(command)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Do one command; 0 if it went well, `EXIT_TOLD` or `EXIT_BAD_INPUT` with a sentence if not."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    options = parse(arguments)
    try:
        with alone():
            if options.command is not recover:
                take_back()
            result = options.command(options)
    except (DeployError, OSError) as error:
        say(f"learn2sofi deploy: {error}")
        return getattr(error, "exit_code", EXIT_TOLD)
    with contextlib.suppress(OSError):
        sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

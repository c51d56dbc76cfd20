"""From this machine to a device: what `make deploy` and its relatives do here.

Plain ssh and rsync: host, user, port and key are those of ssh's own configuration. What happens on
the device stands in `on_device.py`, which is sent each time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
REQUIREMENTS = REPOSITORY / "systemd" / "requirements"
ON_DEVICE = REPOSITORY / "systemd" / "on_device.py"
REMOTE_ROOT = "/opt/learn2sofi"

SENT = (
    *("device/*.py", "device/default.toml", "device/demo.ome.tif", "device/web/*"),
    *("models/*.tflite", "models/*[0-9].json", "models/*.npz"),  # of the JSON, the manifest alone
    *("models/SHA256SUMS", "models/MODEL_CARD.md"),
    *("systemd/learn2sofi*", "systemd/config.toml", "systemd/requirements/*.txt"),
    *("systemd/on_device.py", "LICENSE"),
)
# A connection that is cut shall be noticed, not waited for.
SSH_OPTIONS = ("-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3")
RSYNC_TIMEOUT_S = 60
# `on_device.py` has said what went wrong, and whether only the user can mend it.
EXIT_TOLD, EXIT_BAD_INPUT = 9, 10
# The C libraries of Debian 12 and what is older: wheels for any of them run there.
GLIBC_MINORS = range(17, 37)


class DeployError(Exception):
    """What went wrong, what was expected and what to do, in one sentence."""

    exit_code = 1


class BadInput(DeployError):
    """What only the user can mend: a setting, an argument."""

    exit_code = 2


def say(text: str) -> None:
    """Tell the user."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


# --- the connection -------------------------------------------------------------------------------


class Device:
    """A device that ssh reaches.

    Parameters
    ----------
    host : str
        As ssh takes it: a name of its configuration, or USER@ADDRESS.
    ssh : str
        The ssh command, with options where it needs some.
    """

    def __init__(self, host: str, ssh: str = "ssh") -> None:
        self.host = host
        self._ssh = [*shlex.split(ssh), *SSH_OPTIONS]

    def do(self, *command: str) -> dict[str, Any]:
        """Run a command of `on_device.py` as root and return its result.

        Raises
        ------
        DeployError
            It failed, and has said why.
        """
        remote = f"{self._sudo('python3')} - {shlex.join(command)}"
        with ON_DEVICE.open("rb") as program:
            done = subprocess.run(
                [*self._ssh, self.host, remote], stdin=program, stdout=subprocess.PIPE, check=False
            )
        if done.returncode:
            kind = BadInput if done.returncode == EXIT_BAD_INPUT else DeployError
            raise kind(self._meaning(done.returncode, command[0]))
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def send(self, source: Path, target: str) -> None:
        """Make a folder on the device the same as one here; what is there already is not sent."""
        arguments = [
            *("rsync", "--archive", "--no-owner", "--no-group", "--checksum", "--delete"),
            *("--partial", f"--timeout={RSYNC_TIMEOUT_S}", f"--rsh={shlex.join(self._ssh)}"),
            # Not --mkpath: the rsync of a Mac has none.
            f"--rsync-path={self._sudo(f'mkdir -p {target}')} && {self._sudo('rsync')}",
            *(f"{source}/", f"{self.host}:{target}/"),
        ]
        if subprocess.run(arguments, check=False).returncode:
            raise DeployError(
                f"the transfer to {self.host} broke off; nothing was changed there, the release "
                "that runs goes on running; deploy again, it goes on where it stopped"
            )

    def follow(self, remote: str) -> int:
        """Run a command as root and show what it says until it ends."""
        return subprocess.run([*self._ssh, self.host, self._sudo(remote)], check=False).returncode

    @staticmethod
    def _sudo(command: str) -> str:
        return f"sudo -n {command}"

    def _meaning(self, code: int, command: str) -> str:
        if code in (EXIT_TOLD, EXIT_BAD_INPUT):
            return f"'{command}' failed on {self.host}, as said above"
        if code in (1, 127):  # sudo's, the shell's
            return (
                f"'{command}' could not be begun on {self.host}, see above; expected python3 "
                "there, and sudo without a password; see 'First steps' in docs/pi.md"
            )
        return (
            f"ssh to {self.host} failed or broke off during '{command}' (exit code {code}); "
            f"expected what 'ssh {self.host}' does; make that work (ssh-copy-id, ~/.ssh/config), "
            "and see with `make status` what became of it"
        )


# --- a release ------------------------------------------------------------------------------------


def version() -> str:
    """Return the project's version."""
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        found: str = tomllib.load(file)["project"]["version"]
    return found


def stage(folder: Path) -> str:
    """Lay out a release: what the device needs, and a list of its checksums.

    Parameters
    ----------
    folder : Path
        Empty.

    Returns
    -------
    str
        The release's name: version and content.
    """
    for pattern in SENT:
        for source in sorted(REPOSITORY.glob(pattern)):
            _copy(source, folder / source.relative_to(REPOSITORY))
    _copy(REPOSITORY / "systemd" / "bin" / "learn2sofi", folder / "bin" / "learn2sofi")
    # What `learn2sofi --version` reads; the code runs from where it lies.
    metadata = folder / f"learn2sofi-{version()}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: learn2sofi\nVersion: {version()}\n")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{_sha256(path)}  {path.relative_to(folder)}\n" for path in files]
    (folder / "release.sha256").write_text("".join(lines))
    content = hashlib.sha256("".join(lines).encode()).hexdigest()[:12]
    return f"{version()}-{content}"


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pythons() -> list[str]:
    """Return the Python versions for which packages are pinned."""
    return sorted(path.stem.removeprefix("python") for path in REQUIREMENTS.glob("python*.txt"))


def venv_key(python: str) -> str:
    """Name the environment of a Python version as `on_device.py` does."""
    return f"python{python}-{_sha256(REQUIREMENTS / f'python{python}.txt')[:12]}"


# --- commands -------------------------------------------------------------------------------------


def deploy(options: argparse.Namespace) -> None:
    """Bring this working tree into service on the device, or leave everything there as it is."""
    device = Device(options.host, options.ssh)
    with tempfile.TemporaryDirectory(prefix="learn2sofi-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # rsync takes it over, and others than root may look
        release = stage(folder)
        facts = device.do("check", *_expectations(options))
        if facts["running"] == release and not options.preflight_only:
            say(f"{release} runs on {device.host} already; nothing was changed")
            return
        offline = not facts["has_venv"] and _send_wheels(device, options.wheelhouse, facts)
        device.send(folder, f"{REMOTE_ROOT}/incoming")
        done = device.do("install", release, *_manner(options, offline))
    if options.preflight_only:
        say(f"{release} reconstructs the demo stack on {device.host}; what ran there runs on")
    else:
        say(f"{release} runs on {device.host}{_where(device.host, done['address'])}")


def _expectations(options: argparse.Namespace) -> Iterator[str]:
    yield from ("--pythons", ",".join(pythons()))
    yield from ("--venv-keys", ",".join(map(venv_key, pythons())))
    yield from ("--now", str(time.time()))
    if options.min_free_mb is not None:
        yield from ("--min-free-mb", str(options.min_free_mb))


def _manner(options: argparse.Namespace, offline: bool) -> Iterator[str]:
    if offline:
        yield "--offline"
    if options.preflight_only:
        yield "--preflight-only"
    if options.preflight_within_s is not None:
        yield from ("--preflight-within-s", str(options.preflight_within_s))


def _send_wheels(device: Device, wheelhouse: Path, facts: dict[str, Any]) -> bool:
    """Send the packages, if they are at hand; the device fetches them from its index if not."""
    folder = wheelhouse / f"python{facts['python']}-{facts['machine']}"
    if folder.is_dir():
        say(f"sending the packages from {folder}")
        device.send(folder, f"{REMOTE_ROOT}/wheels")
    return folder.is_dir()


def _where(host: str, address: str) -> str:
    port = address.rpartition(":")[2]
    return (
        f", at {address} there; from here: ssh -N -L {port}:localhost:{port} {host}, "
        f"then http://localhost:{port}"
    )


def rollback(options: argparse.Namespace) -> None:
    """Return to the release before the current one."""
    device = Device(options.host, options.ssh)
    say(f"{device.do('rollback')['release']} runs on {device.host}")


def status(options: argparse.Namespace) -> None:
    """Show how the device stands."""
    found = Device(options.host, options.ssh).do("status")
    state = found["state"]
    if state is None:
        raise DeployError(f"{found['release']} does not answer; see `make logs`")
    say(
        f"{found['release']} at {found['address']}: {state['fps_camera']:.1f} frames/s, "
        f"{state['fps_reconstruction']:.1f} reconstructions/s, {state['error'] or 'no error'}"
    )


def logs(options: argparse.Namespace) -> None:
    """Show the service's journal."""
    more = "--follow" if options.follow else "--no-pager"
    if Device(options.host, options.ssh).follow(
        f"journalctl --unit=learn2sofi --lines={options.lines} --output=short-iso {more}"
    ):
        raise DeployError(f"the journal of {options.host} could not be shown, as said above")


def listen(options: argparse.Namespace) -> None:
    """Open the page to a network, guarded by the token, or close it again."""
    device = Device(options.host, options.ssh)
    device.do("listen", options.network)
    if options.network == "none":
        say(f"the page of {device.host} can be reached from the device itself only")
    else:
        say(
            f"the page of {device.host} can be reached from {options.network} with the access "
            "token (sudo cat /etc/learn2sofi/token there). It is not encrypted: docs/pi.md"
        )


def undeploy(options: argparse.Namespace) -> None:
    """Remove everything from the device but what is the user's; with --purge that too."""
    Device(options.host, options.ssh).do("undeploy", *(["--purge"] if options.purge else []))


def wheelhouse(options: argparse.Namespace) -> None:
    """Fetch the pinned packages for devices, so that a deploy needs no network there."""
    for python in options.python or pythons():
        folder = options.folder / f"python{python}-{options.machine}"
        folder.mkdir(parents=True, exist_ok=True)
        _fetch(folder, python, options.machine)
        say(f"{folder}: {len(list(folder.glob('*.whl')))} packages")


def _fetch(folder: Path, python: str, machine: str) -> None:
    platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in GLIBC_MINORS]
    abi = f"cp{python.replace('.', '')}"
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"),
        *("--only-binary=:all:", "--python-version", python, "--implementation=cp"),
        *(f"--abi={abi}", "--abi=abi3", "--abi=none", *platforms),
        *(f"--platform=manylinux2014_{machine}", f"--dest={folder}"),
        *("--requirement", str(REQUIREMENTS / f"python{python}.txt")),
    ]
    if subprocess.run(command, check=False).returncode:
        raise DeployError(
            f"the packages for Python {python} on {machine} could not be fetched, as said above; "
            "a network and pip are needed"
        )


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="deploy", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(command: Any) -> argparse.ArgumentParser:
        added = commands.add_parser(command.__name__, help=command.__doc__.splitlines()[0])
        added.set_defaults(command=command)
        return added

    adders = [add(command) for command in (deploy, rollback, status, logs, listen, undeploy)]
    for added in adders:
        added.add_argument("host", help="as ssh takes it")
        added.add_argument("--ssh", default="ssh", help="the ssh command")
    deploying, _, _, logging, listening, undeploying = adders
    deploying.add_argument("--wheelhouse", type=Path, default=REPOSITORY / "build" / "wheelhouse")
    deploying.add_argument("--min-free-mb", type=int, help="space to insist on")
    deploying.add_argument(
        "--preflight-only", action="store_true", help="reconstruct there, and switch nothing"
    )
    deploying.add_argument(
        "--preflight-within-s", type=int, help="time that the reconstruction there may take, in s"
    )
    logging.add_argument("--lines", type=int, default=100)
    logging.add_argument("--follow", action="store_true")
    listening.add_argument("--network", default="any", help="ADDRESS/BITS, any or none")
    undeploying.add_argument("--purge", action="store_true", help="configuration and recordings")
    fetching = add(wheelhouse)
    fetching.add_argument("folder", type=Path)
    fetching.add_argument("--python", action="append", choices=pythons())
    fetching.add_argument("--machine", choices=("aarch64", "x86_64"), default="aarch64")
    return parser.parse_args(arguments)


def _look_for_tools(options: argparse.Namespace) -> None:
    """Ask for what a deploy needs on this machine before anything is begun."""
    needed = [] if options.command is wheelhouse else [shlex.split(options.ssh)[0], "rsync"]
    if missing := [name for name in needed if shutil.which(name) is None]:
        raise DeployError(
            f"this machine lacks {' and '.join(missing)}; expected ssh and rsync; install what is "
            "missing (Debian: sudo apt install openssh-client rsync)"
        )


def main(arguments: list[str]) -> int:
    """Do one command; with a sentence, 1 for a fault and 2 for what the user has to mend."""
    options = parse(arguments)
    try:
        _look_for_tools(options)
        options.command(options)
    except (DeployError, OSError) as error:
        sys.stderr.write(f"deploy: {error}\n")
        return getattr(error, "exit_code", DeployError.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

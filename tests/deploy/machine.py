"""A machine to deploy to: Debian's systemd and sshd in a container, on a disk of limited size.

The container shares this machine's network, so sshd and the service get free ports of their own.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

BUILD = Path(__file__).resolve().parents[2] / "build" / "deploy"
DISK_MB = 1600
REBOOT = 133  # systemd-nspawn's exit code when the system inside asked for a reboot
BOOT_WITHIN_S = 60


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


class Machine:
    """Boots in `__enter__`, and again whenever the system inside reboots.

    What runs in the container, and on which root, are for a subclass to change.
    """

    base = "root"
    inside = ("--boot",)
    user, home = "pi", "home/pi"
    patience_s = 300

    def __init__(self, folder):
        self.folder = folder
        self.root = folder / "root"
        self.disk = folder / "disk"
        self.ssh_port, self.port = free_port(), free_port()
        self.name = f"microscope-{self.ssh_port}"
        self.address = f"http://127.0.0.1:{self.port}"
        self.key, self.ssh_config = folder / "key", folder / "ssh_config"
        self._process = None
        self._off = threading.Event()
        self._ended = threading.Event()

    def __enter__(self):
        self._mount()
        self._configure()
        threading.Thread(target=self._keep_on, daemon=True).start()
        self.wait_for_ssh()
        return self

    def __exit__(self, *_):
        self._off.set()
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(15)
        self._process.kill()
        self._process.wait()
        for mounted in (self.root, self.disk):
            subprocess.run(["umount", "--lazy", mounted], check=True)

    def _mount(self):
        """Lay a disk of limited size over the root that was built once."""
        for folder in (self.root, self.disk):
            folder.mkdir()
        mount("-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", self.disk)
        upper, work = self.disk / "upper", self.disk / "work"
        upper.mkdir()
        work.mkdir()
        layers = f"lowerdir={BUILD / self.base},upperdir={upper},workdir={work}"
        mount("-t", "overlay", "-o", layers, "overlay", self.root)
        # Written to by systemd-nspawn when a container comes up.
        Path("/run/systemd/nspawn").mkdir(parents=True, exist_ok=True)

    def _configure(self):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key], check=True)
        keys = self.root / self.home / ".ssh/authorized_keys"
        keys.parent.mkdir(mode=0o700, exist_ok=True)
        shutil.copyfile(self.key.with_suffix(".pub"), keys)
        owner = keys.parent.parent.stat()
        for path in (keys.parent, keys):
            os.chown(path, owner.st_uid, owner.st_gid)
        (self.root / "etc/ssh/sshd_config.d/test.conf").write_text(
            f"Port {self.ssh_port}\nListenAddress 127.0.0.1\n"
        )
        (self.root / "etc/hostname").write_text(f"{self.name}\n")
        (self.root / "etc/hosts").write_text(f"127.0.0.1 localhost {self.name}\n")
        drop_in = self.root / "etc/systemd/system/learn2sofi.service.d/test.conf"
        drop_in.parent.mkdir(parents=True)
        # A drop-in is the user's, so a deploy leaves it alone.
        drop_in.write_text(f"[Service]\nEnvironment=LEARN2SOFI_PORT={self.port}\n")
        shared = f"  ControlPath {self.folder / 'shared'}\n"
        self.ssh_config.write_text(self.ssh_settings(self.ssh_port) + shared)

    def ssh_settings(self, port):
        return (
            f"Host microscope\n  HostName 127.0.0.1\n  Port {port}\n  User {self.user}\n"
            f"  IdentityFile {self.key}\n  IdentitiesOnly yes\n  StrictHostKeyChecking no\n"
            "  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n  BatchMode yes\n"
        )

    def _keep_on(self):
        command = [
            *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--console=pipe"),
            *(f"--machine={self.name}", f"--directory={self.root}", *self.inside),
        ]
        with (self.folder / "console.log").open("ab") as log:
            while not self._off.is_set():
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
                if self._process.wait() not in (0, REBOOT, -signal.SIGKILL):
                    self._ended.set()
                    return

    def cut_the_power(self):
        """End everything at once, with nothing told to anybody; it boots again by itself.

        What was written stays, synced or not: the disk is this machine's memory.
        """
        pid = self._process.pid
        inside = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(pid, signal.SIGSTOP)  # it would see its system end, and clean up
        for process in (*map(int, inside), pid):
            os.kill(process, signal.SIGKILL)

    def wait_for_ssh(self):
        """Wait until sshd answers, and keep a connection that the others share."""
        wait_until(self._is_up, "sshd to answer", BOOT_WITHIN_S)
        subprocess.run(
            ["ssh", "-F", self.ssh_config, "-M", "-f", "-N", "microscope"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )

    def _is_up(self):
        if self._ended.is_set():
            said = (self.folder / "console.log").read_text(errors="replace").split("\n")
            reason = " ".join([line.strip() for line in said if line.strip()][-3:])
            pytest.exit(
                f"the deploy tests cannot run here: systemd-nspawn boots no system ({reason}); "
                "expected root on a machine of one's own, a virtual machine or a privileged "
                "container; run them there",
                returncode=1,
            )
        return self.ssh("true").returncode == 0

    # --- what a user does ------------------------------------------------------------------------

    def ssh(self, command):
        """Run a command on the machine as its user."""
        return subprocess.run(
            ["ssh", "-F", self.ssh_config, "microscope", command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def root_does(self, command):
        """Run a command on the machine as root; it must succeed."""
        done = self.ssh(f"sudo sh -c {shlex.quote(command)}")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def type_password(self, command, password):
        """Run a command on a terminal there, and type the password that it asks for."""
        ssh = ["ssh", "-tt", "-F", self.ssh_config, "microscope", command]
        with subprocess.Popen(ssh, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as terminal:
            said = b""
            while b"password" not in said:
                assert (more := terminal.stdout.read1()), f"it asked for none: {said}"
                said += more
            terminal.communicate(f"{password}\n".encode(), timeout=60)

    def make(self, target, tree, *variables, ssh_config=None):
        """Run `make TARGET HOST=microscope` in a tree; returns exit code and all it said."""
        ssh = f"ssh -F {ssh_config or self.ssh_config}"
        done = subprocess.run(
            [
                *("make", "--no-print-directory", "-C", tree, target, "HOST=microscope"),
                *(f"SSH={ssh}", f"WHEELHOUSE={BUILD.parent / 'wheelhouse'}", *variables),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=self.patience_s,
        )
        return done.returncode, done.stdout

    def current(self):
        """Name the release that is switched to."""
        return self.root_does("basename $(readlink /opt/learn2sofi/current)")

    def link(self):
        """Return where `current` points to; nothing where there is none."""
        return self.ssh("readlink /opt/learn2sofi/current").stdout.strip()

    def releases(self):
        return set(self.root_does("ls /opt/learn2sofi/releases").split())

    def shown(self, name):
        """Return a property of the service."""
        return self.root_does(f"systemctl show --value --property={name} learn2sofi")

    def get(self, path, token=None, **body):
        """Ask the service over HTTP, with a body to post; returns status and answer."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if body:
            headers["Content-Type"] = "application/json"
        content = json.dumps(body).encode() if body else None
        request = urllib.request.Request(self.address + path, content, headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def answers(self):
        try:
            return self.get("/healthz")[0] == 200
        except OSError:
            return False

    def reconstructs(self):
        """Tell whether it answers and has images to show."""
        try:
            return self.answers() and json.loads(self.get("/api/state")[1])["reconstructions"] > 0
        except OSError:
            return False


class Downtime:
    """Asks all the time whether the service reconstructs; `longest_s` is its longest silence."""

    def __init__(self, machine):
        self._machine = machine
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.longest_s = 0.0
        self.answered = 0

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()

    def _watch(self):
        last_s = time.monotonic()
        while not self._done.wait(0.1):
            if self._machine.reconstructs():
                last_s = time.monotonic()
                self.answered += 1
            self.longest_s = max(self.longest_s, time.monotonic() - last_s)


class CutLine:
    """Forwards a port until so many bytes went up, then drops every connection."""

    def __init__(self, port, limit_bytes):
        self._port = port
        self._left = limit_bytes
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.cut = threading.Event()

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.cut.set()
        self._listening.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while not self.cut.is_set():
                near, _ = self._listening.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                for source, target, counted in ((near, far, True), (far, near, False)):
                    threading.Thread(
                        target=self._pump, args=(source, target, counted), daemon=True
                    ).start()

    def _pump(self, source, target, counted):
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                self._left -= len(data) if counted else 0
                if self._left < 0:
                    self.cut.set()
                if self.cut.is_set():
                    break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def mount(*arguments):
    subprocess.run(["mount", *arguments], check=True)


def wait_until(condition, what, limit_s):
    """Poll; returns how long it took. The limit ends a test that has failed."""
    began_s = time.monotonic()
    while not condition():
        assert time.monotonic() - began_s < limit_s, f"waited {limit_s} s in vain for {what}"
        time.sleep(0.2)
    return time.monotonic() - began_s

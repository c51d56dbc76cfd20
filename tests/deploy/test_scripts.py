"""What can be told of the deploy without a device; the rest is `make test-deploy`."""

import argparse
import hashlib
import importlib.util
import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

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
    assert {path.split("/")[0] for path in there if "dist-info" not in path} == {
        *("LICENSE", "bin", "device", "models", "release.sha256", "systemd"),
    }
    assert not [path for path in there if path.endswith((".h5", ".pyc"))]
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

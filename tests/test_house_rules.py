"""The rules that hold the house up."""

from __future__ import annotations

import ast
import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*ROOT.glob("device/**/*.py"), *ROOT.glob("training/**/*.py")])
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
MAX_LINES = 60


def identifier(path: Path) -> str:
    return str(path.relative_to(ROOT))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> Iterator[str]:
    """Names of the modules that a file imports anywhere, functions included."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""


def tracked_files() -> list[Path]:
    """Files of the repository: those that git knows, or would add."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True).stdout.split(b"\0")
    return [ROOT / name.decode() for name in names if name and (ROOT / name.decode()).is_file()]


def test_there_is_something_to_check() -> None:
    """Catches globs that find nothing, by which every rule would hold."""
    assert len([s for s in SOURCES if s.is_relative_to(ROOT / "device")]) > 10
    assert len([s for s in SOURCES if s.is_relative_to(ROOT / "training")]) > 10


@pytest.mark.parametrize("path", sorted(ROOT.glob("device/**/*.py")), ids=identifier)
def test_the_device_imports_nothing_of_the_training(path: Path) -> None:
    """Catches an import that would need TensorFlow on the Pi, hidden in a function or not."""
    roots = {name.split(".")[0] for name in imported(path)}
    assert not roots & {"training", "tensorflow", "keras", "tensorboard", "scipy", "skimage"}


def test_the_command_line_loads_no_training_library() -> None:
    """In a process of its own: catches what the device's libraries would pull in by themselves."""
    code = "import sys, device.cli; sys.stdout.write(' '.join(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    assert "device.cli" in loaded
    roots = {name.split(".")[0] for name in loaded}
    assert not roots & {"training", "tensorflow", "keras", "tensorboard", "jax", "torch"}


@pytest.mark.parametrize("path", SOURCES, ids=identifier)
def test_nothing_is_printed(path: Path) -> None:
    """Catches a print left over from trying, and one hidden from ruff by a noqa."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"print", "breakpoint"}, f"line {node.lineno}"


@pytest.mark.parametrize("path", SOURCES, ids=identifier)
def test_no_error_is_swallowed_whole(path: Path) -> None:
    """Catches `except:`, `except Exception:` and `except BaseException:` without a re-raise."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ExceptHandler):
            caught = "BaseException" if node.type is None else ast.unparse(node.type)
            broad = {"Exception", "BaseException"} & set(re.findall(r"\w+", caught))
            raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            assert not broad or raises, f"line {node.lineno}"


def public(tree: ast.AST, inside: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Public functions, methods and classes, not those inside of functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not node.name.startswith("_"):
            yield f"{inside}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{node.name}.")


@pytest.mark.parametrize("path", SOURCES, ids=identifier)
def test_everything_public_says_what_it_is(path: Path) -> None:
    """Catches a missing docstring, and one that is a single word."""
    tree = parse(path)
    assert len((ast.get_docstring(tree) or "").split()) > 2, "module"
    for name, node in public(tree):
        assert isinstance(node, (*FUNCTIONS, ast.ClassDef))
        assert len((ast.get_docstring(node) or "").split()) > 1, name


@pytest.mark.parametrize("path", SOURCES, ids=identifier)
def test_functions_fit_in_a_head(path: Path) -> None:
    """Catches a function that grew: 60 lines is the limit, ten the aim."""
    for node in ast.walk(parse(path)):
        if isinstance(node, FUNCTIONS):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_LINES, f"{node.name}: {length} lines"


def test_the_models_are_what_their_checksums_say() -> None:
    """Catches a model changed without its checksum, and one without any."""
    models = ROOT / "models"
    beside = {"SHA256SUMS", "MODEL_CARD.md"}
    for folder in (models, models / "twin", models / "original_network"):
        lines = (folder / "SHA256SUMS").read_text().splitlines()
        sums = {name: checksum for checksum, name in (line.split("  ") for line in lines)}
        assert set(sums) == {p.name for p in folder.iterdir() if p.is_file()} - beside
        assert len(sums) >= 3
        for name, checksum in sums.items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == checksum, name


# Absolute paths of somebody's machine, and folders beside the repository. System paths that a
# program may rightly name (/etc, /run, /dev, /usr, /tmp, /proc, /sys) are not meant.
OUTSIDE = re.compile(
    rb"(?<![\w.:/])/(work|home|root|Users|mnt)/\w|(?<![\w./])\.\./(\.\./)*shared\b"
)


def test_no_file_names_a_place_outside_of_the_repository() -> None:
    """Catches a path that only the author's machine has.

    Files of bytes, such as images, are not text that anyone follows.
    """
    for path in tracked_files():
        content = path.read_bytes()
        if b"\0" in content[:4096] or path == Path(__file__):
            continue
        found = OUTSIDE.search(content)
        assert found is None, f"{identifier(path)}: {found[0].decode()}"

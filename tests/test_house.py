"""The rules that hold the house up: floors, and nothing imports in a circle."""

from __future__ import annotations

import ast
import graphlib
import importlib
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = (
    ("util.runtime",),
    ("util.config", "model", "util.draw"),
    ("util.data", "util.weights"),
    ("util.evaluate",),
    ("util.train", "util.predict"),
    (
        "util.prepare",
        "util.report",
        "util.reproduce",
        "util.lists",
        "util.export",
        "util.presence",
        "util.demo",
        "util.errors",
        "util.list_files",
        "util.transform",
        "util.episodes",
        "util.predictor",
    ),  # fmt: skip
    ("train_base", "train", "test", "predict", "app", "benchmark"),
)


def modules() -> dict[str, Path]:
    """Every module outside the tests, by its dotted name."""
    found = {}
    rooms = (
        path for room in ("model", "util", "benchmark") for path in (ROOT / room).rglob("*.py")
    )
    for path in [*ROOT.glob("*.py"), *rooms]:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The project's modules that a file imports, at its start or later."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & known.keys()) or {node.module}
    return found & known.keys()


def floor(name: str) -> int:
    """The floor that a module stands on, from the ground."""
    for number, rooms in enumerate(FLOORS):
        if any(name == room or name.startswith(f"{room}.") for room in rooms):
            return number
    raise AssertionError(f"{name} stands on no floor")


def test_a_lower_floor_never_imports_a_higher_one():
    known = modules()
    up = [
        f"{name} imports {other}"
        for name, path in known.items()
        if name != "util"
        for other in imports(path, known) - {"util"}
        if floor(other) > floor(name)
    ]
    assert not up


def test_nothing_imports_in_a_circle():
    known = modules()
    graph = {name: imports(path, known) - {name} for name, path in known.items()}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("name", sorted(modules()))
def test_every_module_of_a_clean_clone_is_there_and_imports(name):
    """... without a file that git ignores."""
    tracked = subprocess.run(
        ["git", "ls-files", "--error-unmatch", str(modules()[name])], cwd=ROOT, capture_output=True
    )
    if (ROOT / ".git").exists():
        assert tracked.returncode == 0, f"{name} is not in git"
    if name != "test":  # the standard library has a package of its name
        importlib.import_module(name)


@pytest.mark.parametrize("name", ["errors", "list_files", "transform", "episodes", "predictor"])
def test_a_former_import_path_gives_the_same_thing(name):
    """Scripts of users name them; nothing in the project does."""
    former = importlib.import_module(f"util.{name}")
    for thing in former.__all__:
        assert getattr(former, thing).__module__ != former.__name__
    known = modules()
    users = [n for n, path in known.items() if former.__name__ in imports(path, known)]
    assert not users

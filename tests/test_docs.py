"""The pages name what there is: files, commands, functions and tests."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "lists/README.md", *sorted((ROOT / "docs").glob("*.md"))]
ROOMS = "model|util|tests|benchmark|config|docs|lists|assets"
MADE = ("config/fruit", "config/pascal/pascal_split0_resnet50_protonet", "model/protonet",
        "docs/images")  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_commands_that_a_page_names_exist(page):
    """Paths in backquotes or links, and ``python -m`` commands."""
    text = page.read_text(encoding="utf-8")
    paths = set(re.findall(rf"`((?:{ROOMS})/[\w/.-]+\.\w+)", text))
    paths |= {f"docs/{name}" for name in re.findall(r"\]\((\w+\.md)", text) if page.parent != ROOT}
    there = [ROOT, ROOT / "tests"]  # the fidelity page names tests from their folder
    gone = [p for p in sorted(paths) if not p.startswith(MADE)]
    gone = [p for p in gone if not any((folder / p).exists() for folder in there)]
    for module in set(re.findall(r"python -m ((?:util|benchmark|tests)[\w.]*)", text)):
        if importlib.util.find_spec(module.rstrip(".")) is None:
            gone.append(module)
    assert not gone


def test_functions_and_tests_of_the_fidelity_page_exist():
    """Rows name ``file: thing, thing``; a bare thing belongs to the file before it."""
    text = (ROOT / "docs/fidelity.md").read_text(encoding="utf-8")
    gone = []
    for row in text.splitlines():
        source = ""
        for span in re.findall(r"`([^`]+)`", row) if row.startswith("| ") else ():
            file, _, things = span.partition(": ")
            if file.endswith(".py"):
                path = ROOT / file if (ROOT / file).exists() else ROOT / "tests" / file
                source = path.read_text(encoding="utf-8") if path.exists() else ""
                gone += [] if source else [file]
            elif file.startswith("test_") and source:
                things = file
            else:
                continue
            gone += [
                f"{file}: {thing}"
                for thing in re.findall(r"\w+", things)
                if things and not re.search(rf"\b(def|class) {thing}\b|^{thing} =", source, re.M)
            ]
    assert not gone

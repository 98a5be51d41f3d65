"""A YAML file as plain values; a sentence for whatever is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from util.config.keys import show
from util.runtime.errors import FewShotError

# What yaml.safe_load raises on hostile text: its own errors, and bare ones out of the constructors
# of dates, numbers and booleans or from deep nesting.
YAML_ERRORS = (
    yaml.YAMLError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    RecursionError,
)
_MAX_BYTES = 1 << 20


def parse(path: Path) -> Any:
    """The document in ``path``; FewShotError naming it when it cannot be read, is no YAML, is more
    than a megabyte, or gives a key twice."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise FewShotError(f"{path}: there is no such configuration file") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FewShotError(f"{path}: the configuration cannot be read ({reason})") from error
    if len(data) > _MAX_BYTES:
        raise FewShotError(f"{path}: too large for a configuration (over 1 MiB)")
    try:
        text = data.decode("utf-8-sig")
        document = yaml.safe_load(text)
        twice = _duplicate(yaml.compose(text, Loader=yaml.SafeLoader))
    except YAML_ERRORS as error:
        raise FewShotError(f"{path}: not valid YAML ({first_line(error)})") from error
    if twice:
        raise FewShotError(f"{path}: {twice} is given twice")
    return document


def _duplicate(node: yaml.Node | None, depth: int = 2) -> str | None:
    """A key that a mapping of the first two levels holds twice (YAML keeps the last, silently)."""
    if depth == 0 or not isinstance(node, yaml.MappingNode):
        return None
    seen = set()
    for key, value in node.value:
        name = show(key.value)
        if name in seen:
            return name.strip("'\"")
        seen.add(name)
        if twice := _duplicate(value, depth - 1):
            return twice
    return None


def first_line(error: BaseException) -> str:
    """What is wrong with the YAML, with its line where that is known."""
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f"line {mark.line + 1}: {getattr(error, 'problem', None) or 'syntax error'}"
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__

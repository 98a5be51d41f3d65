"""What a configuration key is: type, default, range or choices; checks and help follow from them.

A key is an attribute of a section's class, annotated with its type: ``shot: int = key(1, ...)``.
"""

from __future__ import annotations

import math
import numbers
import os
import reprlib
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from util.runtime.errors import FewShotError
from util.runtime.files import expanded

path: TypeAlias = str  # where ~ and $VARIABLE mean what they mean in a shell
label: TypeAlias = int | str  # a class: its id or its name

_WORDS = {
    "bool": "True or False",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "path": "a path",
    "list[int]": "a list of whole numbers",
    "list[str]": "a list of names",
    "list[list[label]]": "a list of lists of class ids or names",
}
_LONGEST = 1000  # entries of a list; aliased YAML could hold billions
_LARGEST = 10**12


class BadValue(ValueError):
    """A value that a key cannot take; the message ends a sentence that begins with the key."""


def show(value: Any) -> str:
    """``value`` in at most a line, whatever it is (aliased YAML can be exponentially large)."""
    try:
        return reprlib.repr(value)
    except ValueError:  # integers beyond Python's digit limit have no repr
        return "a number with thousands of digits"


def plain(value: Any) -> Any:
    """A key's value as YAML has it: fresh lists for tuples."""
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def key(default: Any, doc: str, low: Any = None, high: Any = None, **more: Any) -> Any:
    """A key of the annotated type; with the default None null is taken too, and means that another
    value follows from other keys, or that there is none."""
    return Key(default, doc, low, high, **more)


def pick(choices: tuple[Any, ...], doc: str) -> Any:
    """A key that is one of ``choices``, the first by default."""
    return Key(choices[0], doc, choices=choices)


@dataclass
class Key:
    """One key. Of a section's class it is the definition; of a configuration it reads the value.

    ``kind`` is the annotation without ``| None``.
    """

    default: Any
    doc: str
    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] = ()
    prefix: str = ""  # text that begins so is taken beside the choices
    role: str = ""  # what it is to trained weights, see util.config.schema.ROLES
    name: str = field(init=False)
    kind: str = field(init=False)

    def __set_name__(self, section: type, name: str) -> None:
        self.name = name
        self.kind = section.__annotations__[name].removesuffix(" | None")

    def __get__(self, cfg: Any, section: type) -> Any:
        return self if cfg is None else plain(cfg._values[self.name])

    def convert(self, value: Any) -> Any:
        """The value in the key's own type (sequences become tuples), or :class:`BadValue`."""
        if value is None:
            if self.default is None:
                return None
            raise BadValue(f"needs a value ({self.expects()})")
        if value is False and "off" in self.choices:
            value = "off"  # YAML 1.1 reads a bare `off` as false
        value = self._read(value, self.kind)
        items = value if isinstance(value, tuple) else (value,)
        others = {item for item in items if not (self.prefix and item.startswith(self.prefix))}
        if self.choices and not others <= set(self.choices):
            raise self._wrong(plain(value))
        for item in items:
            below = self.low is not None and item < self.low
            if below or (self.high is not None and item > self.high):
                raise self._wrong(item)
        return value

    def expects(self) -> str:
        """What the key takes, in words."""
        if self.choices:
            few = "some of " if self.kind.startswith("list") else ""
            named = [*map(str, self.choices), *([f"{self.prefix}<name>"] if self.prefix else ())]
            return few + " or ".join(named)
        if self.high is not None:
            return f"{_WORDS[self.kind]} from {self.low} to {self.high}"
        return _WORDS[self.kind] + ("" if self.low is None else f" of at least {self.low}")

    def _wrong(self, value: Any) -> BadValue:
        return BadValue(f"must be {self.expects()}, not {show(value)}")

    def _read(self, value: Any, kind: str) -> Any:
        """``value`` as the type ``kind`` says; a list as a tuple of what stands in its brackets."""
        if not kind.startswith("list["):
            return getattr(self, f"_{kind}")(value)
        if not isinstance(value, (list, tuple)) or not value:
            raise self._wrong(value)
        if len(value) > _LONGEST:
            raise BadValue(f"has {len(value)} entries, more than {_LONGEST}")
        inner = kind.removeprefix("list[")[:-1]
        items = tuple(self._read(item, inner) for item in value)
        if not inner.startswith("list[") and len(set(items)) < len(items):
            raise BadValue(f"must not name anything twice: {show(list(items))}")
        return items

    def _bool(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise self._wrong(value)
        return value

    def _int(self, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise self._wrong(value)
        number = int(value)
        if abs(number) > _LARGEST:
            raise BadValue("is too large")
        return number

    def _float(self, value: Any) -> float:
        # YAML 1.1 reads 1e-4 (no dot) as text, so text that is a number counts as one.
        if isinstance(value, bool) or not isinstance(value, (numbers.Real, str)):
            raise self._wrong(value)
        try:
            number = float(value)
        except (ValueError, OverflowError) as error:
            raise self._wrong(value) from error
        if not math.isfinite(number):
            raise self._wrong(value)
        return number

    def _str(self, value: Any) -> str:
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if not isinstance(value, str):
            hint = "" if self.choices else "; write it in quotes"
            raise BadValue(f"must be {self.expects()}, not {show(value)}{hint}")
        if "\0" in value:
            raise BadValue("must not contain a NUL character")
        return value

    def _path(self, value: Any) -> path:
        try:
            return expanded(self._str(value))
        except FewShotError as error:
            raise BadValue(str(error)) from error

    def _label(self, value: Any) -> label:
        try:
            return value if isinstance(value, str) else self._int(value)
        except BadValue as error:  # YAML reads no, 1.5 and 2024-05-01 as something else
            raise BadValue(f"{error}; write class names such as this one in quotes") from error

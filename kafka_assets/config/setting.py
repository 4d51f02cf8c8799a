"""One place of the streams file, with the readers that turn it into a value or say why not."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from kafka_assets.config.document import Node, Problems, Scalar, child_path
from kafka_assets.config.interpolate import references, substitute
from kafka_assets.config.units import DURATION, SIZE, parse_duration, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

Value = TypeVar("Value")
_LARGEST = 2**63 - 1
_SHOWN = 80


class SettingError(ValueError):
    """A setting has no such value; the message says what was given and what is allowed."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A node of the streams file at its YAML path."""

    path: str
    node: Node
    problems: Problems
    environ: Mapping[str, str] = field(repr=False)

    def child(self, key: str | int, node: Node) -> Setting:
        """The setting below this one, of a mapping's key or a list's index."""
        path = child_path(self.path, key)
        self.problems.lines.setdefault(path, node.line)
        return Setting(path, node, self.problems, self.environ)

    def add(self, text: str) -> None:
        """Adds what is wrong with this setting to the problems."""
        self.problems.add(self.path, text)

    def read(self, reader: Callable[[Setting], Value]) -> Value | None:
        """What the reader makes of it, None after a problem, which is then added."""
        try:
            return reader(self)
        except ValueError as error:
            self.add(str(error))
            return None

    def expected(self, allowed: str) -> SettingError:
        """The error that says what was given here, and what is allowed."""
        return SettingError(f"got {self.given}, allowed is {allowed}")

    @property
    def given(self) -> str:
        """What stands there, to be shown; never what a variable brought in, which may be secret."""
        value = self.node.value
        if isinstance(value, dict):
            return "a mapping" if value else "an empty mapping"
        if isinstance(value, list):
            return "a list" if value else "an empty list"
        if value is None:
            return "nothing (null)"
        if self.substituted:
            return f"{value!r:.{_SHOWN}}, whose content is not shown"
        if isinstance(value, str):
            return f"the text {value!r:.{_SHOWN}}"
        return str(self.node.text)[:_SHOWN]

    @property
    def substituted(self) -> bool:
        """Whether a variable has a part in it."""
        return isinstance(self.node.value, str) and bool(references(self.node.value))

    def scalar(self, allowed: str) -> Scalar:
        """The scalar, with references replaced; then it is text, whatever it looks like."""
        self._refuse_fault()
        value = self.node.value
        if isinstance(value, dict | list):
            raise self.expected(allowed)
        return substitute(value, self.environ) if isinstance(value, str) else value

    def text(self, allowed: str) -> str:
        """The scalar where it is text; numbers and the like need quotes to be."""
        value = self.scalar(allowed)
        if isinstance(value, str):
            return value
        quotes = "" if value is None else f"; write it in quotes if {self.node.text} is meant as text"
        raise SettingError(f"got {self.given}, allowed is {allowed}{quotes}")

    def items(self, allowed: str) -> Iterator[Setting]:
        """The settings of a list that holds at least one."""
        self._refuse_fault()
        if not isinstance(self.node.value, list) or not self.node.value:
            raise self.expected(allowed)
        return (self.child(index, node) for index, node in enumerate(self.node.value))

    def entries(self, allowed: str) -> dict[str, Setting]:
        """The settings of a mapping by their keys; null is an empty one, as left by commenting out."""
        self._refuse_fault()
        if self.node.value is None:
            return {}
        if not isinstance(self.node.value, dict):
            # Its content is not shown: `kafka: sasl.password=...` is one way to get here.
            kind = "a list" if isinstance(self.node.value, list) else "a single value"
            raise SettingError(f"got {kind}, allowed is {allowed}")
        return {key: self.child(key, node) for key, node in self.node.value.items()}

    def _refuse_fault(self) -> None:
        if self.node.fault:
            raise SettingError(self.node.fault)

    def known_entries(self, known: Collection[str], allowed: str) -> dict[str, Setting]:
        """The settings of a mapping whose keys are known; any other key becomes a problem."""
        entries = self.entries(allowed)
        for key, setting in entries.items():
            if key not in known:
                setting.add(_unknown(key, known))
        return {key: setting for key, setting in entries.items() if key in known}


def _unknown(key: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(key[:_SHOWN], known, n=1)
    if near:
        return f"unknown key; did you mean {near[0]}?"
    place = " (librdkafka properties stand under kafka)" if "." in key else ""
    return f"unknown key{place}; known here are {', '.join(known)}"


def integer(low: int, high: int = _LARGEST) -> Callable[[Setting], int]:
    """A reader of whole numbers within the limits, both included."""
    allowed = f"a whole number from {low} up" if high == _LARGEST else f"a whole number from {low} to {high}"

    def read(setting: Setting) -> int:
        value = setting.scalar(allowed)
        if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,19}", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise setting.expected(allowed)
        return value

    return read


def positive_number_or_null(setting: Setting) -> float | None:
    """Reads a number above 0; null, also an empty variable, is None."""
    allowed = "a number above 0, or null for no limit"
    value = setting.scalar(allowed)
    if value is None or (setting.substituted and value in ("", "null")):
        return None
    found = _number(setting, allowed)
    if not 0 < found < math.inf:
        raise setting.expected(allowed)
    return found


def number_within(low: float, high: float, *, above: bool = False) -> Callable[[Setting], float]:
    """A reader of numbers within the limits, both included unless it is to be `above` the lower one."""
    allowed = f"a number {'above' if above else 'from'} {low:g} {'up ' if above else ''}to {high:g}"

    def read(setting: Setting) -> float:
        value = _number(setting, allowed)
        if not low <= value <= high or (above and value == low):
            raise setting.expected(allowed)
        return value

    return read


def _number(setting: Setting, allowed: str) -> float:
    value = setting.scalar(allowed)
    if isinstance(value, str) and re.fullmatch(r"[0-9.]{1,30}(e[+-]?[0-9]{1,3})?", value, re.IGNORECASE):
        try:
            value = float(value)
        except ValueError:
            raise setting.expected(allowed) from None
    if value is None or isinstance(value, bool | str):
        raise setting.expected(allowed)
    return float(value)


def boolean(setting: Setting, allowed: str = "true or false") -> bool:
    """Reads true or false; text in quotes is neither, unless a variable brought it."""
    value = setting.scalar(allowed)
    if setting.substituted and value in ("true", "false"):
        return value == "true"
    if not isinstance(value, bool):
        raise setting.expected(allowed)
    return value


def choice(*allowed: str) -> Callable[[Setting], str]:
    """A reader of one of the words allowed."""

    def read(setting: Setting) -> str:
        value = setting.text(" or ".join(allowed))
        if value not in allowed:
            raise setting.expected(" or ".join(allowed))
        return value

    return read


def not_yet(what: str, instead: str) -> SettingError:
    """The error for what a later version will have."""
    return SettingError(f"{what} is not available in this version yet; use {instead}")


def duration(*, zero: bool = False) -> Callable[[Setting], float]:
    """A reader of durations, in seconds; 0 only where it is allowed."""
    allowed = DURATION if zero else f"{DURATION}, longer than 0s"

    def read(setting: Setting) -> float:
        value = setting.scalar(allowed)
        if isinstance(value, int) and not isinstance(value, bool):
            raise SettingError(f"got {value}, which has no unit; {value}s are seconds. Allowed is {allowed}")
        try:
            seconds = parse_duration(value) if isinstance(value, str) else -1.0
        except ValueError:
            raise setting.expected(allowed) from None
        if seconds < 0 or (seconds == 0 and not zero):
            raise setting.expected(allowed)
        return seconds

    return read


def size(setting: Setting) -> int:
    """Reads a size above 0, in bytes."""
    value = setting.scalar(SIZE)
    if isinstance(value, int | str) and not isinstance(value, bool):
        text = str(value)
        try:
            number = int(text) if re.fullmatch(r"[0-9]{1,19}", text) else parse_size(text)
        except ValueError:
            raise setting.expected(SIZE) from None
        if 0 < number <= _LARGEST:
            return number
    raise setting.expected(f"{SIZE}, above 0")

"""YAML into nodes that know their line: keys and scalars as written, duplicate keys refused."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

Scalar: TypeAlias = str | int | float | bool | None

_TAG = "tag:yaml.org,2002:"
_TRUE = ("yes", "true", "on")
_ONE_SIGN = re.compile(r".|<[a-z ]*>|\\(?:[a-z]|x..|u.{4}|U.{8})")
_INTEGER = re.compile(r"[+-]?[0-9][0-9_]{0,29}")


@dataclass(frozen=True, slots=True)
class Node:
    """One value of the document. What it holds stays out of its repr, as it may be secret.

    Attributes:
        line: Where it begins, from 1.
        value: A scalar with its YAML type (times stay text), the nodes of a list, or of a mapping.
        text: A scalar as written, None for a list or mapping.
        fault: Why there is no value to be read.
    """

    line: int
    value: Scalar | list[Node] | dict[str, Node] = field(repr=False)
    text: str | None = field(default=None, repr=False)
    fault: str | None = None


class Problems:
    """What is wrong with a file, collected: each with its YAML path, and its line where that is known."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self.count = 0
        self._found: dict[tuple[str, str], None] = {}

    def add(self, path: str, text: str) -> None:
        """Adds what is wrong at a YAML path, "" for the file as a whole."""
        self.count += 1
        self._found[path, text] = None

    def __bool__(self) -> bool:
        return self.count > 0

    def __iter__(self) -> Iterator[str]:
        """The problems as lines of text, in the order of the file."""
        last = max(self.lines.values(), default=0) + 1
        for path, text in sorted(self._found, key=lambda found: self.lines.get(found[0], last)):
            line = f" (line {self.lines[path]})" if path in self.lines else ""
            yield f"{path}{line}: {text}" if path else text


def child_path(path: str, key: str | int) -> str:
    """The YAML path of a mapping's key or a list's item, fit to be shown."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    # A value that slid into its key, as in `password=...`, would else be shown.
    clean, cut, _ = re.sub(r"[^\x21-\x7e]", "?", key[:80]).partition("=")
    shown = f"{clean}{cut and '=...'}"
    return f"{path}.{shown}" if path else shown


def read_document(text: str, problems: Problems) -> Node | None:
    """The document's top node, None if it is empty or not YAML; problems found on the way are added."""
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        top = loader.get_single_node()
        return None if top is None else _Builder(problems).build(top, "")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problems.add("", f"{where}not valid YAML: {_without_content(error.problem or 'unreadable')}")
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problems.add("", f"line {line}: not valid YAML: holds the character #x{error.character:04x}")
    except RecursionError:
        problems.add("", "not usable YAML: nested too deeply")
    except (ValueError, OverflowError):
        problems.add("", "not valid YAML: an escape or version number that stands for nothing")
    finally:
        if loader is not None:
            loader.dispose()
    return None


def _without_content(problem: str) -> str:
    """YAML's complaint without names that came from the file: a password led by * or ! is one."""

    def blotted(match: re.Match[str]) -> str:
        return match[0] if _ONE_SIGN.fullmatch(match[0][1:-1]) else "..."

    text = re.sub(r"'[^']*'|\"[^\"]*\"", blotted, problem)
    return f"{text} (text that begins with one of *&!%@`{{[ or holds ': ' or ' #' needs quotes)"


class _Builder:
    """Nodes are made once and shared by their aliases, so that a small file cannot become a large one."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._built: dict[int, Node | None] = {}

    def build(self, source: yaml.Node, path: str) -> Node:
        line = source.start_mark.line + 1
        self._problems.lines.setdefault(path, line)
        if id(source) in self._built:
            known = self._built[id(source)]
            if known is not None:
                return known
            return Node(line, None, fault="contains itself through an alias")
        self._built[id(source)] = None
        node = self._build(source, path, line)
        self._built[id(source)] = node
        return node

    def _build(self, source: yaml.Node, path: str, line: int) -> Node:
        if isinstance(source, yaml.MappingNode) and source.tag == f"{_TAG}map":
            return Node(line, self._mapping(source, path))
        if isinstance(source, yaml.SequenceNode) and source.tag == f"{_TAG}seq":
            return Node(
                line,
                [self.build(item, child_path(path, index)) for index, item in enumerate(source.value)],
            )
        kind = source.tag.removeprefix(_TAG)
        if isinstance(source, yaml.ScalarNode) and kind in _SCALARS:
            return Node(line, _scalar(kind, source.value), source.value)
        fault = "has a YAML tag (!...), and none is understood here; text led by ! needs quotes"
        return Node(line, None, fault=fault)

    def _mapping(self, source: yaml.MappingNode, path: str) -> dict[str, Node]:
        own: dict[str, Node] = {}
        inherited: dict[str, Node] = {}
        for key, value in source.value:
            if not isinstance(key, yaml.ScalarNode):
                self._problems.add(
                    path, f"has a key at line {key.start_mark.line + 1} that is not plain text"
                )
            elif key.tag == f"{_TAG}merge":
                inherited = {**self._merged(value, path), **inherited}
            elif key.value in own:
                first, again = own[key.value].line, key.start_mark.line + 1
                self._problems.add(
                    child_path(path, key.value), f"is given twice, at lines {first} and {again}; keep one"
                )
            else:
                own[key.value] = self.build(value, child_path(path, key.value))
        return {**inherited, **own}

    def _merged(self, source: yaml.Node, path: str) -> dict[str, Node]:
        node = self.build(source, child_path(path, "<<"))
        merged: dict[str, Node] = {}
        for part in node.value if isinstance(node.value, list) else [node]:
            if isinstance(part.value, dict):
                merged = {**part.value, **merged}
            else:
                self._problems.add(child_path(path, "<<"), "takes mappings only, through aliases")
        return merged


_SCALARS = ("str", "int", "float", "bool", "null", "timestamp", "value", "merge")


def _scalar(kind: str, text: str) -> Scalar:
    """The typed scalar. YAML 1.1's octal, hexadecimal and sixtieths stay text: few mean them."""
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in _TRUE
    if kind == "int" and _INTEGER.fullmatch(text):
        return int(text.replace("_", "").rstrip())
    if kind == "float":
        try:
            return float(text.replace("_", ""))
        except ValueError:
            return text
    return text

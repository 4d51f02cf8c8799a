"""`${NAME}`, `${NAME:-default}` and `$$` in scalars."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_TOKEN = re.compile(r"\$\$|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}|(?P<stray>\$\{)")


def references(text: str) -> tuple[str, ...]:
    """The names of the environment variables a scalar refers to.

    Raises:
        ValueError: A `${` begins no reference; the message holds nothing of the text.
    """
    matches = list(_TOKEN.finditer(text))
    if any(match["stray"] for match in matches):
        raise ValueError(
            "has a '${' that is neither ${NAME} nor ${NAME:-default};"
            " a name is [A-Za-z_][A-Za-z0-9_]*, and a dollar sign itself is written $$"
        )
    return tuple(match["name"] for match in matches if match["name"])


def substitute(text: str, environ: Mapping[str, str]) -> str:
    """The scalar with its references replaced, once: what they bring in is not looked at again.

    As in a shell, the default also stands in for a variable that is set to nothing. A `$` that is
    followed by neither `{` nor `$` is itself.

    Raises:
        ValueError: A `${` begins no reference, or a variable without a default is not set; the
            message names the variable and holds nothing of the text.
    """
    names = references(text)
    without_default = {match["name"] for match in _TOKEN.finditer(text) if match["default"] is None}
    for name in names:
        if name in without_default and name not in environ:
            raise ValueError(
                f"needs the environment variable {name}, which is not set;"
                f" set it, or give a default: ${{{name}:-...}}"
            )

    def replacement(match: re.Match[str]) -> str:
        if match["name"] is None:
            return "$"
        if match["default"] is None:
            return environ[match["name"]]
        return environ.get(match["name"]) or match["default"]

    return _TOKEN.sub(replacement, text)

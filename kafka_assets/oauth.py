"""Tokens for SASL/OAUTHBEARER from a function of the user's, named by `oauth_token: module:function`."""

from __future__ import annotations

import importlib
import logging
import re
import time
from functools import reduce
from typing import TYPE_CHECKING

from kafka_assets.errors import BrokerAuthError, ConfigInvalidError

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

PROPERTY = "oauth_token"

_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_TOKEN = re.compile(r"[\x21-\x7e]+")
_EXTENSION = re.compile(r"(?!auth$)[A-Za-z]+")
_EXTENSION_VALUE = re.compile(r"[\x20-\x7e\t\r\n]*")
_LENGTHS = (2, 4)


def names_function(text: str) -> bool:
    """Whether a text has the form `module:function`; whether there is one is seen on use."""
    return _FUNCTION.fullmatch(text) is not None


class TokenSource:
    """Calls the function for a client: once when the client is made, and again before the token expires.

    The function gets the text of `sasl.oauthbearer.config`, "" where there is none, and returns the token and
    when it expires, in seconds since the epoch; a principal's name and a dict of SASL extensions may follow,
    as of confluent_kafka's `oauth_cb`. Nothing that it raises is shown, as it may hold the token.

    Args:
        name: The function, as `module:function`.
        on_token: Is told each token, so that it can be kept out of messages.

    Raises:
        ConfigInvalidError: There is no such function.
    """

    def __init__(self, name: str, on_token: Callable[[str], None]) -> None:
        self.name = name
        self._function = _find(name)
        self._on_token = on_token
        self._first: tuple[object, ...] | None = None

    def fetch(self, config: str) -> None:
        """Get the first token now: librdkafka would wait ten seconds for one, and not say why none came.

        Raises:
            BrokerAuthError: The function gave none.
        """
        self._first = self._call(config)

    def __call__(self, config: str | None) -> tuple[object, ...]:
        """Return the first token, or a new one: the client's `oauth_cb`, in a thread of librdkafka."""
        first, self._first = self._first, None
        if first is not None:
            return first
        try:
            return self._call(config or "")
        except BrokerAuthError as failed:
            # librdkafka asks again in ten seconds, and the token that it has is good for a while.
            logger.warning("%s", failed)
            raise

    def _call(self, config: str) -> tuple[object, ...]:
        try:
            answer = self._function(config)
        except Exception as error:  # noqa: BLE001  whatever it is, it is not shown
            why: str | None = f"it raised {type(error).__name__}"
        else:
            if isinstance(answer, tuple):
                if answer and isinstance(answer[0], str) and answer[0]:
                    self._on_token(answer[0])
                why = _fault(answer)
                if why is None:
                    return answer
            else:
                why = f"it returned a {type(answer).__name__}, not a tuple of the token and its expiry"
        raise BrokerAuthError(
            f"the function {self.name} of `{PROPERTY}` gave no token for SASL/OAUTHBEARER: {why}. No broker was asked"
            " with it. What it returned or raised is not shown here, as it may hold the token; call it by hand with"
            " the text of sasl.oauthbearer.config to see it."
        )


def _find(name: str) -> Callable[[str], object]:
    module, _, path = name.partition(":")
    try:
        function: object = reduce(getattr, path.split("."), importlib.import_module(module))
    except ModuleNotFoundError as missing:
        why = (
            f"there is no module {missing.name!r}. Install it, put it on PYTHONPATH or put its file beside the streams"
            " file"
        )
    except AttributeError:
        why = f"its module {module!r} has no such function, or fails when it is imported"
    except Exception as error:  # noqa: BLE001  a module may do anything when it is imported
        why = f"its module {module!r} fails when it is imported, with {type(error).__name__}"
    else:
        if callable(function):
            return function
        why = "that is no function"
    raise ConfigInvalidError(f"kafka.{PROPERTY}: {name} cannot be called: {why}. No broker was asked.")


def _fault(answer: tuple[object, ...]) -> str | None:
    """Say why what a function returned is no token, None if it is one."""
    if len(answer) not in _LENGTHS:
        return f"it returned a tuple of {len(answer)}, not of the token and its expiry"
    token, expires, *more = answer
    if not (isinstance(token, str) and _TOKEN.fullmatch(token)):
        return "the token that it returned is no text of visible ASCII characters"
    if isinstance(expires, bool) or not isinstance(expires, int | float):
        return "the expiry that it returned is no number of seconds since the epoch"
    if not expires > time.time():
        return f"the expiry that it returned, {expires:.0f} seconds since the epoch, is over"
    if more and not _is_principal_and_extensions(*more):
        return "the principal that it returned is no text, or the extensions are no dict of names and texts"
    return None


def _is_principal_and_extensions(principal: object, extensions: object) -> bool:
    return (
        isinstance(principal, str)
        and isinstance(extensions, dict)
        and all(
            isinstance(key, str)
            and isinstance(value, str)
            and _EXTENSION.fullmatch(key)
            and _EXTENSION_VALUE.fullmatch(value)
            for key, value in extensions.items()
        )
    )

"""The warehouse of a process that may die at any statement, or at the COMMIT."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from kafka_assets.digest import _standing_connection
from kafka_assets.warehouse import CommitUnknownError, Warehouse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_parsed: dict[str, Any] = {}
"""The statements of this process, each parsed once: parsing is a third of what most of them cost."""


_OF_THREADS = ("SET threads = 1", "RESET threads")
"""What starts or ends threads for each transaction, which a few rows have no use for: there is one for all."""


def forget() -> None:
    """Let go of what the engine would count as leaked at the end of the process."""
    _parsed.clear()
    _standing_connection.cache_clear()


class Killed(BaseException):
    """The process is no more: whatever it was doing is abandoned."""


class Connection:
    """A connection that parses each statement once."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, text: str, *parameters: Any) -> Any:
        if text in _OF_THREADS:
            return None
        if text not in _parsed:
            statements = self._connection.extract_statements(text)
            _parsed[text] = statements[0] if len(statements) == 1 else text
        return self._connection.execute(_parsed[text], *parameters)


class MortalConnection(Connection):
    """The connection of a writer that may die at a statement."""

    def __init__(self, connection: Any, statements: int | None, die: Callable[[str], None]) -> None:
        super().__init__(connection)
        self._left = statements
        self._die = die

    def execute(self, text: str, *parameters: Any) -> Any:
        if self._left is not None:
            if self._left == 0:
                self._die("at a statement")
            self._left -= 1
        return self._connection.execute(text, *parameters)


@dataclass(frozen=True)
class Fate:
    """How one of the next transactions ends.

    Attributes:
        statements: It dies after so many.
        committed: Its end is lost: it dies, or COMMIT answers with an error, with the transaction in the file
            or without.
        unknown: An error of COMMIT rather than a death.
        after: So many transactions before it end well.
    """

    statements: int | None = None
    committed: bool | None = None
    unknown: bool = False
    after: int = 0


_deaths = st.one_of(
    st.builds(Fate, statements=st.integers(0, 16), after=st.integers(0, 2)),
    st.builds(Fate, committed=st.booleans(), unknown=st.booleans(), after=st.integers(0, 2)),
)
fates = st.integers(0, 3).flatmap(lambda luck: _deaths if luck == 3 else st.just(Fate()))


class MortalWarehouse(Warehouse):
    """The real one, whose transactions may end as a fate says.

    Attributes:
        fate: Of the next transaction, or of one of those that follow it.
        commits: How many transactions are in the file.
        on_death: Told how one ended that did not end well.
    """

    fate = Fate()
    commits = 0
    on_death: Callable[[str], None] = staticmethod(lambda _: None)

    def _connection(self) -> Any:
        if self._standing.connection is None:
            real = super()._connection()
            real.execute("SET threads = 1")
            self._standing.connection = Connection(real)  # type: ignore[assignment]
        return self._standing.connection

    def optimize(self, *, yes: bool) -> None:
        """Have the engine optimize its plans, which costs more than it gains on a few rows, or not."""
        self._connection().execute(f"PRAGMA {'enable' if yes else 'disable'}_optimizer")

    @contextmanager
    def writing(self, timeout: float | None = None, *, bytes_per_record: float = 0.0) -> Iterator[Any]:
        fate, self.fate = self.fate, Fate()
        if fate.after:
            fate, self.fate = Fate(), replace(fate, after=fate.after - 1)
        with super().writing(timeout, bytes_per_record=bytes_per_record) as connection:
            yield MortalConnection(connection, fate.statements, self._die)
            if fate.committed is False:
                self._end(fate)
        self.commits += 1
        if fate.committed:
            self._end(fate)

    def _end(self, fate: Fate) -> None:
        after = "after" if fate.committed else "before"
        if not fate.unknown:
            self._die(f"{after} COMMIT")
        self.on_death(f"COMMIT fails {after} it is done")
        raise CommitUnknownError("COMMIT failed, says the model") from OSError("the model's")

    def _die(self, how: str) -> None:
        self.on_death(f"killed {how}")
        raise Killed

"""SQL as cached text: compiled by SQLAlchemy once, then sent to the driver with fresh parameters.

Building and compiling takes about a millisecond, running SQLAlchemy's executor some 50 to 85 microseconds a statement;
eighty cells would pay that eighty times, so the hot path sends cached text and takes the driver's plain tuples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import sqlalchemy as sa

from cloudcore.listing.query.caches import GenerationCache
from cloudcore.listing.query.dialects import dialect_name
from cloudcore.listing.query.encoding import encoder
from cloudcore.listing.query.lists import TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.engine.interfaces import Dialect

    from cloudcore.listing.query.kinds import Kind

__all__ = ["LIMIT", "FixedStatement", "Statement", "compiled", "statement_cache"]

_LIMIT = "cloudcore_number_of_rows"
"""Stands for the number of rows in cached text, where it comes last."""
LIMIT: sa.ColumnElement[int] = sa.literal_column(_LIMIT, sa.Integer())
"""The number of rows, in a statement that is to be compiled."""


@attrs.frozen
class Statement:
    """Cached text and how to fill it.

    Attributes:
        text: SQL for the driver, ``_LIMIT`` standing for the number of rows.
        names: Parameters in order for drivers that take a sequence; None for those that take a mapping.
        encoders: What to do to each plain value before the driver gets it.
        fixed: Values that do not change.
    """

    text: str
    names: tuple[str, ...] | None
    encoders: Mapping[str, Callable[[Any], Any]]
    fixed: Mapping[str, Any]

    def sql(self, count: int | None, lists: Mapping[str, str] | None = None) -> str:
        """The text for so many rows; *lists* take the places of their tokens."""
        text = self.text
        if count is not None:
            before, _, after = text.rpartition(_LIMIT)
            text = f"{before}{count}{after}"
        return TOKEN.sub(lambda found: lists[found[0]], text) if lists else text  # once: a value may look like a token

    def parameters(self, values: Mapping[str, Any]) -> Any:
        """What the driver wants beside the text."""
        encoded = {name: encode(values[name]) for name, encode in self.encoders.items() if name in values}
        filled = {**self.fixed, **encoded}
        return filled if self.names is None else tuple([filled[name] for name in self.names])


def statement_cache(most: int) -> GenerationCache[Any, Statement]:
    """A cache of statements with *most* characters of text, about."""
    return GenerationCache(most, lambda statement: len(statement.text) + 100 * len(statement.encoders) + 500)


def compiled(
    statement: sa.Select[Any],
    dialect: Dialect,
    kinds_of: Callable[[Mapping[str, Any]], Mapping[str, Kind]],
    single: Callable[[str], bool],
) -> Statement:
    """The text of a statement and how to fill it.

    Args:
        statement: SQLAlchemy's.
        dialect: That of the database.
        kinds_of: Of all parameters, those that change from call to call, with what they hold.
        single: Whether the parameter of a name is compared with numbers of single precision.
    """
    made = statement.compile(dialect=dialect)
    kinds = kinds_of(made.binds)
    state = made.construct_expanded_state(dict.fromkeys(kinds))
    fixed = {}
    for name, value in state.parameters.items():
        if name not in kinds:
            bind = made.binds[name if name in made.binds else name.rsplit("_", 1)[0]]  # IN: a name per value
            process = bind.type.dialect_impl(dialect).bind_processor(dialect)
            fixed[name] = process(value) if process is not None else value
    encoders = {name: encoder(kind, dialect, single(name), made.binds[name].type) for name, kind in kinds.items()}
    names = tuple(state.positiontup) if made.positional and state.positiontup is not None else None
    return Statement(state.statement, names, encoders, fixed)


class FixedStatement:
    """One fixed statement as text for the driver, compiled at its first use. Thread-safe.

    Args:
        statement: Parameters are plain text or lists of text.
    """

    def __init__(self, statement: sa.Select[Any] | sa.TextClause) -> None:
        self._statement = statement
        self._texts: dict[Any, tuple[str, tuple[str, ...] | None]] = {}

    def text(self, dialect: Dialect, values: dict[str, Any]) -> tuple[str, Any]:
        """Text and parameters."""
        key = (dialect_name(dialect), dialect.driver)
        cached = self._texts.get(key)
        if cached is None:
            made = self._statement.compile(dialect=dialect)
            names = tuple(made.positiontup or ()) if made.positional else None
            cached = self._texts[key] = (str(made), names)
        return cached[0], values if cached[1] is None else tuple([values[name] for name in cached[1]])

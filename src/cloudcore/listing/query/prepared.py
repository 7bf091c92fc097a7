"""A query checked against its source and made ready to be sent: everything that can be refused is refused here."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from cloudcore.errors import InvalidQuery, StatementRefused
from cloudcore.listing.query.conditions import conditions_of, order_of, projection_of, require_storable
from cloudcore.listing.query.cursors import Cursor, digest
from cloudcore.listing.query.lists import MOST_LISTED, MOST_SENT, size_of
from cloudcore.listing.query.readers import layout_of
from cloudcore.listing.query.statements import Plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloudcore.errors import CloudcoreError
    from cloudcore.listing.query.caches import GenerationCache
    from cloudcore.listing.query.compiled import Statement
    from cloudcore.listing.query.conditions import Condition
    from cloudcore.listing.query.order import Order, Position
    from cloudcore.listing.query.sources import RecordSource
    from cloudcore.listing.values import Layout, Query, Sort

__all__ = ["PreparedQuery"]

_MOST_VALUES = 30_000
"""Parameters of a statement: SQLite takes 32,766 at most, PostgreSQL 65,535."""
_MOST_TESTS = 50
"""Tags and pairs that are each tested apart, as many tags as Nova lets a server have. PostgreSQL plans a hundred for
seconds and three hundred for minutes, and SQLite takes expressions 1,000 deep at most."""
_ESCAPED = "\n\r\x1a\"'\\"
"""Characters that take two bytes in MariaDB's and MySQL's SQL."""
_MOST_BYTES = 4
"""Of any character in that SQL, and of a byte."""


class PreparedQuery:
    """A query made ready.

    Attributes:
        plan: Fetches whole rows.
        keys: Fetches only sort columns.
        layout: How whole rows are read as records.
        impossible: No record can match; nothing need be asked.
        wide: Whether large values are shown.
        digest: Of everything that a cursor must agree with.
    """

    source: RecordSource
    query: Query
    sort: tuple[Sort, ...]
    conditions: tuple[Condition, ...]
    impossible: bool
    order: Order
    plan: Plan
    layout: Layout
    wide: bool
    digest: str

    def __init__(self, source: RecordSource, query: Query, statements: GenerationCache[Any, Statement]) -> None:
        self.source, self.query = source, query
        self.sort = source.default_sort if query.sort is None else query.sort
        where, expression = _where(query)
        self.conditions = conditions_of({**where, **_shorthands(source, query)}, source.columns)
        _check_bounds(self.conditions, query)
        self.impossible = any(condition.impossible for condition in self.conditions)
        source.check(query)
        self.order = order_of(self.sort, source.key, source.columns)
        shown = projection_of(query, source.key, source.columns)
        self._shown = shown
        self._parts = (source, query, self.conditions, self.order)
        self._statements, self._expression = statements, expression
        self.plan = Plan(*self._parts, shown, statements, expression)
        self.layout = layout_of(source.columns, shown, source.key)
        self.wide = any(source.columns[name].wide for name in shown)
        self.digest = digest(
            source.name,
            self.order,
            self.conditions,
            (query.deleted, query.hidden, self.plan.words),
            sorted(query.metadata.items()),
            None if expression is None else _text(expression),
        )

    @property
    def weight(self) -> int:
        """About how many bytes it keeps."""
        values = [value for condition in self.conditions for value in condition.values]
        text = sum(len(value) for value in values if isinstance(value, str))
        return 8_000 + 400 * len(values) + 4 * text

    @cached_property
    def keys(self) -> Plan:
        """A plan that fetches only what the merge compares."""
        return Plan(*self._parts, (), self._statements, self._expression)

    @cached_property
    def backward(self) -> PreparedQuery:
        """The same from its end to its beginning; its cursors are of the same query."""
        other = copy(self)
        other.__dict__.pop("keys", None)
        other.order = self.order.reversed
        parts = (self.source, self.query, self.conditions, other.order)
        other.__dict__["_parts"] = parts
        other.plan = Plan(*parts, self._shown, self._statements, self._expression)
        return other

    def equal_to(self, column: str | None) -> tuple[Any, ...] | None:
        """The values that a column is confined to by equality, None when it is not."""
        found = [each for each in self.conditions if each.column == column and each.operator in {"eq", "in"}]
        return found[0].values if found else None

    def answer_for(self, cell: str, error: CloudcoreError) -> None:
        """Raise when it is this query, not *cell*, that *error* speaks of.

        A value that is refused is the caller's, wherever one was given. SQL that is refused is the caller's expression;
        without one, what the database lacks or has otherwise is its own affair.

        Raises:
            InvalidQuery: With the database's words.
        """
        if not isinstance(error, StatementRefused):
            return
        spoken = self.plan.expression is not None
        given = bool(self.conditions or self.plan.words or self.query.metadata)
        if spoken or (given and error.values):
            raise InvalidQuery(f"{cell} refuses the query: {error}", field="where") from error

    def start(self, cursor: str | None, marker: Position | None, keys: Sequence[bytes] = ()) -> Cursor:
        """Where to begin. *keys*: those that cursors are signed with.

        Raises:
            InvalidCursor: The cursor is damaged or of another query.
        """
        if cursor is None:
            return Cursor(digest=self.digest, position=marker, lagging={})
        return Cursor.decode(cursor, self.digest, self.order, keys)


def _where(query: Query) -> tuple[Mapping[str, Any], Any]:
    if query.where is None:
        return {}, None
    if isinstance(query.where, Mapping):
        return query.where, None
    if isinstance(query.where, sa.ColumnElement):
        return {}, query.where
    raise InvalidQuery(
        f"where: expected a mapping of columns or an SQLAlchemy expression, got {type(query.where).__name__}",
        field="where",
    )


def _check_bounds(conditions: Sequence[Condition], query: Query) -> None:
    """Refuse what no database takes: words that are no text, too many values, too much of them.

    Raises:
        InvalidQuery: With the numbers.
    """
    words = [
        ("tags", word) for field in (query.tags, query.tags_any, query.not_tags, query.not_tags_any) for word in field
    ] + [("metadata", word) for pair in query.metadata.items() for word in pair]
    for field, word in words:
        require_storable(word, field)
    for packed, most in ((False, _MOST_VALUES), (True, MOST_LISTED)):
        number = sum(len(each.values) for each in conditions if each.packed is packed) + (0 if packed else len(words))
        if number > most:
            where = "in long lists of text, UUIDs and whole numbers" if packed else "by parameters"
            raise InvalidQuery(
                f"the query compares with {number} values {where}, at most {most} are sent: ask several times",
                field="where",
                value=number,
            )
    apart = len(query.tags) + len(query.not_tags) + len(query.metadata)
    if apart > _MOST_TESTS:
        raise InvalidQuery(
            f"the query asks for {apart} tags and pairs of metadata at once, at most {_MOST_TESTS} are sent",
            field="tags",
            value=apart,
        )
    size = sum(size_of(each.values) for each in conditions if each.packed)
    if size > MOST_SENT:
        raise InvalidQuery(
            f"the query's long lists are {size} characters of SQL, at most {MOST_SENT} are sent: ask several times",
            field="where",
            value=size,
        )
    values = [value for condition in conditions if not condition.packed for value in condition.values]
    values += [word for _, word in words]
    if size + sum(_MOST_BYTES * len(value) for value in values if isinstance(value, str | bytes)) <= MOST_SENT:
        return
    size += sum(map(_bytes_of, values))
    if size > MOST_SENT:
        raise InvalidQuery(
            f"the query's values are {size} bytes of SQL, at most {MOST_SENT} are sent: ask several times",
            field="where",
            value=size,
        )


def _bytes_of(value: Any) -> int:
    """Of a value in MariaDB's and MySQL's SQL: what is sent is bounded there, and a value may stand in it twice."""
    if isinstance(value, str):
        return len(value.encode()) + sum(map(value.count, _ESCAPED))
    return 2 * len(value) if isinstance(value, bytes) else 0


def _shorthands(source: RecordSource, query: Query) -> dict[str, Any]:
    where: dict[str, Any] = {}
    for meaning, column, value in (("tenant", source.tenant, query.tenant), ("host", source.host, query.host)):
        if value is not None:
            if column is None:
                raise InvalidQuery(f"{source.name} has no column for the {meaning}", field=meaning)
            where[column] = _joined(query, column, {"eq": value})
    bounds = {"ge": query.changes_since, "le": query.changes_before}
    bounds = {operator: value for operator, value in bounds.items() if value is not None}
    if bounds:
        if source.updated is None:
            raise InvalidQuery(f"{source.name} does not say when its records changed", field="changes_since")
        where[source.updated] = _joined(query, source.updated, bounds)
    return where


def _joined(query: Query, column: str, operators: dict[str, Any]) -> dict[str, Any]:
    """A shorthand's test; the same column may not also be in ``where``, so that neither silently wins."""
    if isinstance(query.where, Mapping) and column in query.where:
        raise InvalidQuery(f"{column} is tested in where and by a shorthand; use one of them", field=column)
    return operators


def _text(expression: Any) -> str:
    compiled = expression.compile()
    return f"{compiled}{sorted((name, repr(value)) for name, value in compiled.params.items())}"

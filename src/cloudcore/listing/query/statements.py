"""SQL for one fetch: built with SQLAlchemy once per shape and dialect, then sent as text with fresh parameters.

A *shape* is a query without its values: two tenants' pages share one text. Building and compiling takes about a
millisecond, running SQLAlchemy's executor some 50 to 85 microseconds a statement; eighty cells would pay that eighty
times, so the hot path sends cached text to the driver and takes its plain tuples.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs
import sqlalchemy as sa

from cloudcore.listing.query.conditions import Condition, prefix_end
from cloudcore.listing.query.dialects import dialect_name
from cloudcore.listing.query.order import Key, Kind, Order, Position

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy.engine.interfaces import Dialect

    from cloudcore.listing.query.sources import RecordSource
    from cloudcore.listing.values import Query

__all__ = ["FixedStatement", "Plan", "Segment", "Statement", "segments"]

Expression = sa.ColumnElement[Any]
_LIMIT = "987654321"
"""Stands for the number of rows in cached text."""


@attrs.frozen
class Segment:
    """A stretch of an order in which the leading key is NULL throughout, or never.

    ``leading``: "any" when the leading column cannot be NULL, else "values" or "nulls". Within a segment the order
    needs no NULL rank on the leading key, so an ordinary index serves it on every database.
    """

    leading: str
    after: Position | None


def segments(order: Order, after: Position | None) -> list[Segment]:
    """The segments that remain after a position, in order."""
    first = order.keys[0]
    if not first.nullable:
        return [Segment("any", after)]
    both = ["nulls", "values"] if first.nulls_first else ["values", "nulls"]
    if after is None:
        return [Segment(name, None) for name in both]
    current = "nulls" if after[0] is None else "values"
    rest = both[both.index(current) + 1 :]
    return [Segment(current, after), *(Segment(name, None) for name in rest)]


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

    def sql(self, count: int | None) -> str:
        """The text for so many rows."""
        return self.text if count is None else self.text.replace(_LIMIT, str(count))

    def parameters(self, values: Mapping[str, Any]) -> Any:
        """What the driver wants beside the text."""
        encoded = {name: encode(values[name]) for name, encode in self.encoders.items() if name in values}
        filled = {**self.fixed, **encoded}
        return filled if self.names is None else tuple([filled[name] for name in self.names])


class Plan:
    """A query made ready for its source: what to select, how to filter and to order. Immutable but for its cache.

    Args:
        source: Whose records.
        query: What the caller wants.
        conditions: Its filter, checked.
        order: Its total order.
        columns: What to select.
        cache: Statements by shape and dialect, shared by all plans of a router.
    """

    def __init__(
        self,
        source: RecordSource,
        query: Query,
        conditions: Sequence[Condition],
        order: Order,
        columns: Sequence[str],
        cache: dict[Any, Statement],
        expression: Expression | None = None,
    ) -> None:
        self.source, self.query, self.order = source, query, order
        self.conditions = tuple(conditions)
        self.columns = tuple(dict.fromkeys((*columns, *(key.column for key in order.keys))))
        self.indexes = tuple(self.columns.index(key.column) for key in order.keys)
        self.expression = expression
        self.words = _words(query)
        self._cache = cache if expression is None else {}
        self._values = self._constants()
        self._shape = (
            id(source), query.deleted, query.hidden, self.columns, order,
            tuple((*condition.shape, len(_bound(condition))) for condition in self.conditions),
            tuple((name, len(words)) for name, words in self.words.items()), len(query.metadata),
        )  # fmt: skip

    def _constants(self) -> dict[str, Any]:
        values = {f"c{i}_{j}": value for i, each in enumerate(self.conditions) for j, value in enumerate(_bound(each))}
        for name, words in self.words.items():
            values.update({f"{name}_{i}": word for i, word in enumerate(words)})
        for i, (key, value) in enumerate(self.query.metadata.items()):
            values[f"mk{i}"], values[f"mv{i}"] = key, value
        return values

    # ---- statements

    def page(self, dialect: Dialect, segment: Segment, count: int) -> tuple[str, Any]:
        """Text and parameters that fetch the next *count* rows of a segment."""
        after = segment.after
        nulls = None if after is None else tuple(value is None for value in after)
        key = ("page", dialect_name(dialect), dialect.driver, segment.leading, nulls, self._shape)
        statement = self._cache.get(key)
        if statement is None:
            statement = self._cache[key] = self._compile(dialect, self._page(dialect, segment, nulls))
        values = self._values
        if after is not None:
            values = {**values, **{f"k{i}": value for i, value in enumerate(after)}}
        return statement.sql(count), statement.parameters(values)

    def _page(self, dialect: Dialect, segment: Segment, nulls: tuple[bool, ...] | None) -> sa.Select[Any]:
        name = dialect_name(dialect)
        tests = self.tests(name)
        first = self.order.keys[0]
        if segment.leading == "nulls":
            tests.append(self.source.value(first.column, name).is_(None))
        elif segment.leading == "values" and (nulls is None):
            tests.append(self.source.value(first.column, name).is_not(None))
        if nulls is not None:
            tests += self._after(name, segment, nulls)
        statement = sa.select(*self._selected(name)).where(*tests)
        return statement.order_by(*self._order_by(name, segment)).limit(sa.literal_column(_LIMIT, sa.Integer()))

    def winners(self, dialect: Dialect, keys: Sequence[Any]) -> tuple[str, Any]:
        """Text and parameters that fetch whole rows by their keys, in no order."""
        size = max(8, 1 << (len(keys) - 1).bit_length())  # few sizes, few texts: the last key fills up
        cached = ("winners", dialect_name(dialect), dialect.driver, size, id(self.source), self.columns)
        statement = self._cache.get(cached)
        name = dialect_name(dialect)
        if statement is None:
            column = self.source.table.c[self.source.key]
            parameters = [sa.bindparam(f"w{i}", None, column.type) for i in range(size)]
            select = sa.select(*self._selected(name)).where(column.in_(parameters))
            statement = self._cache[cached] = self._compile(dialect, select)
        padded = [*keys, *[keys[-1]] * (size - len(keys))]
        return statement.sql(None), statement.parameters({f"w{i}": key for i, key in enumerate(padded)})

    def count(self, dialect: Dialect, by: str | None, without: Sequence[str]) -> tuple[str, Any]:
        """Text and parameters that count the records, for each value of *by*, leaving out the keys in *without*."""
        name = dialect_name(dialect)
        tests = self.tests(name)
        if without:
            tests.append(self.source.table.c[self.source.key].not_in(list(without)))
        groups = [] if by is None else [self.source.sortable(by, name)]
        statement: sa.Select[Any] = sa.select(*groups, sa.func.count()).select_from(self.source.table)
        statement = statement.where(*tests).group_by(*groups)
        compiled = self._compile(dialect, statement)
        return compiled.sql(None), compiled.parameters(self._values)

    def _selected(self, dialect: str) -> list[Expression]:
        return [self.source.value(column, dialect).label(column) for column in self.columns]

    # ---- filters

    def tests(self, dialect: str) -> list[Expression]:
        """The whole WHERE clause but for the position."""
        tests = self.source.standing(self.query)
        if self.expression is not None:
            tests.append(self.expression)
        for number, condition in enumerate(self.conditions):
            tests.append(self._test(number, condition, dialect))
        for number in range(len(self.query.metadata)):
            pair = (sa.bindparam(f"mk{number}", None, sa.String()), sa.bindparam(f"mv{number}", None, sa.String()))
            tests.append(self.source.has_pair(*pair, dialect))
        for name, words in self.words.items():
            tests.append(self._tag_test(name, len(words), dialect))
        return tests

    def _tag_test(self, name: str, number: int, dialect: str) -> Expression:
        tags = [sa.bindparam(f"{name}_{i}", None, sa.String()) for i in range(number)]
        if name in {"tags_any", "not_tags_any"}:
            found = self.source.has_tag(tags, dialect)
        else:
            found = sa.and_(*(self.source.has_tag([tag], dialect) for tag in tags))
        return sa.not_(found) if name.startswith("not_") else found

    def _parameter(self, name: str, column: str) -> sa.BindParameter[Any]:
        kind, type_ = self.source.columns[column].kind, self.source.table.c[column].type
        by_kind: dict[Kind, sa.types.TypeEngine[Any]] = {Kind.TEXT: sa.String(), Kind.INTEGER: sa.BigInteger()}
        return sa.bindparam(name, None, by_kind.get(kind, type_))  # None: not yet known when it is compiled

    def _test(self, number: int, condition: Condition, dialect: str) -> Expression:
        column = self.source.columns[condition.column]
        value = self.source.value(condition.column, dialect)
        bounds = [self._parameter(f"c{number}_{i}", column.name) for i in range(len(_bound(condition)))]
        operator = condition.operator
        if operator == "null":
            return value.is_(None)
        if operator == "not_null":
            return value.is_not(None)
        exact = self.source.sortable(condition.column, dialect)
        if operator in {"eq", "in"}:
            return self._equality(value, exact, bounds)
        if operator in {"ne", "not_in"}:
            differs = exact.not_in(bounds) if bounds else sa.true()
            return sa.or_(differs, value.is_(None)) if column.nullable else differs
        return _comparison(operator, exact, bounds, dialect)

    def _equality(self, value: Expression, exact: Expression, bounds: list[sa.BindParameter[Any]]) -> Expression:
        def among(expression: Expression) -> Expression:
            return expression == bounds[0] if len(bounds) == 1 else expression.in_(bounds)

        # The column's own collation may take more for equal; its index narrows, the pinned test decides.
        return among(value) if value is exact else sa.and_(among(value), among(exact))

    # ---- order and position

    def _order_by(self, dialect: str, segment: Segment) -> list[Expression]:
        clauses: list[Any] = []
        for number, key in enumerate(self.order.keys):
            if number == 0 and segment.leading == "nulls":
                continue
            expression = self.source.sortable(key.column, dialect)
            directed: Any = expression.desc() if key.descending else expression.asc()
            if key.nullable and number > 0:
                clauses += _ranked(expression, directed, dialect, nulls_first=key.nulls_first)
            else:
                clauses.append(directed)
        return clauses

    def _after(self, dialect: str, segment: Segment, nulls: tuple[bool, ...]) -> list[Expression]:
        """Strictly after the position, and the leading key's own bound, without which no index is sought."""
        keys = [(i, key) for i, key in enumerate(self.order.keys) if not (i == 0 and segment.leading == "nulls")]
        expressions = {i: self.source.sortable(key.column, dialect) for i, key in keys}
        choices: list[Expression] = []
        for place, (i, key) in enumerate(keys):
            beyond = self._beyond(i, key, expressions[i], null=nulls[i])
            if beyond is not None:
                equal = [self._same(j, other, expressions[j], null=nulls[j]) for j, other in keys[:place]]
                choices.append(sa.and_(*equal, beyond))
        tests: list[Expression] = [sa.or_(*choices)] if choices else [sa.false()]
        if segment.leading != "nulls" and len(keys) > 1:
            bound = self._parameter("k0", keys[0][1].column)
            tests.insert(0, expressions[0] <= bound if keys[0][1].descending else expressions[0] >= bound)
        return tests

    def _beyond(self, number: int, key: Key, expression: Expression, *, null: bool) -> Expression | None:
        if null:
            return expression.is_not(None) if key.nulls_first else None
        bound = self._parameter(f"k{number}", key.column)
        after: Expression = expression < bound if key.descending else expression > bound
        if key.nullable and not key.nulls_first and number > 0:
            return sa.or_(after, expression.is_(None))
        return after

    def _same(self, number: int, key: Key, expression: Expression, *, null: bool) -> Expression:
        return expression.is_(None) if null else expression == self._parameter(f"k{number}", key.column)

    # ---- compiling

    def _compile(self, dialect: Dialect, statement: sa.Select[Any]) -> Statement:
        compiled = statement.compile(dialect=dialect)
        kinds = self._kinds(compiled.binds)
        state = compiled.construct_expanded_state(dict.fromkeys(kinds))
        fixed = {}
        for name, value in state.parameters.items():
            if name not in kinds:
                bind = compiled.binds[
                    name if name in compiled.binds else name.rsplit("_", 1)[0]
                ]  # IN: a name per value
                process = bind.type.dialect_impl(dialect).bind_processor(dialect)
                fixed[name] = process(value) if process is not None else value
        encoders = {name: _encoder(kind, dialect, compiled.binds[name].type) for name, kind in kinds.items()}
        names = tuple(state.positiontup) if compiled.positional and state.positiontup is not None else None
        return Statement(state.statement, names, encoders, fixed)

    def _kinds(self, binds: Mapping[str, Any]) -> dict[str, Kind]:
        """The parameters that change from call to call, with what they hold."""
        kinds: dict[str, Kind] = {}
        for number, condition in enumerate(self.conditions):
            kind = self.source.columns[condition.column].kind
            kinds.update({f"c{number}_{i}": kind for i in range(len(_bound(condition)))})
        for name in self._values:
            kinds.setdefault(name, Kind.TEXT)
        for number, key in enumerate(self.order.keys):
            kinds[f"k{number}"] = key.kind
        kinds.update(
            {
                name: self.source.columns[self.source.key].kind
                for name in binds
                if name[:1] == "w" and name[1:].isdigit()
            }
        )
        return {name: kind for name, kind in kinds.items() if name in binds}


class FixedStatement:
    """One fixed statement as text for the driver, compiled at its first use. Thread-safe.

    Args:
        statement: Parameters are plain text or lists of text.
    """

    def __init__(self, statement: sa.Select[Any]) -> None:
        self._statement = statement
        self._texts: dict[Any, tuple[str, tuple[str, ...] | None]] = {}

    def text(self, dialect: Dialect, values: dict[str, Any]) -> tuple[str, Any]:
        """Text and parameters."""
        key = (dialect_name(dialect), dialect.driver)
        cached = self._texts.get(key)
        if cached is None:
            compiled = self._statement.compile(dialect=dialect)
            names = tuple(compiled.positiontup or ()) if compiled.positional else None
            cached = self._texts[key] = (str(compiled), names)
        return cached[0], values if cached[1] is None else tuple([values[name] for name in cached[1]])


def _words(query: Query) -> dict[str, tuple[str, ...]]:
    names = ("tags", "tags_any", "not_tags", "not_tags_any")
    return {name: tuple(sorted(getattr(query, name))) for name in names if getattr(query, name)}


def _bound(condition: Condition) -> tuple[Any, ...]:
    """The values that a condition sends: a prefix becomes a range."""
    if condition.operator != "prefix":
        return condition.values
    end = prefix_end(condition.values[0])
    return condition.values if end is None else (condition.values[0], end)


def _comparison(operator: str, exact: Expression, bounds: list[sa.BindParameter[Any]], dialect: str) -> Expression:
    if operator == "prefix":
        start: Expression = exact >= bounds[0]
        return start if len(bounds) == 1 else sa.and_(start, exact < bounds[1])
    if operator == "contains":
        if dialect == "postgresql":
            return sa.func.strpos(exact, bounds[0]) > 0
        return sa.func.instr(exact, bounds[0]) > 0
    if operator == "regex":
        return exact.op("~" if dialect == "postgresql" else "REGEXP", is_comparison=True)(bounds[0])
    return {"lt": exact < bounds[0], "le": exact <= bounds[0], "gt": exact > bounds[0], "ge": exact >= bounds[0]}[
        operator
    ]


def _ranked(expression: Expression, directed: Any, dialect: str, *, nulls_first: bool) -> list[Any]:
    if dialect in {"mysql", "mariadb"}:
        return [expression.is_not(None) if nulls_first else expression.is_(None), directed]
    return [directed.nulls_first() if nulls_first else directed.nulls_last()]


def _encoder(kind: Kind, dialect: Dialect, type_: sa.types.TypeEngine[Any]) -> Callable[[Any], Any]:
    if kind is not Kind.INSTANT:
        return _as_is
    if dialect.name == "sqlite":
        return _instant_as_text
    impl = type_.dialect_impl(dialect)
    impl = impl.impl_instance if isinstance(impl, sa.types.TypeDecorator) else impl
    return _as_is if dialect.name == "postgresql" and getattr(impl, "timezone", False) else _naive


def _as_is(value: Any) -> Any:
    return value


def _naive(value: datetime) -> datetime:
    return value.astimezone(UTC).replace(tzinfo=None)


def _instant_as_text(value: datetime) -> str:
    return _naive(value).isoformat(sep=" ", timespec="microseconds")

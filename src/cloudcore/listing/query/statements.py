"""SQL for one fetch: built with SQLAlchemy once per shape and dialect, then sent as text with fresh parameters.

A *shape* is a query without its values: two tenants' pages share one text. The module is longer than one should be
because filter, order and position of a statement must agree in every clause.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import attrs
import sqlalchemy as sa

from cloudcore.errors import SchemaMismatch
from cloudcore.listing.query.compiled import LIMIT, compiled, statement_cache
from cloudcore.listing.query.conditions import Condition, prefix_end
from cloudcore.listing.query.dialects import dialect_name
from cloudcore.listing.query.encoding import encoder
from cloudcore.listing.query.indexes import reaches, serve
from cloudcore.listing.query.kinds import Kind
from cloudcore.listing.query.lists import document, literals, rows_of, token
from cloudcore.listing.query.segments import segments
from cloudcore.listing.query.sources import is_single

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.engine.interfaces import Dialect

    from cloudcore.listing.query.caches import GenerationCache
    from cloudcore.listing.query.compiled import Statement
    from cloudcore.listing.query.indexes import TableLayout
    from cloudcore.listing.query.order import Key, Order, Position
    from cloudcore.listing.query.segments import Segment
    from cloudcore.listing.query.sources import RecordSource
    from cloudcore.listing.values import Query

__all__ = ["Plan", "Sent"]

Expression = sa.ColumnElement[Any]
_SHORT_LIST, _LONGEST_LIST = 4, 30_000
"""Lengths up to which a list is sent as it is, and that none is filled up beyond."""
_OWN_TEXT = 1_000_000
"""Characters that are kept of a query with an expression of the caller's."""
_SORTS_ALL = frozenset({"mariadb", "mysql"})
"""Databases that sort all rows where no index has the whole order, instead of going on from a part of it."""


@attrs.frozen
class Sent:
    """What to send for some rows of a segment.

    Attributes:
        text, parameters: For the driver.
        keys: The rows come in the order of so many leading keys alone, and one more than wanted; 0: in their whole
            order.
    """

    text: str
    parameters: Any
    keys: int


@attrs.frozen
class _Way:
    """How rows are read: by how many leading keys (0: all), by which index, without which columns."""

    keys: int = 0
    index: str | None = None
    missing: frozenset[str] = frozenset()


_PLAINLY = _Way()


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

    source: RecordSource
    query: Query
    order: Order
    conditions: tuple[Condition, ...]
    columns: tuple[str, ...]
    indexes: tuple[int, ...]
    words: dict[str, tuple[str, ...]]

    def __init__(
        self,
        source: RecordSource,
        query: Query,
        conditions: Sequence[Condition],
        order: Order,
        columns: Sequence[str],
        cache: GenerationCache[Any, Statement],
        expression: Expression | None = None,
    ) -> None:
        self.source, self.query, self.order = source, query, order
        self.conditions = tuple(conditions)
        self.columns = tuple(dict.fromkeys((*columns, *(key.column for key in order.keys))))
        self.indexes = tuple(self.columns.index(key.column) for key in order.keys)
        self.expression = expression
        self.words = _words(query)
        self._cache = cache if expression is None else statement_cache(_OWN_TEXT)
        self._values = self._constants()
        self._ways: dict[Any, _Way] = {}
        self._packed: dict[Any, tuple[Mapping[str, Any], Mapping[str, str]]] = {}
        self._shape = (
            id(source), query.deleted, query.hidden, self.columns, order,
            tuple((each.column, each.operator, len(_bound(each)), each.packed) for each in self.conditions),
            tuple((name, len(words)) for name, words in self.words.items()), len(query.metadata),
        )  # fmt: skip

    def _constants(self) -> dict[str, Any]:
        spread = [(i, each) for i, each in enumerate(self.conditions) if not each.packed]
        values = {f"c{i}_{j}": value for i, each in spread for j, value in enumerate(_bound(each))}
        for name, words in self.words.items():
            values.update({f"{name}_{i}": word for i, word in enumerate(words)})
        for i, (key, value) in enumerate(self.query.metadata.items()):
            values[f"mk{i}"], values[f"mv{i}"] = str.__str__(key), str.__str__(value)
        return values

    # ---- statements

    def page(self, dialect: Dialect, segment: Segment, count: int, layout: TableLayout | None = None) -> Sent:
        """Fetch the next *count* rows of a segment from a table of that layout, None where it does not matter.

        Raises:
            SchemaMismatch: The table lacks a column that the query needs.
        """
        after, within = segment.after, segment.within
        nulls = None if after is None else tuple(value is None for value in after)
        alike = None if within is None else tuple(value is None for value in within[: segment.tied])
        way = self._way(dialect, segment, layout)
        key = ("page", dialect_name(dialect), dialect.driver, segment.leading, alike, nulls, way, self._shape)
        statement = self._cache.get(key)
        if statement is None:
            statement = self._cache[key] = self._compile(dialect, self._page(dialect, segment, nulls, alike, way))
        values, lists = self._sent(dialect)
        if after is not None:
            values = {**values, **{f"k{i}": value for i, value in enumerate(after)}}
        elif within is not None:
            values = {**values, **{f"k{i}": value for i, value in enumerate(within[: segment.tied])}}
        # One row more shows where the last tie ends.
        return Sent(statement.sql(count + bool(way.keys), lists), statement.parameters(values), way.keys)

    def _sent(self, dialect: Dialect) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        """The values that are sent to such a database, and what takes the places of tokens in the text."""
        if not any(each.packed for each in self.conditions):
            return self._values, {}
        name = dialect_name(dialect)
        found = self._packed.get((name, dialect.driver))
        if found is None:
            values, lists = dict(self._values), dict[str, str]()
            for number, condition in enumerate(self.conditions):
                if condition.packed:
                    column = self.source.columns[condition.column]
                    encode = encoder(column.kind, dialect, False, self.source.table.c[condition.column].type)
                    if name in _SORTS_ALL:
                        lists[token(number)] = literals(condition.values, encode)
                    else:
                        values[f"c{number}_0"] = document(condition.values, encode)
            found = self._packed[name, dialect.driver] = (values, lists)
        return found

    def _page(
        self,
        dialect: Dialect,
        segment: Segment,
        nulls: tuple[bool, ...] | None,
        alike: tuple[bool, ...] | None,
        way: _Way,
    ) -> sa.Select[Any]:
        name = dialect_name(dialect)
        tests = self.tests(name)
        first = self.order.keys[0]
        if alike is not None:
            for number, null in enumerate(alike):
                key = self.order.keys[number]
                tests.append(self._same(name, number, key, self.source.sortable(key.column, name), null=null))
        elif segment.leading == "nulls":
            tests.append(self.source.value(first.column, name).is_(None))
        elif segment.leading == "values" and (nulls is None):
            tests.append(self.source.value(first.column, name).is_not(None))
        open_keys = self._open(segment)
        if nulls is not None:
            tests += self._after(name, segment, open_keys, nulls)
        statement = sa.select(*self._selected(name, way.missing)).where(*tests)
        if way.index is not None:
            hint = f"FORCE INDEX ({dialect.identifier_preparer.quote(way.index)})".replace("%", "%%")
            statement = statement.with_hint(self.source.table, hint)
        ordered = [(number, key) for number, key in open_keys if number < way.keys or not way.keys]
        statement = statement.order_by(*self._order_by(name, segment, ordered))
        return statement.limit(LIMIT)

    def segments(self, dialect: Dialect, after: Position | None, layout: TableLayout | None) -> list[Segment]:
        """The segments that remain after a position: NULLs are read apart where an index finds them."""
        first = self.order.keys[0].column
        constant = self._constant()
        apart = layout is None or any(reaches(index, {first}, constant) for index in layout.indexes)
        return segments(self.order, after, apart=apart or dialect_name(dialect) not in _SORTS_ALL)

    def _constant(self) -> frozenset[str]:
        """Columns that the query confines to one value each."""
        return self.source.confined(self.query).union(each.column for each in self.conditions if each.confining)

    def _open(self, segment: Segment) -> list[tuple[int, Key]]:
        """The keys in which the rows of a segment differ, by their number."""
        return list(enumerate(self.order.keys))[segment.closed :]

    def _way(self, dialect: Dialect, segment: Segment, layout: TableLayout | None) -> _Way:
        """How the rows of a segment are best read."""
        if layout is None:
            return _PLAINLY
        kind = (layout, dialect_name(dialect), segment.leading, segment.tied)
        way = self._ways.get(kind)
        if way is None:
            way = self._ways[kind] = self._choose(dialect_name(dialect), segment, layout)
        return way

    def _choose(self, dialect: str, segment: Segment, layout: TableLayout) -> _Way:
        missing = self._missing(layout)
        if dialect not in _SORTS_ALL or segment.tied:
            return _Way(missing=missing)
        keys = self.order.keys[segment.closed :]
        alike = {key.column for key in self.order.keys[: segment.closed]}
        constant = self._constant() | alike
        # What needs no wrapping to be compared as the merge does, indexes hold in that order.
        columns, sortable = self.source.table.c, self.source.sortable
        ordered = {key.column for key in keys if sortable(key.column, dialect) is columns[key.column]}
        narrowed = {*(each.column for each in self.conditions), *alike}
        served = serve(keys, layout.indexes, ordered=ordered, constant=constant, narrowed=narrowed)
        if served is None:
            return _Way(missing=missing)
        alone = served.alone and self.expression is None and not self.query.metadata and not self.words
        split = 0 if served.keys == len(keys) else segment.closed + served.keys
        return _Way(keys=split, index=served.index if alone else None, missing=missing)

    def _missing(self, layout: TableLayout) -> frozenset[str]:
        """Columns that the table lacks and the query can do without."""
        tested = {each.column for each in self.conditions}
        self._require(layout, {*(self.query.columns or ()), *(key.column for key in self.order.keys), *tested})
        return frozenset(name for name in self.columns if not self._present(name, layout))

    def _require(self, layout: TableLayout, needed: set[str]) -> None:
        if lacking := sorted(name for name in needed if not self._present(name, layout)):
            raise SchemaMismatch(
                f"{self.source.name} has no column {' and no column '.join(lacking)} here, and the query needs it: "
                "upgrade the cell, or ask for other columns"
            )

    def _present(self, name: str, layout: TableLayout) -> bool:
        return self.source.table.c[name].name in layout.names

    def winners(self, dialect: Dialect, keys: Sequence[Any], layout: TableLayout | None = None) -> tuple[str, Any]:
        """Text and parameters that fetch whole rows by their keys, in no order.

        Raises:
            SchemaMismatch: The table lacks a column that the query needs.
        """
        size = max(8, 1 << (len(keys) - 1).bit_length())  # few sizes, few texts: the last key fills up
        missing = frozenset[str]() if layout is None else self._missing(layout)
        cached = ("winners", dialect_name(dialect), dialect.driver, size, id(self.source), self.columns, missing)
        statement = self._cache.get(cached)
        name = dialect_name(dialect)
        if statement is None:
            column = self.source.table.c[self.source.key]
            parameters = [sa.bindparam(f"w{i}", None, column.type) for i in range(size)]
            select = sa.select(*self._selected(name, missing)).where(column.in_(parameters))
            statement = self._cache[cached] = self._compile(dialect, select)
        padded = [*keys, *[keys[-1]] * (size - len(keys))]
        return statement.sql(None), statement.parameters({f"w{i}": key for i, key in enumerate(padded)})

    def count(
        self,
        dialect: Dialect,
        by: str | None,
        sums: Sequence[str],
        without: Sequence[str],
        layout: TableLayout | None = None,
    ) -> tuple[str, Any]:
        """Text and parameters that count the records and add up *sums*, for each value of *by*.

        The keys in *without* are left out. A row has the value, if there is one, the sums and the number.

        Raises:
            SchemaMismatch: The table lacks a column that is tested or counted by.
        """
        if layout is not None:
            self._require(layout, {each.column for each in self.conditions} | ({by} if by else set()) | set(sums))
        name = dialect_name(dialect)
        tests = self.tests(name)
        if without:
            key = self.source.table.c[self.source.key]
            as_uuid = getattr(key.type, "as_uuid", False)
            tests.append(key.not_in([UUID(each) if as_uuid else each for each in without]))
        groups = [] if by is None else [self._grouped(by, name)]
        added = [sa.func.coalesce(sa.func.sum(self.source.selected(column, name)), 0) for column in sums]
        statement: sa.Select[Any] = sa.select(*groups, *added, sa.func.count()).select_from(self.source.table)
        statement = statement.where(*tests).group_by(*groups)
        sent = self._compile(dialect, statement)
        values, lists = self._sent(dialect)
        return sent.sql(None, lists), sent.parameters(values)

    def _grouped(self, by: str, dialect: str) -> Expression:
        """What is counted by: exact where a collation takes more for equal, and in the form that records show."""
        exact = self.source.columns[by].kind in {Kind.TEXT, Kind.UUID}
        return self.source.sortable(by, dialect) if exact else self.source.selected(by, dialect)

    def _selected(self, dialect: str, missing: frozenset[str] = frozenset()) -> list[Expression]:
        return [
            (sa.null() if column in missing else self.source.selected(column, dialect)).label(column)
            for column in self.columns
        ]

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
        return sa.bindparam(name, None, _BY_KIND.get(kind, type_))  # None: not yet known when it is compiled

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
        if condition.packed:
            return self._among_many(number, condition, value, exact, dialect)
        if dialect == "sqlite" and column.kind in _AS_TEXT:
            return self._test_of_text(operator, exact, bounds, nullable=column.nullable)
        if operator in {"eq", "in"}:
            return self._equality(value, exact, bounds)
        if operator in {"ne", "not_in"}:
            differs = exact.not_in(bounds) if bounds else sa.true()
            return sa.or_(differs, value.is_(None)) if column.nullable else differs
        return _comparison(operator, exact, bounds, dialect)

    def _test_of_text(
        self, operator: str, text: Expression, bounds: Sequence[Expression], *, nullable: bool
    ) -> Expression:
        """A test of instants that SQLite keeps as text, with a fraction of any length or none."""
        if operator in {"eq", "in", "ne", "not_in"}:
            forms = [form for bound in bounds for form in (bound, sa.func.substr(bound, 1, 23), _shortest(bound))]
            if operator in {"eq", "in"}:
                return text.in_(forms)
            differs = text.not_in(forms) if forms else sa.true()
            return sa.or_(differs, text.is_(None)) if nullable else differs
        bound = _shortest(bounds[0]) if operator in {"lt", "ge"} else bounds[0]
        return _comparison(operator, text, [bound], "sqlite")

    def _equality(self, value: Expression, exact: Expression, bounds: list[sa.BindParameter[Any]]) -> Expression:
        def among(expression: Expression) -> Expression:
            return expression == bounds[0] if len(bounds) == 1 else expression.in_(bounds)

        # The column's own collation may take more for equal; its index narrows, the pinned test decides.
        return among(value) if value is exact else sa.and_(among(value), among(exact))

    def _among_many(
        self, number: int, condition: Condition, value: Expression, exact: Expression, dialect: str
    ) -> Expression:
        column = self.source.columns[condition.column]
        positive = condition.operator == "in"

        def test(expression: Expression) -> Expression:
            if dialect in _SORTS_ALL:
                listed: Expression = sa.literal_column(token(number))
                return expression.op("IN" if positive else "NOT IN", is_comparison=True)(listed)
            bound = sa.bindparam(f"c{number}_0", None, sa.Text())
            rows = rows_of(bound, column.kind, self.source.table.c[condition.column].type, dialect)
            return expression.in_(rows) if positive else expression.not_in(rows)

        if positive:
            return test(value) if value is exact else sa.and_(test(value), test(exact))
        return sa.or_(test(exact), value.is_(None)) if column.nullable else test(exact)

    # ---- order and position

    def _order_by(self, dialect: str, segment: Segment, keys: Sequence[tuple[int, Key]]) -> list[Expression]:
        clauses: list[Any] = []
        for number, key in keys:
            expression = self.source.sortable(key.column, dialect)
            directed: Any = expression.desc() if key.descending else expression.asc()
            if key.nullable and (number > 0 or segment.leading == "both"):
                clauses += _ranked(expression, directed, dialect, key)
            else:
                clauses.append(directed)
        return clauses

    def _after(
        self, dialect: str, segment: Segment, keys: Sequence[tuple[int, Key]], nulls: tuple[bool, ...]
    ) -> list[Expression]:
        """Strictly after the position, and the leading key's own bound, without which no index is sought."""
        expressions = {i: self.source.sortable(key.column, dialect) for i, key in keys}
        choices: list[Expression] = []
        for place, (i, key) in enumerate(keys):
            ranked = i > 0 or segment.leading == "both"
            beyond = self._beyond(dialect, i, key, expressions[i], null=nulls[i], ranked=ranked)
            if beyond is not None:
                equal = [self._same(dialect, j, other, expressions[j], null=nulls[j]) for j, other in keys[:place]]
                choices.append(sa.and_(*equal, beyond))
        tests: list[Expression] = [sa.or_(*choices)] if choices else [sa.false()]
        if segment.leading in {"any", "values"} and not segment.tied and len(keys) > 1:
            bound: Expression = self._parameter("k0", keys[0][1].column)
            if dialect == "sqlite" and keys[0][1].kind in _AS_TEXT and not keys[0][1].descending:
                bound = _shortest(bound)
            tests.insert(0, expressions[0] <= bound if keys[0][1].descending else expressions[0] >= bound)
        return tests

    def _beyond(
        self, dialect: str, number: int, key: Key, expression: Expression, *, null: bool, ranked: bool
    ) -> Expression | None:
        if null:
            return expression.is_not(None) if key.nulls_first else None
        bound: Expression = self._parameter(f"k{number}", key.column)
        if dialect == "sqlite" and key.kind in _AS_TEXT and key.descending:
            bound = _shortest(bound)
        after: Expression = expression < bound if key.descending else expression > bound
        if key.nullable and not key.nulls_first and ranked:
            return sa.or_(after, expression.is_(None))
        return after

    def _same(self, dialect: str, number: int, key: Key, expression: Expression, *, null: bool) -> Expression:
        if null:
            return expression.is_(None)
        bound = self._parameter(f"k{number}", key.column)
        if dialect == "sqlite" and key.kind in _AS_TEXT:
            return sa.and_(expression >= _shortest(bound), expression <= bound)
        return expression == bound

    # ---- compiling

    def _compile(self, dialect: Dialect, statement: sa.Select[Any]) -> Statement:
        return compiled(statement, dialect, self._kinds, lambda name: self._single(name, dialect))

    def _single(self, name: str, dialect: Dialect) -> bool:
        """Whether a parameter is tested for equality with a column of single precision, and so is to be rounded."""
        if name[0] != "c" or not name[1:2].isdigit():
            return False
        condition = self.conditions[int(name[1:].partition("_")[0])]
        if condition.operator not in {"eq", "ne", "in", "not_in"}:
            return False
        return is_single(self.source.table.c[condition.column].type, dialect_name(dialect))

    def _kinds(self, binds: Mapping[str, Any]) -> dict[str, Kind]:
        """The parameters that change from call to call, with what they hold."""
        kinds: dict[str, Kind] = {}
        for number, condition in enumerate(self.conditions):
            kind = Kind.TEXT if condition.packed else self.source.columns[condition.column].kind
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


def _words(query: Query) -> dict[str, tuple[str, ...]]:
    names = ("tags", "tags_any", "not_tags", "not_tags_any")
    return {name: tuple(sorted(map(str.__str__, getattr(query, name)))) for name in names if getattr(query, name)}


def _bound(condition: Condition) -> tuple[Any, ...]:
    """The values that a condition sends: a prefix becomes a range; lists have few lengths, so that texts are few."""
    if condition.packed:
        return ("",)  # the one value is made for each kind of database
    if condition.operator in {"in", "not_in"} and len(condition.values) > _SHORT_LIST:
        values = condition.values
        size = min(1 << (len(values) - 1).bit_length(), _LONGEST_LIST)
        return values + values[-1:] * (size - len(values))
    if condition.operator != "prefix":
        return condition.values
    end = prefix_end(condition.values[0])
    return condition.values if end is None else (condition.values[0], end)


def _comparison(operator: str, exact: Expression, bounds: Sequence[Expression], dialect: str) -> Expression:
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


def _ranked(expression: Expression, directed: Any, dialect: str, key: Key) -> list[Any]:
    if dialect not in _SORTS_ALL:
        return [directed.nulls_first() if key.nulls_first else directed.nulls_last()]
    if key.nulls_first != key.descending:  # as the database has it: NULL is its smallest value
        return [directed]
    return [expression.is_not(None) if key.nulls_first else expression.is_(None), directed]


_BY_KIND: dict[Kind, sa.types.TypeEngine[Any]] = {
    Kind.TEXT: sa.String(),
    Kind.INTEGER: sa.BigInteger(),
    Kind.FLOAT: sa.Double(),
}
_AS_TEXT = frozenset({Kind.INSTANT, Kind.TIME})
"""Kinds that SQLite keeps as text with or without a fraction of a second."""


def _shortest(bound: Expression) -> Expression:
    """The shortest text of an instant, which sorts before its other forms: no zeros at the end of its fraction."""
    return sa.func.rtrim(sa.func.rtrim(bound, sa.literal_column("'0'")), sa.literal_column("'.'"))

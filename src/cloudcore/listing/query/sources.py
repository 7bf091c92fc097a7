"""Record sources: which table of a cell is listed, what its columns hold, what counts as deleted or hidden."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import attrs
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql

from cloudcore.errors import InvalidArgument, InvalidQuery
from cloudcore.listing.query.conditions import Column
from cloudcore.listing.query.kinds import Kind
from cloudcore.listing.values import Sort

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy.engine import Engine

    from cloudcore.listing.values import Query

__all__ = ["RecordSource", "is_single", "pin"]

Expression = sa.ColumnElement[Any]


class RecordSource:
    """A table that exists in every cell and is listed as if it were one.

    Immutable, and may be shared by routers and threads.

    Args:
        table: The table, the same in every cell; made by hand or by reflection (:meth:`reflect`).
        key: Column that no two records share over all cells; it closes every order. Not NULL. A number that each cell
            counts for itself is none: such a listing is refused when two cells have the same.
        tenant, host: Columns of that meaning, which the directory routes by; None if there are none.
        updated: The column that changes-since and changes-before compare.
        deleted: A boolean column that marks deleted records; None if they are really gone.
        hidden: A boolean column that marks records not to be shown.
        columns: Names to show, None for all.
        wide: Columns with large values, which are fetched only for the rows of a page.
        pinned: Columns that every cell's database compares byte by byte, so that no collation need be named.
        refine: What the types of the table cannot tell: column facts that replace the derived ones.
        metadata: Table of pairs with its columns for record key, pair key and pair value.
        tags: Table of tags with its columns for record key and tag.
    """

    name: str
    tenant: str | None
    host: str | None
    updated: str | None
    deleted: str | None
    hidden: str | None

    def __init__(
        self,
        table: sa.Table,
        *,
        key: str = "uuid",
        tenant: str | None = None,
        host: str | None = None,
        updated: str | None = None,
        deleted: str | None = None,
        hidden: str | None = None,
        columns: Iterable[str] | None = None,
        wide: Iterable[str] = (),
        pinned: Iterable[str] = (),
        refine: Mapping[str, Column] | None = None,
        metadata: tuple[sa.Table, str, str, str] | None = None,
        tags: tuple[sa.Table, str, str] | None = None,
    ) -> None:
        self.table = table
        self.name = table.name
        self.key = key
        self.tenant, self.host, self.updated = tenant, host, updated
        self.deleted, self.hidden = deleted, hidden
        self._metadata, self._tags = metadata, tags
        names = list(columns) if columns is not None else [column.name for column in table.columns]
        wide, pinned = frozenset(wide), frozenset(pinned)
        found = {name: _column(self._table_column(name), name in wide, name in pinned) for name in names}
        found.update(refine or {})
        if key in found:
            found[key] = attrs.evolve(found[key], nullable=False, uuid=key == "uuid" and found[key].kind is Kind.TEXT)
        self.columns: Mapping[str, Column] = MappingProxyType(found)
        for name in filter(None, (key, tenant, host, updated, deleted, hidden)):
            self._table_column(name)
        if key not in found:
            raise InvalidArgument(f"{table.name}: the key column {key} must be among the columns shown", field="key")
        if found[key].kind is Kind.BINARY:
            raise InvalidArgument(
                f"{table.name}: the key column {key} holds bytes; a key is text, a UUID or a number", field="key"
            )

    def _table_column(self, name: str) -> sa.Column[Any]:
        if name not in self.table.c:
            raise InvalidArgument(f"{self.table.name} has no column {name!r}", field="columns", value=name)
        return self.table.c[name]

    @classmethod
    def reflect(
        cls, engine: Engine, table: str, *, key: str, schema: str | None = None, **options: Any
    ) -> RecordSource:
        """A source from the table as it is in one cell's database; every other cell must have it with the same columns.

        Raises:
            InvalidArgument: There is no such table, or it lacks a column that was named.
        """
        try:
            reflected = sa.Table(table, sa.MetaData(), schema=schema, autoload_with=engine)
        except sa.exc.NoSuchTableError as error:
            raise InvalidArgument(f"there is no table {table!r} to reflect", field="table", value=table) from error
        return cls(reflected, key=key, **options)

    @property
    def default_sort(self) -> tuple[Sort, ...]:
        """The order of a query that names none: newest first where that is known, else by key."""
        return (Sort("created_at", descending=True),) if "created_at" in self.columns else ()

    def check(self, query: Query) -> None:
        """Refuse what this source cannot filter by.

        Raises:
            InvalidQuery: It has no tags, or no metadata.
        """
        if query.metadata and self._metadata is None:
            raise InvalidQuery(f"{self.name} has no metadata to filter by", field="metadata")
        if self._tags is None and (query.tags or query.tags_any or query.not_tags or query.not_tags_any):
            raise InvalidQuery(f"{self.name} has no tags to filter by", field="tags")

    @property
    def uuids(self) -> bool:
        """Whether keys are UUIDs, which callers may write in any form."""
        return self.key == "uuid" or self.columns[self.key].kind is Kind.UUID

    # ---- expressions, per dialect

    def value(self, name: str, dialect: str) -> Expression:
        """What is tested for equality: the column itself unless a database keeps it in a foreign form."""
        column = self.table.c[name]
        if dialect == "postgresql" and _is_enum(column):
            return sa.cast(column, sa.Text())  # with a type of its own, which compares with nothing else
        return column

    def selected(self, name: str, dialect: str) -> Expression:
        """What is fetched: :meth:`value`, in a form that loses nothing and that is the same for every database."""
        expression, kind = self._unpadded(name, dialect), self.columns[name].kind
        if kind is Kind.JSON and dialect == "postgresql":
            return sa.cast(expression, sa.Text())  # else one driver parses it and the other does not
        if kind is Kind.FLOAT and is_single(self.table.c[name].type, dialect):
            if dialect == "postgresql":
                return sa.cast(expression, sa.Double())
            return expression + sa.literal_column("0e0")  # MariaDB shows but six digits of a FLOAT
        return expression

    def sortable(self, name: str, dialect: str) -> Expression:
        """What is ordered by and compared: text by code point, whatever collation the column has."""
        column, expression = self.columns[name], self._unpadded(name, dialect)
        if column.kind is Kind.UUID and dialect == "mariadb" and _is_native_uuid(self.table.c[name].type):
            return sa.cast(expression, sa.CHAR(36))  # its own order is another one
        if column.kind is not Kind.TEXT or column.pinned:
            return expression
        return pin(expression, dialect)

    def _unpadded(self, name: str, dialect: str) -> Expression:
        """:meth:`value`, without the spaces that PostgreSQL fills up CHAR with when it is read, and no other does."""
        expression, column = self.value(name, dialect), self.columns[name]
        if dialect == "postgresql" and isinstance(expression.type, sa.CHAR) and not column.pinned:
            return sa.cast(expression, sa.Text())
        return expression

    def standing(self, query: Query) -> list[Expression]:
        """Tests that every query carries: live or deleted, hidden or not."""
        tests: list[Expression] = []
        if self.deleted is not None and query.deleted is not None:
            tests.append(self.table.c[self.deleted] == sa.literal(query.deleted, sa.Boolean()))
        if self.hidden is not None and not query.hidden:
            tests.append(self._unhidden(self.table.c[self.hidden]))
        return tests

    def confined(self, query: Query) -> frozenset[str]:
        """Columns that :meth:`standing` confines to one value each."""
        deleted = () if query.deleted is None else (self.deleted,)
        hidden = () if query.hidden or self.hidden is None or self.table.c[self.hidden].nullable else (self.hidden,)
        return frozenset(filter(None, (*deleted, *hidden)))

    def _unhidden(self, column: sa.Column[Any]) -> Expression:
        shown: Expression = column == sa.literal(value=False, type_=sa.Boolean())
        return sa.or_(column.is_(None), shown) if column.nullable else shown

    def has_pair(self, key: sa.BindParameter[Any], value: sa.BindParameter[Any], dialect: str) -> Expression:
        """The record has this pair of metadata."""
        assert self._metadata is not None  # check() has seen to it
        table, owner, name, content = self._metadata
        tests = [table.c[owner] == self.table.c[self.key], *_among(table.c[name], [key], dialect)]
        return sa.exists().where(*tests, *_among(table.c[content], [value], dialect), *self._live(table))

    def has_tag(self, tags: list[sa.BindParameter[Any]], dialect: str) -> Expression:
        """The record has at least one of these tags."""
        assert self._tags is not None  # check() has seen to it
        table, owner, name = self._tags
        return sa.exists().where(table.c[owner] == self.table.c[self.key], *_among(table.c[name], tags, dialect))

    def _live(self, table: sa.Table) -> list[Expression]:
        """Tests for rows of a side table that count."""
        return []

    def __repr__(self) -> str:
        return f"<RecordSource {self.name}>"


def is_single(type_: sa.types.TypeEngine[Any], dialect: str) -> bool:
    """Whether a column of this type has single precision: REAL on PostgreSQL, FLOAT on MariaDB, none on SQLite."""
    variants = type_._variant_mapping  # noqa: SLF001 - has no other name
    type_ = variants.get(dialect) or variants.get("mysql" if dialect == "mariadb" else dialect) or type_
    if isinstance(type_, sa.types.TypeDecorator):
        type_ = type_.impl_instance
    if dialect == "sqlite" or not isinstance(type_, sa.Float) or isinstance(type_, sa.Double):
        return False
    most = type_.precision or 0
    if dialect == "postgresql":
        return isinstance(type_, sa.REAL) or 0 < most <= 24
    return not isinstance(type_, sa.REAL | mysql.REAL | mysql.DOUBLE) and most <= 24


def pin(expression: Expression, dialect: str) -> Expression:
    """*expression* compared and ordered by code point, trailing spaces included."""
    if dialect == "sqlite":
        return expression.collate("BINARY")
    if dialect == "postgresql":
        return sa.cast(expression, sa.Text()).collate("C") if _is_enum(expression) else expression.collate("C")
    collation = "utf8mb4_nopad_bin" if dialect == "mariadb" else "utf8mb4_0900_bin"
    return sa.func.convert(expression.op("USING")(sa.literal_column("utf8mb4"))).collate(collation)


def _is_enum(expression: Expression) -> bool:
    return isinstance(expression.type, sa.Enum)


def _is_native_uuid(type_: sa.types.TypeEngine[Any]) -> bool:
    return isinstance(type_, sa.UUID) or (isinstance(type_, sa.Uuid) and bool(type_.native_uuid))


def _among(column: sa.Column[Any], values: list[sa.BindParameter[Any]], dialect: str) -> list[Expression]:
    """Equality to one of *values* that an index serves, and that is exact where the column's collation is not."""
    compared: list[Expression] = [column]
    if dialect in {"mysql", "mariadb"} and not column.info.get("exact"):
        compared.append(pin(column, dialect))
    return [each == values[0] if len(values) == 1 else each.in_(values) for each in compared]


_KINDS: tuple[tuple[tuple[type[sa.types.TypeEngine[Any]], ...], Kind], ...] = (
    ((sa.Boolean,), Kind.BOOLEAN),
    ((sa.Enum,), Kind.TEXT),
    ((sa.Uuid,), Kind.UUID),
    ((sa.String,), Kind.TEXT),
    ((sa.JSON,), Kind.JSON),
    ((sa.Integer,), Kind.INTEGER),
    ((sa.Float,), Kind.FLOAT),
    ((sa.Numeric,), Kind.DECIMAL),
    ((sa.DateTime,), Kind.INSTANT),
    ((sa.Date,), Kind.DATE),
    ((sa.Time,), Kind.TIME),
    ((sa.BINARY, sa.VARBINARY, sa.LargeBinary, mysql.TINYBLOB), Kind.BINARY),
)
_LONGEST_BINARY = 1024
"""Bytes by which MariaDB and MySQL sort, unless told otherwise (``max_sort_length``)."""


def _column(column: sa.Column[Any], wide: bool, pinned: bool) -> Column:
    kind = _kind(column.type)
    opaque = kind in {Kind.OTHER, Kind.JSON}
    return Column(
        name=column.name,
        kind=kind,
        nullable=bool(getattr(column, "nullable", True)) and not column.primary_key,
        sortable=not (wide or opaque or isinstance(column.type, mysql.LONGTEXT | mysql.MEDIUMTEXT)),
        wide=wide or opaque,
        pinned=pinned,
        textual=not isinstance(column.type, sa.Uuid),
        scale=_scale(column.type) if kind is Kind.DECIMAL else None,
    )


def _scale(type_: sa.types.TypeEngine[Any]) -> int | None:
    if isinstance(type_, sa.types.TypeDecorator):
        type_ = type_.impl_instance
    scale: int | None = getattr(type_, "scale", None)
    return scale


def _kind(type_: sa.types.TypeEngine[Any]) -> Kind:
    if isinstance(type_, sa.types.TypeDecorator):
        type_ = type_.impl_instance
    if isinstance(type_, mysql.TINYINT) and type_.display_width == 1:
        return Kind.BOOLEAN
    if isinstance(type_, postgresql.UUID):
        return Kind.UUID
    for types, kind in _KINDS:
        if isinstance(type_, types):
            return Kind.OTHER if kind is Kind.BINARY and not _orders_well(type_) else kind
    return Kind.OTHER


def _orders_well(type_: Any) -> bool:
    """Whether bytes of this type are short enough to be ordered by everywhere, or PostgreSQL's, which always are."""
    return isinstance(type_, postgresql.BYTEA | mysql.TINYBLOB) or 0 < (type_.length or 0) <= _LONGEST_BINARY

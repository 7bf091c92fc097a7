"""Column types that hold and order the same on every database, and the metadata that all tables stand in.

Identifiers and names are compared byte by byte, whatever the server's collation; instants keep their microseconds and
come back in UTC; JSON is the database's own where it has one.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from cloudcore.errors import InvalidArgument

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import Dialect
    from sqlalchemy.sql.compiler import SQLCompiler

__all__ = ["Instant", "Json", "Text", "Uuid", "metadata", "utc_now"]

metadata: sa.MetaData = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
"""The tables of every area. Constraint names are fixed, so that three databases and the migrations agree on them."""


def Uuid() -> sa.types.TypeEngine[str]:  # noqa: N802 - it is used as a type
    """Column type of an identifier: 36 characters, compared byte by byte on every database."""
    return (
        sa.String(36)
        .with_variant(postgresql.VARCHAR(36, collation="C"), "postgresql")
        .with_variant(mysql.CHAR(36, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
    )


def Text(length: int = 255) -> sa.types.TypeEngine[str]:  # noqa: N802 - it is used as a type
    """Column type of a name: up to *length* characters, ordered by code point and case-sensitive on every database."""
    return (
        sa.String(length)
        .with_variant(postgresql.VARCHAR(length, collation="C"), "postgresql")
        .with_variant(mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
    )


class Instant(sa.types.TypeDecorator[datetime]):
    """A point in time with microseconds: timezone-aware UTC in Python, sortable in every database."""

    impl: sa.types.TypeEngine[Any] | type[sa.types.TypeEngine[Any]] = sa.DateTime(timezone=True)
    cache_ok: bool | None = True

    def load_dialect_impl(self, dialect: Dialect) -> sa.types.TypeEngine[Any]:
        """Microseconds on MariaDB/MySQL too, which would drop them."""
        if dialect.name in {"mysql", "mariadb"}:
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return dialect.type_descriptor(sa.DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive instants; store UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise InvalidArgument(f"{value!r} has no time zone", value=value)
        value = value.astimezone(UTC)
        return value if dialect.name == "postgresql" else value.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the time zone back."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def Json() -> sa.types.TypeEngine[Any]:  # noqa: N802 - it is used as a type
    """Column type of a JSON document."""
    return sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


class utc_now(FunctionElement[datetime]):  # noqa: N801 - it is written as a function of SQL
    """The database's clock, in the form that :class:`Instant` stores; also as the default of a column."""

    inherit_cache: bool | None = True
    type: sa.types.TypeEngine[datetime] = Instant()


@compiles(utc_now)
def _on_postgresql(element: utc_now, compiler: SQLCompiler, **_: Any) -> str:
    return "statement_timestamp()"


@compiles(utc_now, "sqlite")
def _on_sqlite(element: utc_now, compiler: SQLCompiler, **_: Any) -> str:
    return "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')"


@compiles(utc_now, "mysql", "mariadb")
def _on_mariadb(element: utc_now, compiler: SQLCompiler, **_: Any) -> str:
    return "(UTC_TIMESTAMP(6))"

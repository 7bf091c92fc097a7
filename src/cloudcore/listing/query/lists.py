"""Long lists of a filter: sent as one value in whose rows the database looks, not as a parameter for each. Pure.

A parameter for each of 100,000 values costs the interpreter seconds, for building the statement and for every cell.
SQLite and PostgreSQL get a JSON document, which they read without the interpreter. MariaDB and MySQL get the list as
literals in the text: these take the collation of what they are compared with, so that an index serves, and the server
makes a table of them itself.
"""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from cloudcore.listing.query.kinds import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = ["LONG", "MOST_LISTED", "MOST_SENT", "PACKED", "TOKEN", "document", "literals", "rows_of", "size_of", "token"]

LONG = 1_000
"""Values up to which a list is sent as parameters."""
MOST_LISTED = 100_000
"""Values of all lists of a query that are sent as one value each."""
MOST_SENT = 7_500_000
"""Characters of the literals of all these lists, each of which may stand twice: MariaDB takes 16 MiB."""
PACKED = frozenset({Kind.TEXT, Kind.UUID, Kind.INTEGER})
"""What a document holds exactly."""
_STEP = 2_000
"""Values that are written in one go: other threads come in between."""
_SAFE = re.compile(r"[0-9A-Za-z_.:@/ -]*\Z")
"""Text that is a literal between quotes as it is, whatever the server's mode and the driver's formatting."""

Expression = sa.ColumnElement[Any]


def _steps(values: Sequence[Any]) -> Iterator[list[Any]]:
    left = iter(values)
    while step := list(islice(left, _STEP)):
        yield step


def document(values: Sequence[Any], encode: Callable[[Any], Any]) -> str:
    """The values as JSON, text by its characters."""
    return f"[{','.join(_joined(step, encode) for step in _steps(values))}]"


def _joined(step: Iterable[Any], encode: Callable[[Any], Any]) -> str:
    return json.dumps(list(map(encode, step)), ensure_ascii=False, separators=(",", ":"))[1:-1]


def literals(values: Sequence[Any], encode: Callable[[Any], Any]) -> str:
    """The values as SQL for MariaDB and MySQL, in parentheses."""
    return f"({','.join(','.join(map(_literal, map(encode, step))) for step in _steps(values))})"


def _literal(value: Any) -> str:
    if isinstance(value, int):
        return str(value)
    return f"'{value}'" if _SAFE.match(value) else f"_utf8mb4 X'{value.encode().hex()}'"


def size_of(values: Iterable[Any]) -> int:
    """Characters of their literals."""
    return sum(_size(value) for value in values)


def _size(value: Any) -> int:
    if isinstance(value, int):
        return 20
    return len(value) + 3 if _SAFE.match(value) else 2 * len(value.encode()) + 13


TOKEN = re.compile("cloudcore_list_[0-9]+_")
"""What :func:`token` gives."""


def token(number: int) -> str:
    """Stands for the literals of a condition in a statement's text, until it is sent."""
    return f"cloudcore_list_{number}_"


def rows_of(bound: Expression, kind: Kind, type_: sa.types.TypeEngine[Any], dialect: str) -> sa.Select[Any]:
    """The values of a document as rows, on SQLite and PostgreSQL.

    Args:
        bound: The document.
        kind: What it holds.
        type_: Of the column that it is compared with.
        dialect: The database's.
    """
    if dialect == "sqlite":
        return sa.select(sa.func.json_each(bound).table_valued("value").c.value)
    element = sa.func.json_array_elements_text(sa.cast(bound, sa.JSON())).column_valued("element")
    cast: dict[Kind, sa.types.TypeEngine[Any]] = {Kind.INTEGER: sa.BigInteger(), Kind.UUID: type_}
    return sa.select(sa.cast(element, cast.get(kind, sa.Text())))

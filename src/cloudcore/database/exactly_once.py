"""Operations: calls that take effect once, however often they are repeated.

The id of a call and its result are stored in the transaction that has the effect. A repeat finds the id taken and is
given the stored result; the id used for another call is refused.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import attrs
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from cloudcore._values import require_text
from cloudcore.database.column_types import Instant, Text, metadata
from cloudcore.errors import InvalidArgument, OperationMismatch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["FIND", "FINISH", "Operation", "Outcome", "operations"]

T = TypeVar("T")

operations: sa.Table = sa.Table(
    "operations",
    metadata,
    sa.Column("id", Text(64), primary_key=True),
    sa.Column("name", Text(64), nullable=False),
    sa.Column("fingerprint", Text(64), nullable=False),
    sa.Column("result", sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")),
    sa.Column("created_at", Instant(), nullable=False),
    sa.Index(None, "created_at"),
    sqlite_with_rowid=False,
)
"""What was done under which operation id, written in the transaction that did it. Old rows may be pruned."""

FIND = sa.select(operations.c.name, operations.c.fingerprint, operations.c.result).where(
    operations.c.id == sa.bindparam("the_id")
)
"""What is stored under ``the_id``."""

FINISH = sa.update(operations).where(operations.c.id == sa.bindparam("the_id")).values(result=sa.bindparam("text"))
"""Stores the result ``text`` under ``the_id``."""

_ORDERED = json.JSONEncoder(sort_keys=True, separators=(",", ":"))  # json.dumps would make one for each call


@attrs.frozen(kw_only=True)
class Operation:
    """A call that takes effect once. Make it with :meth:`of`.

    Attributes:
        id: Chosen by the caller, up to 64 characters; repeats use the same.
        name: The kind of call, such as ``"ledger.claim"``.
        fingerprint: SHA-256 of name and arguments, in hex: tells a repeat from a mistaken reuse.
    """

    id: str
    name: str
    fingerprint: str

    @classmethod
    def of(
        cls,
        name: str,
        arguments: Mapping[str, Any],
        operation_id: str | None = None,
        *,
        id_factory: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> Operation:
        """Describe one call. *arguments* must be JSON; without *operation_id* a fresh one is made.

        Raises:
            InvalidArgument: The id is empty, longer than 64 characters, or ends in a space: MariaDB and MySQL take such
                a text and that without the space for the same, and the second of two calls would not be done.
        """
        identifier = id_factory() if operation_id is None else operation_id
        require_text(identifier, "operation_id", maximum=64)
        if identifier.endswith(" "):
            raise InvalidArgument(
                f"operation_id: {identifier!r} ends in a space, which not every database tells apart from none",
                field="operation_id",
                value=identifier,
            )
        text = _ORDERED.encode([name, arguments])
        return cls(id=identifier, name=name, fingerprint=hashlib.sha256(text.encode()).hexdigest())

    def matches(self, name: str, fingerprint: str) -> None:
        """Check that a stored operation is this one.

        Raises:
            OperationMismatch: The id was used for something else.
        """
        if (name, fingerprint) != (self.name, self.fingerprint):
            raise OperationMismatch(
                f"operation {self.id} was used for {name} with other arguments; "
                f"{self.name} was not done. Use a new operation id for a new call",
                operation_id=self.id,
                identifier=self.id,
            )


@attrs.frozen(kw_only=True)
class Outcome(Generic[T]):
    """The result of an operation, and whether an earlier call had already done it."""

    result: T
    repeated: bool

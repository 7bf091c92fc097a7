"""Which kind of database it is, MariaDB told from MySQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect

__all__ = ["dialect_name"]


def dialect_name(dialect: Dialect) -> str:
    """``sqlite``, ``postgresql``, ``mariadb`` or ``mysql``; known for certain once the dialect has connected."""
    if dialect.name in {"mysql", "mariadb"}:
        return "mariadb" if getattr(dialect, "is_mariadb", False) else "mysql"
    return dialect.name

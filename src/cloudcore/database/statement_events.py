"""Telling of statements that go past SQLAlchemy's executor, so that what listens there does not see them."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cloudcore.observability import teller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["told", "told_statement"]


def told(cursor: Any, event_name: str, dialect: str) -> Any:
    """The *cursor* itself if nobody looks; else one that makes an event of each statement, without its parameters."""
    tell = teller(event_name.partition(".")[0], logging.DEBUG)
    return cursor if tell is None else _ToldCursor(cursor, tell, event_name, dialect)


@contextmanager
def told_statement(
    tell: Callable[..., None],
    event_name: str,
    dialect: str,
    text: str,
    *,
    clock: Callable[[], float] = time.monotonic,
    **fields: Any,
) -> Iterator[dict[str, Any]]:
    """Tell of a statement once it is over; what the block is given takes further fields.

    Its parameters are not told: they may hold what is secret.
    """
    began = clock()
    try:
        yield fields
    except Exception as error:
        fields["error"] = type(error).__name__
        raise
    finally:
        what = {"db.system.name": dialect, "db.query.text": text.strip()}
        tell(event_name, logging.DEBUG, seconds=round(clock() - began, 6), **what, **fields)


class _ToldCursor:
    def __init__(self, cursor: Any, tell: Callable[..., None], event_name: str, dialect: str) -> None:
        self._cursor, self._tell, self._event_name, self._dialect = cursor, tell, event_name, dialect

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def execute(self, text: str, *parameters: Any) -> Any:
        with told_statement(self._tell, self._event_name, self._dialect, text):
            return self._cursor.execute(text, *parameters)

    def executemany(self, text: str, *parameters: Any) -> Any:
        with told_statement(self._tell, self._event_name, self._dialect, text):
            return self._cursor.executemany(text, *parameters)

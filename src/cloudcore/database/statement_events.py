"""Telling of statements that go past SQLAlchemy's executor, so that what listens there does not see them."""

from __future__ import annotations

import functools
import logging
import time
from typing import TYPE_CHECKING, Any

from cloudcore.observability import teller

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["told"]


def told(cursor: Any, event_name: str, dialect: str) -> Any:
    """The *cursor* itself if nobody looks; else one that makes an event of each statement, without its parameters."""
    tell = teller(event_name.partition(".")[0], logging.DEBUG)
    return cursor if tell is None else _ToldCursor(cursor, functools.partial(tell, event_name), dialect)


class _ToldCursor:
    def __init__(self, cursor: Any, tell: Callable[..., None], dialect: str) -> None:
        self._cursor, self._told, self._dialect = cursor, tell, dialect

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def execute(self, text: str, *parameters: Any) -> Any:
        return self._tell(self._cursor.execute, text, parameters)

    def executemany(self, text: str, *parameters: Any) -> Any:
        return self._tell(self._cursor.executemany, text, parameters)

    def _tell(self, send: Any, text: str, parameters: tuple[Any, ...]) -> Any:
        began, error = time.monotonic(), None
        try:
            return send(text, *parameters)
        except Exception as raised:
            error = type(raised).__name__
            raise
        finally:
            seconds = round(time.monotonic() - began, 6)
            what = {"db.system.name": self._dialect, "db.query.text": text.strip()}
            self._told(logging.DEBUG, **what, seconds=seconds, error=error)

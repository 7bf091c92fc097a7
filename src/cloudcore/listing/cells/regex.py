"""REGEXP for SQLite, which has none of its own: RE2, whose time is linear in the text whatever the pattern.

Python's ``re`` is no engine for other people's patterns: it runs under the interpreter's lock, where no deadline
reaches it, and ``^(a+)+$`` takes twice as long with each further letter.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from cloudcore._extras import require_extra
from cloudcore.errors import MissingExtra, StatementRefused

__all__ = ["RegexFunction"]


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> Any:
    engine = require_extra("re2", "regex")
    options = engine.Options()
    options.log_errors = False
    try:
        return engine.compile(pattern, options)
    except engine.error as error:
        words = error.args[0] if error.args else ""
        words = words.decode() if isinstance(words, bytes) else str(words)
        raise StatementRefused(f"{pattern!r} is no pattern of RE2: {words}", values=True) from error


class RegexFunction:
    """The function of one connection.

    Attributes:
        error: Why its last call failed, which SQLite does not pass on.
    """

    def __init__(self) -> None:
        self.error: StatementRefused | None = None

    def require(self) -> None:
        """Refuse before anything is read when there is no engine.

        Raises:
            StatementRefused: The extra is not installed.
        """
        try:
            require_extra("re2", "regex")
        except MissingExtra as error:
            raise StatementRefused(f"a SQLite cell matches patterns with RE2: {error}", values=True) from error

    def __call__(self, pattern: str, value: Any) -> bool | None:
        """``value REGEXP pattern``."""
        if value is None or isinstance(value, bytes):
            return None
        try:
            return _compiled(pattern).search(str(value)) is not None
        except StatementRefused as error:
            self.error = error
            raise

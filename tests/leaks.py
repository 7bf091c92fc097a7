"""Reads everything that cloudcore logs while the tests run, at every level, and finds what must not be there."""

from __future__ import annotations

import logging
import re

__all__ = ["SCAN"]

_SECRETS = re.compile(
    r"""
      ://[^\s/:@]+:(?!\*\*\*@)[^\s/@]+@        # a password in a URL
    | \bAQ[A-Za-z0-9+/]{36}==                  # a key of Ceph's
    | auth_password | secret_key | keyring     # the names under which connection information holds secrets
    | s3cret | chap-password | hush            # what the tests of secrets hide
    | X-Auth-Token | X-Service-Token
    """,
    re.VERBOSE,
)


class _Scan(logging.Handler):
    """Collects the records that hold a secret."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.found: list[str] = []
        self.read = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.read += 1
        text = f"{record.getMessage()} {getattr(record, 'fields', '')}"
        if record.exc_info and record.exc_info[1] is not None:
            text += f" {record.exc_info[1]!r}"
        if _SECRETS.search(text):
            self.found.append(f"{record.name} ({record.pathname}:{record.lineno})")


SCAN = _Scan()


def watch() -> None:
    """Read everything from now on."""
    logger = logging.getLogger("cloudcore")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(SCAN)

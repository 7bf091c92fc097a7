"""Every error that cloudcore raises while the tests run is pickled and made JSON of.

Errors promise both; which of them a call really raises, and with what facts, only real calls tell.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import cloudcore
from cloudcore import errors

__all__ = ["check", "watch"]

_SOURCE = str(Path(cloudcore.__file__).parent)
_MANY = 20
_FRESH: list[errors.CloudcoreError] = []
_SEEN: set[str] = set()
"""Names of the classes that were tried so far: of a new one an error is kept, however many there are."""


def watch() -> None:
    """Keep what is made in cloudcore from now on."""
    original = errors.CloudcoreError.__init__

    def made(self: errors.CloudcoreError, message: str = "", /, **facts: object) -> None:
        original(self, message, **facts)
        wanted = len(_FRESH) < _MANY or type(self).__name__ not in _SEEN
        if wanted and sys._getframe(1).f_code.co_filename.startswith(_SOURCE):
            _FRESH.append(self)

    errors.CloudcoreError.__init__ = made  # type: ignore[method-assign]


def check() -> list[str]:
    """What is wrong with the errors that were made since the last time."""
    fresh, wrong = list(_FRESH), []
    _FRESH.clear()
    for error in fresh:
        name = type(error).__name__
        _SEEN.add(name)
        try:
            copy = pickle.loads(pickle.dumps(error))
            if (type(copy), str(copy)) != (type(error), str(error)):
                wrong.append(f"{name} comes out of a pickle as {copy!r}")
            json.dumps(error.as_fields(), allow_nan=False)
        except Exception as failure:
            wrong.append(f"{name} ({error}): {type(failure).__name__}: {failure}")
        if not str(error):
            wrong.append(f"{name} says nothing")
    _FRESH.clear()
    return wrong

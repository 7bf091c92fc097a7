"""Interrupts a call at its n-th moment, wherever that is, as a signal might."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudcore

__all__ = ["Moments", "at_each_moment"]

_OURS = str(Path(cloudcore.__file__).parent)
_WAITS = frozenset({"acquire"})
"""Calls into C that a signal interrupts while they wait, and that have done nothing then."""


class Moments:
    """Counts the moments at which CPython runs a signal's handler, and raises KeyboardInterrupt at one of them.

    That is where a function begins and where a call into C has come back, in the frames below *folder*, and in those of
    the standard library and SQLAlchemy that they call directly; never between two assignments. Also while a lock is
    waited for.

    Args:
        number: The moment to raise at, from 0; None: only count.
        folder: Of the package whose frames are looked at.
    """

    def __init__(self, number: int | None, folder: str) -> None:
        self.number, self.count = number, 0
        self.raised: str | None = None
        self._folder = f"{_OURS}/{folder}"

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        if event == "c_call":
            if getattr(argument, "__name__", "") not in _WAITS:
                return
        elif event not in {"call", "c_return"}:
            return
        caller = frame.f_back
        if not frame.f_code.co_filename.startswith(self._folder) and not (
            caller is not None and caller.f_code.co_filename.startswith(self._folder)
        ):
            return
        if frame.f_code.co_name == "__del__":  # raised there it would be heard by nobody
            return
        if self.count == self.number:
            self.raised = f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}, {event} {argument}"
            raise KeyboardInterrupt
        self.count += 1


def at_each_moment(
    call: Callable[[], object], folder: str, *, step: int = 1, first: int = 0, ends: int = 1
) -> Iterator[str]:
    """Make *call* again and again, interrupted at each *step*-th moment; where, each time.

    Until *ends* calls in a row have come to their end before that: more than one where they go several ways.
    """
    number, ended, interrupted = first, 0, False
    while ended < ends:
        moments = Moments(number, folder)
        try:
            sys.setprofile(moments)
            call()
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        number += step
        if moments.raised is None:
            ended += 1
        else:
            ended, interrupted = 0, True
            yield moments.raised
    assert first or interrupted, f"no moment in {folder}"

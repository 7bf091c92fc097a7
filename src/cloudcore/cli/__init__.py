"""The command line ``cloudcore``, for people at a terminal and for scripts. Needs the extra ``cli``.

Its exit codes stand in :mod:`cloudcore.cli.exit_codes`.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from cloudcore._extras import require_extra
from cloudcore._values import one_line
from cloudcore.errors import CloudcoreError, InvalidArgument, OutcomeUnknown, Transient

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code, as drawn in :mod:`cloudcore.cli.exit_codes`. Never a traceback."""
    try:
        code = _run(arguments)
        sys.stdout.flush()  # a reader that has gone is noticed here, not when the interpreter ends
    except BrokenPipeError:
        _discard_output()
        return 141
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except CloudcoreError as error:
        return _fail(error, _code_of(error))
    except OSError as error:  # a file that is not there or may not be read
        return _fail(error, 1)
    except Exception as error:  # whatever it is, people at a terminal get one line
        if os.environ.get("CLOUDCORE_TRACEBACK"):
            raise
        return _fail(f"{type(error).__name__}: {error} (with CLOUDCORE_TRACEBACK=1: where)", 70)
    return code


def _run(arguments: Sequence[str] | None) -> int:
    require_extra("click", "cli")
    from cloudcore.cli.commands import run

    return run(arguments)


def _code_of(error: CloudcoreError) -> int:
    if isinstance(error, Transient):
        return 75
    if isinstance(error, OutcomeUnknown):
        return 74
    return 2 if isinstance(error, InvalidArgument) else 1


def _fail(why: object, code: int) -> int:
    print(one_line(f"cloudcore: {why}", keeping="\n"), file=sys.stderr)
    return code


def _discard_output() -> None:
    """Send what is still buffered nowhere, so that the end of the interpreter does not complain of the pipe again."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # output that is no file, as in tests
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process

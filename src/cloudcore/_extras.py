"""Optional packages, imported on first use; a missing one names the line that installs it."""

from __future__ import annotations

import importlib
from typing import Any

from cloudcore.errors import MissingExtra

__all__ = ["require_extra"]


def require_extra(module: str, extra: str) -> Any:
    """Import *module*, which the extra *extra* provides.

    Raises:
        MissingExtra: It is not installed; the message holds the exact ``pip install`` line.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise  # it is installed, but something inside it is broken: that error is the better one
        raise MissingExtra(f'{module} is not installed: pip install "cloudcore[{extra}]"', extra=extra) from error

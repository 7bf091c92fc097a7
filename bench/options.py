"""What every benchmark can be asked at the command line."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import attrs


@attrs.frozen(kw_only=True)
class Options:
    """How a benchmark is to run.

    Attributes:
        quick: Small sizes and few rounds: does it run at all, and how does its part of the page look?
        only: The part that is asked for; None: all.
        results: Where its file goes; None: to the usual place, if all was run in full, and else nowhere.
    """

    quick: bool = False
    only: str | None = None
    results: Path | None = None


def options(parts: Iterable[str] = ()) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    add_to(parser)
    if parts:
        parser.add_argument("--only", choices=list(parts), help="this part alone")
    return Options(**vars(parser.parse_args()))


def add_to(parser: argparse.ArgumentParser) -> None:
    """What `bench.run` hands on, too."""
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds, for a look")
    parser.add_argument("--results", type=Path, help="a folder for the file of results, instead of the usual one")

"""The public names and signatures are those that are meant: `tests/public_surface.txt`."""

import difflib
import subprocess
import sys

from tests.public_surface import FILE, signature


def test_the_public_surface_is_the_one_that_is_written_down():
    shown = [sys.executable, "-m", "tests.public_surface", "--show"]  # a process whose classes no test has touched
    now = subprocess.run(shown, cwd=FILE.parents[1], capture_output=True, text=True, check=True).stdout
    meant = FILE.read_text()
    change = "\n".join(difflib.unified_diff(meant.splitlines(), now.splitlines(), "meant", "now", lineterm="", n=1))
    assert now == meant, f"is this meant? then draw it anew: python -m tests.public_surface\n{change}"


def test_every_way_of_taking_arguments_is_told():
    def function(first: int, /, second="x", *rest: str, third: bool = False, **others: object) -> None: ...

    assert signature(function) == (
        "(first: int, second = 'x', *rest: str, third: bool = False, **others: object) -> None"
    )

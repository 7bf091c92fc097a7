"""The notebooks of the documentation run, cell after cell, and every value that they show can be shown.

They are executed as plain Python, in one namespace each: the site runs them in a kernel when it is made.
"""

import ast
import re
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "notebooks"
NOTEBOOKS = sorted(path for path in FOLDER.glob("*.md") if path.stem != "index")
CELL = re.compile(r"^```\{code-cell\} python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def no_screen():
    """Figures are drawn into memory, and none is left open."""
    before = mpl.get_backend()
    plt.switch_backend("agg")
    yield
    plt.close("all")
    plt.switch_backend(before)


def show(value: object) -> str:
    """As a kernel would: the richest form that the value has."""
    form = getattr(value, "_repr_html_", None) or getattr(value, "_repr_svg_", None) or value.__repr__
    return form()


def run(cell: str, namespace: dict) -> str:
    """Execute a cell; what its last expression shows."""
    tree = ast.parse(cell)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), namespace)
    if last is None:
        return ""
    value = eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)
    return "" if value is None else show(value)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs_and_shows_its_value(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = CELL.findall(notebook.read_text())
    assert len(cells) > 5
    namespace: dict = {"__name__": "notebook"}
    shown = [run(cell, namespace) for cell in cells]
    assert any("<table" in text for text in shown)
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} >= {"placement", "migration", "listing", "capacity", "attachments"}

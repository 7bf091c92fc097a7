"""What the page on observability shows is what is logged and observed: an attach, a move, a page with a dead cell."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from pathlib import Path

import pytest

from cloudcore import (
    AllocationLedger,
    AttachmentManager,
    Cell,
    CellRouter,
    HostSelector,
    InstanceDirectory,
    InstanceStore,
    PlacementTree,
    create_schema,
)

DOCS = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "observability.md"
INSTANCE = "5f0c8b52-6a5c-4d0e-9f5e-2a6a5f3c9d10"
MIGRATION = "0b7e9b4c-3b0e-4c57-8d2b-9c7d8a1f2e03"
KNOWN = {INSTANCE, MIGRATION}


class Tree:
    """Draws spans as a tree, with events below them."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._depth = threading.local()

    @contextlib.contextmanager
    def span(self, name, fields):
        depth = self._depth.__dict__.setdefault("depth", 0)
        place, told = len(self.lines), dict(fields)
        self.lines.append("")
        self._depth.depth += 1
        try:
            yield lambda **more: told.update(more)
        finally:
            self._depth.depth -= 1
            self.lines[place] = "  " * depth + _line(name, told)

    def event(self, name, fields):
        if name.endswith(".statement"):
            return  # their texts would fill the page
        self.lines.append("  " * self._depth.__dict__.get("depth", 0) + f"· {_line(name, fields)}")


def _line(name, fields) -> str:
    return f"{name} {' '.join(f'{key}={value}' for key, value in fields.items())}".rstrip()


def _attach(folder, tree) -> None:
    database = f"sqlite:///{folder / 'cloud.db'}"
    create_schema(database)
    with AttachmentManager(database, observer=tree) as manager:
        volume = manager.volumes.create_volume(2**30)
        manager.attach(volume.id, INSTANCE)


def _move(folder, tree) -> None:
    database = f"sqlite:///{folder / 'cloud.db'}"
    create_schema(database)
    with PlacementTree.open(database) as forest, AllocationLedger(database, observer=tree) as ledger:
        for name in ("cn1", "cn2"):
            forest.add(name, inventory={"VCPU": 4})
        selector = HostSelector(forest, ledger, cell_of=lambda _: "cell1", observer=tree)
        selector.select("resources=VCPU:3", instances=[INSTANCE], project_id="blue", user_id="ada")
        selector.select_destination(INSTANCE, MIGRATION, "resources=VCPU:3")
        ledger.confirm_move(MIGRATION)


def _page(folder, tree) -> None:
    cells = [Cell("cell1", f"sqlite:///{folder / 'cell1.db'}"), Cell("cell2", f"sqlite:///{folder / 'cell2.db'}")]
    directory = InstanceDirectory(f"sqlite:///{folder / 'directory.db'}")
    with CellRouter(cells, directory=directory, observer=tree, deadline=30.0) as router:
        store = InstanceStore(router)
        store.create_tables()
        for number in range(4):
            store.create(f"cell{number % 2 + 1}", display_name=f"web-{number}", project_id="blue")
        router.remove_cell("cell2")
        router.add_cell(Cell("cell2", f"sqlite:///{folder}/gone/cell2.db"))
        tree.lines.clear()
        router.page()


def _stable(text: str) -> str:
    """Without what differs from run to run: identifiers that were made, and seconds."""
    text = re.sub(r" \n(?=[A-Z])", " ", text)  # a statement of several lines
    text = re.sub(r"/\S*/(?=gone|cloud\.db|cell\d\.db|directory\.db)", "/srv/", text)
    text = re.sub(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", _shortened, text)
    return re.sub(r"\bseconds=[\d.e-]+", "seconds=…", text)


def _summed(lines: list[str]) -> str:
    """The tree with one line for the many like transactions of a span."""
    seen: list[str] = []
    for line in lines:
        if "database." not in line or line not in seen[-2:]:
            seen.append(line)
    return "\n".join(seen)


def _shortened(match: re.Match[str]) -> str:
    return match[0] if match[0] in KNOWN else "…"


@pytest.mark.parametrize("story", [_attach, _move, _page], ids=lambda story: story.__name__.strip("_"))
def test_the_docs_show_what_happens(story, tmp_path, caplog):
    tree = Tree()
    caplog.set_level(logging.INFO, logger="cloudcore")
    story(tmp_path, tree)
    logged = "\n".join(
        f"{record.levelname:8}{record.name}  {record.getMessage()}"
        for record in caplog.records
        if not record.event.startswith("listing.") or record.levelno > logging.INFO
    )
    shown = DOCS.read_text()
    assert _stable(logged) in shown, _stable(logged)
    assert _stable(_summed(tree.lines)) in shown, _stable(_summed(tree.lines))

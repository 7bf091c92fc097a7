"""The picture in docs/explanation/architecture.md against the imports, and that no two modules import each other."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import grimp
import networkx as nx
import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs" / "explanation"
SOURCE = Path(__file__).resolve().parents[1] / "src"
AREAS = ("placement", "listing", "attach", "hypervisor")
MOST_MODULES = 16


def imports_of_modules() -> nx.DiGraph[str]:
    """Module → module that it imports, those that only types need left out."""
    graph = grimp.build_graph("cloudcore", exclude_type_checking_imports=True, cache_dir=None)
    found: nx.DiGraph[str] = nx.DiGraph()
    for module in graph.modules:
        found.add_edges_from((module, imported) for imported in graph.find_modules_directly_imported_by(module))
    return found


@pytest.fixture(scope="module")
def imports() -> nx.DiGraph[str]:
    return imports_of_modules()


def _box(module: str) -> str | None:
    """The box that stands for a module in the picture: a wing, an area's façade, or the database."""
    parts = module.split(".")[1:]
    if not parts or parts[0] not in {*AREAS, "database"}:
        return None
    if parts[0] in AREAS and len(parts) > 1 and (SOURCE / "cloudcore" / parts[0] / parts[1]).is_dir():
        return f"{parts[0]}.{parts[1]}"
    return parts[0]


def arrows(imports: nx.DiGraph[str]) -> set[tuple[str, str]]:
    """Box → box that it imports, as few as say it all. Modules that wings stand on, such as tables, have no box."""
    boxes: nx.DiGraph[str] = nx.DiGraph()
    ground = {
        module for module in imports if "." not in (_box(module) or ".") and _box(module) != "database"
        and any((_box(importer) or "").startswith(f"{_box(module)}.") for importer in imports.predecessors(module))
    }  # fmt: skip
    for importer, imported in imports.edges:
        ends = _box(importer), _box(imported)
        if None not in ends and ends[0] != ends[1] and not ground & {importer, imported}:
            boxes.add_edge(*ends)
    assert nx.is_directed_acyclic_graph(boxes), nx.find_cycle(boxes)
    return set(nx.transitive_reduction(boxes).edges)


def picture(drawn: set[tuple[str, str]]) -> str:
    """The arrows as mermaid's text."""
    boxes = sorted({box for arrow in drawn for box in arrow} - {"database"})
    lines = ["flowchart TD"]
    for area in AREAS:
        inside = [box for box in boxes if box.split(".")[0] == area]
        lines += [f"    subgraph {area}_area [{area}]", *(f'        {_id(box)}["{box}"]' for box in inside), "    end"]
    lines += ['    database["database"]', *(f"    {_id(one)} --> {_id(other)}" for one, other in sorted(drawn))]
    return "\n".join(lines)


def _id(box: str) -> str:
    return box.replace(".", "_")


def test_the_picture_shows_the_imports(imports):
    text = (DOCS / "architecture.md").read_text()
    (drawn,) = re.findall(r"```mermaid\n(.*?)\n```", text, re.DOTALL)
    assert drawn == picture(arrows(imports)), "draw it anew: python -m tests.test_architecture"


def test_every_wing_has_its_paragraph(imports):
    text = (DOCS / "architecture.md").read_text()
    wings = {box for arrow in arrows(imports) for box in arrow if "." in box}
    missing = [wing for wing in sorted(wings) if f"**`{wing.replace('.', '/')}`**" not in text]
    assert not missing


def test_no_modules_import_each_other(imports):
    circles = [circle for circle in nx.strongly_connected_components(imports) if len(circle) > 1]
    assert not circles


def test_no_folder_is_crowded():
    folders = Counter(path.parent for path in SOURCE.rglob("*.py") if path.name != "__init__.py")
    crowded = {str(folder.relative_to(SOURCE)): number for folder, number in folders.items() if number > MOST_MODULES}
    assert not crowded


if __name__ == "__main__":
    print(picture(arrows(imports_of_modules())))

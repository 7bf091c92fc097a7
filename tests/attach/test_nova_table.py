"""The table *Nova's volume handling, and ours* names tests that exist, and reasons where there are none."""

import re
from pathlib import Path

FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[1] / "docs" / "reference" / "nova-volumes.md"


def test_every_row_has_a_test_or_a_reason():
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 40
    for row in rows:
        assert len(row) == 3, row
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row[2])
        left_out = "left out" in row[1] and row[2].strip(" |")
        assert named or left_out, row
        for file, name in named:
            path = FOLDER / file if (FOLDER / file).exists() else FOLDER.parent / "hypervisor" / file
            assert f"def {name}(" in path.read_text(), f"{file}::{name}"

"""The layers of the library: what may import what is written in pyproject.toml and checked here and by `make lint`."""

import subprocess
import sys
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def test_contracts_hold(tmp_path):
    """import-linter's contracts: independent areas, pure decisions, one direction."""
    program = Path(sys.executable).with_name("lint-imports")
    command = [str(program), "--no-cache", "--config", str(REPOSITORY / "pyproject.toml")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_pure_module_exists():
    """A module that was renamed must not drop out of its contract."""
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    for contract in contracts:
        for name in contract.get("source_modules", []):
            if "*" not in name:
                path = REPOSITORY / "src" / name.replace(".", "/")
                assert path.is_dir() or path.with_suffix(".py").exists(), name

"""Importing cloudcore is cheap: heavy packages are loaded when a name that needs them is used."""

import json
import subprocess
import sys

import pytest

HEAVY = {
    "sqlalchemy",
    "networkx",
    "numpy",
    "tenacity",
    "sortedcontainers",
    "alembic",
    "libvirt",
    "cinderclient",
    "keystoneauth1",
    "os_traits",
    "os_resource_classes",
    "rich",
    "pandas",
}


def _loaded(statement):
    """The modules that a fresh interpreter has after this statement, beyond those that it has anyway."""
    script = f"""
import sys
before = set(sys.modules)
{statement}
loaded = [*set(sys.modules) - before]
import json
print(json.dumps(loaded))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("name", ["", ".listing", ".placement", ".attach", ".hypervisor", ".testing", ".errors"])
def test_import_is_cheap(name):
    """Neither the package nor its areas load what they might never need."""
    loaded = _loaded(f"import cloudcore{name}")
    assert loaded & HEAVY == set()
    assert len(loaded) < 150


def test_a_name_loads_what_it_needs():
    """The counterpart: the check above sees what it looks for."""
    assert "sqlalchemy" in _loaded("from cloudcore.database import Database")

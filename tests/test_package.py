"""The package as users get it: a wheel that works with nothing but its plain dependencies."""

import re
import subprocess
import sys
import zipfile

import pytest

from tests.services._host import CACHE, REPOSITORY

PLAIN = CACHE / "plain" / "venv" / "bin" / "python"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Path of the wheel, built from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    done = subprocess.run([*command, str(REPOSITORY)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("cloudcore-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the unpacked wheel, for `PYTHONPATH`."""
    if not PLAIN.exists():
        pytest.skip("no environment with the plain dependencies: bash scripts/setup plain")
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_wheel_has_what_it_should(wheel):
    """Typed, with migrations and licence, without tests."""
    names = zipfile.ZipFile(wheel).namelist()
    assert "cloudcore/py.typed" in names
    assert any(name.startswith("cloudcore/migrations/versions/") for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "bench"))]


def _run(installed, folder, code):
    env = {"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    return subprocess.run([PLAIN, "-c", code], cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_every_public_name_can_be_used(installed, tmp_path):
    """No extra is needed to get hold of a name."""
    code = "import cloudcore; print([getattr(cloudcore, name) for name in cloudcore.__all__])"
    done = _run(installed, tmp_path, code)
    assert done.returncode == 0, done.stderr


def test_readme_runs(installed, tmp_path):
    """Its blocks, in one namespace, with the plain dependencies alone."""
    blocks = BLOCK.findall((REPOSITORY / "README.md").read_text())
    done = _run(installed, tmp_path, "\n".join(blocks))
    assert done.returncode == 0, done.stderr

"""Is what was installed a whole cloudcore? `python smoke.py README.md`, by the interpreter of a bare environment."""

import os
import re
import sys
import tempfile
from pathlib import Path

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def main(readme: Path) -> None:
    """Every public name loads, the README's blocks run, and a small world is sound."""
    blocks = BLOCK.findall(readme.read_text())
    os.chdir(tempfile.mkdtemp())

    import cloudcore
    from cloudcore.testing.worlds import small_world

    for name in cloudcore.__all__:
        getattr(cloudcore, name)
    exec("\n".join(blocks), {})  # noqa: S102 - our own README
    with small_world(1, instances=10, history=5, volumes=3) as world:
        world.check()
        assert len(world.router.page().records) == len(world.guests)
    print(f"cloudcore {cloudcore.__version__} works on Python {sys.version.split()[0]}, from {cloudcore.__file__}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())

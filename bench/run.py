"""Runs the benchmarks: all of them, or the areas that are named. Exit code 1 if one failed or did not keep a promise.

python -m bench.run [--quick] [--results FOLDER] [AREA...]
"""

import argparse
import subprocess
import sys

from bench import options
from bench.harness import HERE, REPOSITORY


def main() -> int:
    """Run each in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("areas", nargs="*", metavar="AREA")
    options.add_to(parser)
    asked = parser.parse_args()
    areas: list[str] = asked.areas
    handed_on = [*(["--quick"] if asked.quick else []), *(["--results", str(asked.results)] if asked.results else [])]
    known = {path.stem.removeprefix("bench_"): path for path in sorted(HERE.glob("bench_*.py"))}
    unknown = set(areas) - set(known)
    if unknown:
        print(f"no benchmark for {', '.join(sorted(unknown))}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    failed = []
    for area in areas or known:
        module = f"bench.{known[area].stem}"
        if subprocess.run([sys.executable, "-m", module, *handed_on], cwd=REPOSITORY, check=False).returncode:
            failed.append(area)
    if failed:
        print(f"not met or failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())

"""Runs the benchmarks: all of them, or the areas that are named. Exit code 1 if one failed or did not keep a promise.

python -m bench.run [AREA...]
"""

import subprocess
import sys

from bench.harness import HERE, REPOSITORY


def main(areas: list[str]) -> int:
    """Run each in a process of its own."""
    known = {path.stem.removeprefix("bench_"): path for path in sorted(HERE.glob("bench_*.py"))}
    unknown = set(areas) - set(known)
    if unknown:
        print(f"no benchmark for {', '.join(sorted(unknown))}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    failed = []
    for area in areas or known:
        module = f"bench.{known[area].stem}"
        if subprocess.run([sys.executable, "-m", module], cwd=REPOSITORY, check=False).returncode:
            failed.append(area)
    if failed:
        print(f"not met or failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Benchmarks to be believed: ours and a peer, on the same data, in turns, in one run, equal before any time counts.

A benchmark is a script `bench/bench_AREA.py`:

    from bench.harness import Bench

    def main() -> None:
        with Bench("listing") as bench:
            nova = bench.peer("nova", script="peers/nova_lister.py")      # its own environment, see PEERS
            nova.run("load", path=...)                                                   # untimed set-up
            bench.compare(
                "10 cells, page of 100",
                ours=lambda: [record["uuid"] for record in router.page(query).records],
                peer=nova.call("page", limit=100),                  # or any function of this process
                must=10,                                            # at least ten times as fast as the peer
            )
            bench.measure("first page, cold", ours=..., at_most=0.005)                   # no peer: seconds
            bench.record("memory for 100,000 hosts, MB", ours=63, must=100, met=True)    # measured otherwise
            bench.curve("a page", "cells", {n: bench.median(page_of(n)) for n in (1, 4, 16)})     # how it grows

    if __name__ == "__main__":
        main()

Fairness
    * Equality first: `equal(ours(), peer())` (default `==`) must hold, or `Unequal` ends the benchmark. JSON turns
      tuples into lists, so return lists.
    * In turns: each round runs ours and the peer, the order changes every round; medians with minimum and maximum.
    * Timed where it runs: the peer's process takes its own time, pipes and JSON are outside of it. CPU time stands
      beside wall time, of the process that does the work (a database server's is not in it).
    * Short works are repeated inside a round until a sample takes 20 ms, both sides by their own number. Works with an
      effect give `number=1` and undo it in `before_ours` / `before_peer`, which are not timed.

The table goes to standard output, the rows to `bench/results/AREA.json`: {work, ours, peer, ratio, must, met}, in
seconds unless the work says otherwise, with the spread and CPU time beside them. `ratio` is peer / ours. Machine and
date stand there, too; `python -m bench.figures` makes the page of figures of all these files. Which way a promise
binds stands in `bound`: see `bound_of`.
Only one benchmark runs at a time on a machine: the harness waits for the others.

Peers get environments of their own in the cache, of Debian's Python where there is one, pinned by
`constraints/peer-NAME.txt` if that file exists. Scripts of peers use `bench/peer.py`.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import hashlib
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, cast

from bench import machine
from bench.options import Options

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
CACHE = Path(os.environ.get("CLOUDCORE_CACHE", REPOSITORY / ".cache"))
RESULTS = HERE / "results"

PEERS = {
    "nova": ("nova==34.0.0", "PyMySQL", "psycopg2-binary"),
    "placement": ("openstack-placement==16.0.0", "PyMySQL", "psycopg2-binary"),
    "served": ("openstack-placement==16.0.0", "uvicorn"),
    "clients": (
        "nova==34.0.0",
        "openstack-placement==16.0.0",
        "osc-placement",
        "python-openstackclient",
        "openstacksdk",
        "gabbi",
        "oslotest",
        "testtools",
        "fixtures",
        "wsgi-intercept",
        "PyMySQL",
        "psycopg2-binary",
    ),
}
"""What the environments of the usual peers hold."""

SAMPLE_SECONDS = 0.02
"""What a sample should take at least."""

Bound = Literal["at least", "at most", "ratio at least", "ratio at most"]
"""What is promised: of the figure itself, or of its ratio to the peer's."""


class Unequal(AssertionError):
    """Ours and the peer gave different answers; no time of theirs can be compared."""


class PeerFailed(RuntimeError):
    """The peer raised, or its process ended."""


# ---------------------------------------------------------------------------------------------------------------- peers


def peer_env(name: str, *requirements: str) -> Path:
    """The Python of a virtual environment that holds these packages; built on the first call, then kept.

    Without requirements, or with some of those of `PEERS`, it holds all of the latter.

    Raises:
        subprocess.CalledProcessError: pip failed; its output is in the error's `stderr`.
    """
    usual = PEERS.get(name, ())
    requirements = usual if set(requirements) <= set(usual) else requirements
    folder = CACHE / "peers" / name
    constraints = REPOSITORY / "constraints" / f"peer-{name}.txt"
    pins = constraints.read_text() if constraints.exists() else ""
    interpreter = _interpreter()
    wanted = hashlib.sha256("\n".join([*requirements, pins, interpreter]).encode()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = folder / "stamp"
        python = folder / "venv" / "bin" / "python"
        if not stamp.exists() or stamp.read_text() != wanted:
            print(f"building the environment of {name}: {' '.join(requirements)}", flush=True)
            shutil.rmtree(folder / "venv", ignore_errors=True)
            _checked([interpreter, "-m", "venv", str(folder / "venv")])
            pinned = ["-c", str(constraints)] if pins else []
            _checked([str(python), "-m", "pip", "install", "-q", *pinned, *requirements])
            stamp.write_text(wanted)
    return python


def _interpreter() -> str:
    return "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable


def _checked(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-4000:], file=sys.stderr)
        done.check_returncode()


class Call:
    """A call of the peer that can be timed: `peer.call("page", limit=100)`."""

    def __init__(self, peer: Peer, name: str, arguments: dict[str, Any]) -> None:
        self._peer, self._name, self._arguments = peer, name, arguments

    def __call__(self) -> Any:
        """Make the call once, untimed; its answer."""
        return self._peer.request(self._name, self._arguments, number=1, answer=True)["answer"]

    def sample(self, number: int) -> tuple[float, float]:
        """(wall, CPU) seconds of one call, averaged over a number of them."""
        reply = self._peer.request(self._name, self._arguments, number=number, answer=False)
        return reply["wall"], reply["cpu"]


class Peer:
    """A peer's process, running a script on `bench/peer.py`. A context manager; not for several threads."""

    def __init__(self, python: Path, script: Path, *arguments: str) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._process = subprocess.Popen(
            [str(python), "-u", str(script), str(HERE), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=HERE,
        )
        self.functions: list[str] = self._reply()["ready"]

    def run(self, name: str, **arguments: Any) -> Any:
        """Call a function of the peer, untimed; its answer."""
        return Call(self, name, arguments)()

    def call(self, name: str, **arguments: Any) -> Call:
        """A call for `Bench.compare`."""
        return Call(self, name, arguments)

    def request(self, name: str, arguments: dict[str, Any], *, number: int, answer: bool) -> dict[str, Any]:
        """One exchange over the pipe."""
        assert self._process.stdin is not None
        message = {"call": name, "arguments": arguments, "number": number, "answer": answer}
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the reply will say why
        reply = self._reply()
        if "error" in reply:
            raise PeerFailed(f"{name}: {reply['error']}")
        return reply

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait(10)
            self._log.seek(0)
            words = self._log.read().decode(errors="replace")[-4000:]
            raise PeerFailed(f"the peer ended with {self._process.returncode}:\n{words}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# -------------------------------------------------------------------------------------------------------------- timing


class _Local:
    """A function of this process, to be timed."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function

    def __call__(self) -> Any:
        return self._function()

    def sample(self, number: int) -> tuple[float, float]:
        function = self._function
        gc.collect()
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(number):
            function()
        return (time.perf_counter() - wall) / number, (time.process_time() - cpu) / number


class _Side:
    """The samples of ours, or of the peer."""

    def __init__(self, work: Callable[[], Any], before: Callable[[], Any] | None, number: int | None) -> None:
        self.work = work if isinstance(work, Call) else _Local(work)
        self._before, self._number = before, number
        self._samples: list[tuple[float, float]] = []

    def answer(self) -> Any:
        if self._before:
            self._before()
        return self.work()

    def calibrate(self) -> None:
        """Find how often a sample must repeat the work; this also warms caches."""
        if self._number is None:
            once = self._take(1)[0]
            self._number = max(1, min(10_000, math.ceil(SAMPLE_SECONDS / max(once, 1e-9))))

    def _take(self, number: int) -> tuple[float, float]:
        if self._before:
            self._before()
        return self.work.sample(number)

    def sample(self) -> None:
        self._samples.append(self._take(self._number or 1))

    def row(self, name: str) -> dict[str, float]:
        wall = [sample[0] for sample in self._samples]
        return {
            name: statistics.median(wall),
            f"{name}_min": min(wall),
            f"{name}_max": max(wall),
            f"{name}_cpu": statistics.median(sample[1] for sample in self._samples),
        }


class Bench:
    """The benchmarks of one area. Leaving it writes the results; SystemExit(1) if a row was not met.

    Args:
        area: Names the result file.
        asked: Whether to be quick, and where the file goes.
    """

    def __init__(self, area: str, asked: Options | None = None) -> None:
        asked = asked or Options()
        self.area, self.quick = area, asked.quick
        self._results = asked.results or (None if asked.quick or asked.only else RESULTS)
        self.rows: list[dict[str, Any]] = []
        self.curves: list[dict[str, Any]] = []
        self.versions: dict[str, str] = {"python": platform.python_version()}
        self._peers: list[Peer] = []
        self._lock = (Path(tempfile.gettempdir()) / f"cloudcore-bench-{os.getuid()}.lock").open("w")

    def peer(self, name: str, *requirements: str, script: str, arguments: Sequence[str] = ()) -> Peer:
        """Start a peer's script (a path relative to `bench/`) in the environment of its packages."""
        python = peer_env(name, *requirements)
        self.versions[name] = (requirements or PEERS[name])[0]
        self._peers.append(Peer(python, HERE / script, *arguments))
        return self._peers[-1]

    def compare(
        self,
        work: str,
        ours: Callable[[], Any],
        peer: Callable[[], Any],
        *,
        equal: Callable[[Any, Any], bool] = lambda a, b: bool(a == b),
        must: float | None = None,
        rounds: int = 7,
        number: int | None = None,
        before_ours: Callable[[], Any] | None = None,
        before_peer: Callable[[], Any] | None = None,
        note: str = "",
    ) -> dict[str, Any]:
        """Compare answers, then times; returns the row.

        Args:
            work: What is done, with its sizes.
            ours: Our side, a function of this process.
            peer: The other side: `Peer.call(...)`, or a function of this process.
            equal: Whether the two answers mean the same.
            must: The ratio peer / ours that is promised; None promises nothing.
            rounds: Samples of each side.
            number: How often a sample repeats the work; None finds out.
            before_ours: Called before each sample of ours, not timed.
            before_peer: Called before each sample of the peer's, not timed.
            note: A word of caution that belongs to the figure.

        Raises:
            Unequal: The answers differ.
        """
        sides = _Side(ours, before_ours, number), _Side(peer, before_peer, number)
        first, second = (side.answer() for side in sides)
        if not equal(first, second):
            raise Unequal(f"{work}: ours {_short(first)}, the peer's {_short(second)}")
        for side in sides:
            side.calibrate()
        for turn in range(self._rounds(rounds)):
            for side in sides if turn % 2 == 0 else sides[::-1]:
                side.sample()
        row = {**sides[0].row("ours"), **sides[1].row("peer")}
        ratio = row["peer"] / row["ours"]
        return self._add(
            work, {**row, "ratio": ratio, "must": must, "met": None if must is None else ratio >= must}, note
        )

    def measure(
        self,
        work: str,
        ours: Callable[[], Any],
        *,
        at_most: float | None = None,
        rounds: int = 7,
        number: int | None = None,
        before: Callable[[], Any] | None = None,
        note: str = "",
    ) -> dict[str, Any]:
        """Time ours alone, for what no peer does; `at_most` is a promise in seconds."""
        side = _Side(ours, before, number)
        side.calibrate()
        for _ in range(self._rounds(rounds)):
            side.sample()
        row = side.row("ours")
        met = None if at_most is None else row["ours"] <= at_most
        return self._add(work, {**row, "peer": None, "ratio": None, "must": at_most, "met": met}, note)

    def record(
        self,
        work: str,
        *,
        ours: float,
        peer: float | None = None,
        ratio: float | None = None,
        must: float | None = None,
        met: bool | None = None,
        bound: Bound | None = None,
        note: str = "",
    ) -> dict[str, Any]:
        """Add a row that was measured otherwise (memory, operations a second, under contention).

        *work* ends with the unit where there is one, ``"…, MB"``. *bound* says what *must* is, where `bound_of` cannot.
        """
        row = {"ours": ours, "peer": peer, "ratio": ratio, "must": must, "met": met}
        return self._add(work, row | ({"bound": bound} if bound else {}), note)

    def _rounds(self, wanted: int) -> int:
        return min(wanted, 2) if self.quick else wanted

    @staticmethod
    def median(function: Callable[[], Any], *, rounds: int = 5) -> float:
        """The median of the seconds that *function* takes, warm."""
        side = _Side(function, None, None)
        side.calibrate()
        for _ in range(rounds):
            side.sample()
        return side.row("ours")["ours"]

    def curve(
        self, work: str, size: str, points: Mapping[int, float], *, unit: str = "s", at_most: float | None = None
    ) -> dict[str, Any]:
        """Keep how *work* grows with *size*: a power of it, fitted to the points on logarithmic axes.

        Args:
            work: What is done.
            size: What grows, such as ``"hosts"``.
            points: Size → what was measured; at least two.
            unit: Of what was measured: ``"s"``, or a rate such as ``"claims/s"``.
            at_most: The power that is promised; None promises nothing.
        """
        slope = power(points)
        met = None if at_most is None else slope <= at_most
        curve = {"work": work, "size": size, "unit": unit, "points": list(points.items())}
        self.curves.append({**curve, "slope": slope, "must": at_most, "met": met})
        told = ", ".join(f"{n:,}: {figure_of(value, unit)}" for n, value in points.items())
        print(f"  {work}, by {size}: {told}; grows as {size}^{slope:.2f} {_VERDICTS[met]}", flush=True)
        return self.curves[-1]

    def _add(self, work: str, row: dict[str, Any], note: str) -> dict[str, Any]:
        row = {"work": work, **row, **({"note": note} if note else {})}
        row.setdefault("bound", bound_of(row))
        self.rows.append(row)
        ratio = f"{row['ratio']:.1f} x" if row["ratio"] is not None else ""
        print(
            f"  {work}: ours {_figure(row, 'ours')}, peer {_figure(row, 'peer')} {ratio} {_VERDICTS[row['met']]}",
            flush=True,
        )
        return row

    # ---- life

    def __enter__(self) -> Self:
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        print(f"{self.area}:", flush=True)
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        for peer in self._peers:
            peer.close()
        self._lock.close()
        self._stop_servers()
        if failure is not None:
            return
        print(table(self.rows))
        if self._results is not None:
            self._results.mkdir(parents=True, exist_ok=True)
            content = {
                "area": self.area,
                "quick": self.quick,
                "machine": machine.describe(),
                "versions": self.versions,
                "rows": self.rows,
                "curves": self.curves,
            }
            (self._results / f"{self.area}.json").write_text(json.dumps(content, indent=1) + "\n")
        if not self.quick and any(each["met"] is False for each in (*self.rows, *self.curves)):
            raise SystemExit(1)

    @staticmethod
    def _stop_servers() -> None:
        """A benchmark may use the servers of `tests.services`."""
        client = sys.modules.get("tests.services._client")
        if client is not None:
            client.end_run()


def bound_of(row: Mapping[str, Any]) -> Bound | None:
    """What a row's `must` binds, and which way; a row that says it is believed.

    A time without a peer is at most so long; a note that begins with "at most" says so; a ratio is at least so large.
    Anything else is told by whether it was met.
    """
    must, met = row["must"], row["met"]
    if must is None:
        return None
    if row.get("bound"):
        return cast("Bound", row["bound"])
    if row.get("note", "").startswith("at most") or ("ours_min" in row and row["ratio"] is None):
        return "at most"
    if row["ratio"] is not None and met == (row["ratio"] >= must):
        return "ratio at least"
    return "at most" if met == (row["ours"] <= must) else "at least"


_VERDICTS = {True: "met", False: "NOT MET", None: ""}


def power(points: Mapping[int, float]) -> float:
    """The power of the size with which what was measured grows: the slope on logarithmic axes, by least squares."""
    line = statistics.linear_regression(
        [math.log(size) for size in points], [math.log(value) for value in points.values()]
    )
    return line.slope


def _short(answer: Any) -> str:
    text = repr(answer)
    return text if len(text) < 1500 else f"{text[:1500]}… ({len(text)} characters)"


def seconds(value: float | None) -> str:
    """A duration in the unit that suits it."""
    if value is None:
        return "–"
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def figure_of(value: float, unit: str) -> str:
    """What was measured, with its unit."""
    return seconds(value) if unit == "s" else f"{value:,.0f} {unit}"


def _figure(row: dict[str, Any], name: str) -> str:
    """A time with its spread and CPU, or the bare number of a row that was measured otherwise."""
    value = row[name]
    if value is None:
        return "–"
    if f"{name}_min" not in row:
        return f"{value:.6g}"
    low, high, cpu = (seconds(row[f"{name}_{what}"]) for what in ("min", "max", "cpu"))
    return f"{seconds(value)} [{low}, {high}] cpu {cpu}"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table: median [minimum, maximum] and CPU time."""
    lines = ["| work | ours | peer | peer / ours | must | met |", "|---|---|---|---|---|---|"]
    for row in rows:
        ratio = "–" if row["ratio"] is None else f"{row['ratio']:.1f}"
        must = "–" if row["must"] is None else f"{row['must']:g}"
        met = {True: "yes", False: "NO", None: "–"}[row["met"]]
        lines.append(f"| {row['work']} | {_figure(row, 'ours')} | {_figure(row, 'peer')} | {ratio} | {must} | {met} |")
    return "\n".join(lines)

"""Portier beside ndppd and npd6, its ARP beside parprouted and the kernel's proxy_arp, and its relaying
beside the kernel: the same load, the same lab, one run.

    python -m tests.bench.run [--smoke | --quick] [--json FILE] [--only SECTION ...]

Prints a table in Markdown.  `--smoke` takes about a minute and is about right answers only; without it
the numbers are worth reading, and it takes some minutes.  Either way the exit status is 1 when Portier, or
the generator beside its own responder, gave a wrong answer or none.  No speed is ever asserted.

The generator (with the responder that plays the hosts behind) spins on the first core, whatever is measured
has the last one to itself.  As root both go before all other work of the machine (nice -15).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import portier
from tests.bench.contenders import (
    ALWAYS,
    ARP_CONTENDERS,
    CONTENDERS,
    KERNEL,
    RESOLVE,
    Contender,
    Running,
)
from tests.bench.load import OUTER, Result, Site, asked4, command
from tests.bench.relay import SIZES, WAYS, measure
from tests.netns.lab import Keeper, Lab, UnavailableError, wait_for

WINDOWS: Final = (1, 32, 256)
COLD_WINDOWS: Final = (1, 32)  # of ARP
NICE: Final = -15


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything a run does; durations in seconds."""

    seconds: float = 1.5
    rounds: int = 3
    always_targets: int = 1_000
    targets: tuple[int, ...] = (100, 1_000, 10_000, 100_000)
    cold_bound: float = 40.0
    peer_cold_bound: float = 10.0
    loss_seconds: float = 10.0
    idle: float = 60.0
    groups: int = 1_000
    rules: int = 10
    starts: int = 5
    relay_seconds: float = 2.0
    arp_targets: int = 150


FULL: Final = Scale()
QUICK: Final = Scale(rounds=1, targets=(1_000, 10_000), peer_cold_bound=5.0, idle=15.0, groups=100, starts=3)
SMOKE: Final = Scale(
    seconds=0.3,
    rounds=1,
    always_targets=100,
    targets=(1_000,),
    cold_bound=5.0,
    peer_cold_bound=3.0,
    loss_seconds=1.0,
    idle=2.0,
    groups=20,
    starts=1,
    relay_seconds=0.3,
    arp_targets=20,
)


class Bench:
    """One run: the lab, the scale, the rows so far, and what was wrong."""

    def __init__(self, keeper: Keeper, scale: Scale, *, smoke: bool) -> None:
        self.keeper = keeper
        self.scale = scale
        self.smoke = smoke
        usable = sorted(os.sched_getaffinity(0))
        self.load_core, self.own_core = usable[0], usable[-1]
        self.nice = NICE if os.geteuid() == 0 else 0
        self.problems: list[str] = []
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.contenders = self.those_here(CONTENDERS)
        self.arp_contenders = self.those_here(ARP_CONTENDERS)

    @contextlib.contextmanager
    def lab(self) -> Iterator[Lab]:
        """A lab that is gone afterwards."""
        with tempfile.TemporaryDirectory(prefix="portier-bench-") as directory:
            lab = Lab(self.keeper, Path(directory))
            try:
                yield lab
            finally:
                self.problems += lab.close()

    def those_here(self, contenders: tuple[Contender, ...]) -> list[Contender]:
        """Those that can be started; the others are named."""
        for contender in contenders:
            if not contender.installed:
                self.say(f"{contender.name} is not installed: left out")
        return [contender for contender in contenders if contender.installed]

    @contextlib.contextmanager
    def site(self, version: int = 6) -> Iterator[Site]:
        """A fresh proxy host between two cables: no route, no neighbor is left from before."""
        with self.lab() as lab:
            yield Site(lab, core=self.load_core, version=version)

    @contextlib.contextmanager
    def running(self, contender: Contender, answer: str, version: int = 6) -> Iterator[tuple[Site, Running]]:
        """A contender at work on a fresh site."""
        with self.site(version) as site:
            running = contender.start(site, answer)
            yield site, running
            running.stop()

    def say(self, text: str) -> None:
        """Tell how far it is."""
        print(f"# {text}", file=sys.stderr, flush=True)

    def add(self, section: str, **row: Any) -> None:
        """Keep one row of a section."""
        self.rows.setdefault(section, []).append(row)
        self.say(f"{section}: {row}")

    def judge(self, what: str, result: Result, *, own: bool, complete: bool = False) -> None:
        """Note wrong or missing answers.  A peer is only expected to answer at all."""
        if result.dropped:
            self.problems.append(f"{what}: the generator lost {result.dropped} frames")
        if not result.answered:
            self.problems.append(f"{what}: no answer at all")
        if own and (result.wrong or result.override_flag):
            self.problems.append(f"{what}: {result.wrong} wrong answers, {result.override_flag} with O=1")
        if own and self.smoke and result.lost:
            self.problems.append(f"{what}: {result.lost} of {result.sent} not answered")
        if own and complete and result.answered < result.sent:
            self.problems.append(f"{what}: only {result.answered} of {result.sent} answered")


@contextlib.contextmanager
def priority(nice: int) -> Iterator[None]:
    """Go before the machine's other work, with everything started meanwhile.  Where the scheduler groups
    processes by session, nice counts within the session only, and the session has one of its own; a session
    without a group (nobody called setsid since the boot) takes none, and needs none."""
    group = Path("/proc/self/autogroup")
    if nice:
        os.nice(nice)
        with contextlib.suppress(OSError):
            group.write_text(str(nice))
    try:
        yield
    finally:
        if nice:
            with contextlib.suppress(OSError):
                group.write_text("0")


def median(values: list[float]) -> float:
    """The median, so that one disturbed round does not count."""
    return statistics.median(values)


# -- the sections ------------------------------------------------------------------------------------


def generator_alone(bench: Bench) -> None:
    """What the generator can offer: its responder in the place of the daemon, on the daemon's core."""
    alone(bench, "generator", [])


def alone(bench: Bench, section: str, told: list[str]) -> None:
    """The generator beside its own responder, both told so."""
    scale = bench.scale
    with bench.lab() as lab:
        world, proxy = lab.host("world"), lab.host("proxy")
        for host in (world, proxy):
            host.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        world.ip(f"link add {OUTER} netns {world.pid} type veth peer name {OUTER} netns {proxy.pid}")
        for host in (world, proxy):
            host.ip(f"link set {OUTER} up")
        targets = ["--targets", str(scale.always_targets), *told]
        responder = proxy.popen(
            command(bench.own_core, "--respond", OUTER, *targets, "--seconds", "120"),
            stdout=subprocess.PIPE,
        )
        assert responder.stdout is not None
        responder.stdout.readline()
        for window in WINDOWS:
            results = []
            for _ in range(scale.rounds):
                args = ["--ask", OUTER, *targets, "--window", str(window), "--seconds", str(scale.seconds)]
                done = world.run(command(bench.load_core, *args))
                result = Result.read(done.stdout)
                results.append(result)
                if result.lost or result.wrong or not result.answered:
                    bench.problems.append(f"generator alone: {result}")
            bench.add(
                section,
                window=window,
                rate=median([result.rate for result in results]),
                p50_us=median([result.p50_us for result in results]),
            )


def exchange(
    bench: Bench,
    site: Site,
    running: Running,
    contender: Contender,
    what: str,
    targets: int,
    window: int,
) -> dict[str, float]:
    """A few closed-loop rounds on known targets; medians."""
    results, costs = [], []
    for _ in range(bench.scale.rounds):
        before = running.cpu()
        result = site.ask(
            targets=targets,
            window=window,
            seconds=max(bench.scale.seconds, contender.patience),
            verify=bench.smoke,
            timeout=2.0,
        )
        costs.append((running.cpu() - before) / max(1, result.answered) * 1e6)
        results.append(result)
        bench.judge(f"{contender.name}, {what}, window {window}", result, own=contender.own)
    return {
        "rate": median([result.rate for result in results]),
        "p50_us": median([result.p50_us for result in results]),
        "p99_us": median([result.p99_us for result in results]),
        "cpu_us": median(costs),
        "lost": sum(result.lost for result in results),
    }


def always(bench: Bench) -> None:
    """Every address is answered for."""
    for contender in bench.contenders:
        if ALWAYS not in contender.answers:
            continue
        with bench.running(contender, ALWAYS) as (site, running):
            targets = bench.scale.always_targets
            first = site.ask(targets=targets, window=32, seconds=5, once=True, verify=True)
            bench.judge(f"{contender.name}, always, first", first, own=contender.own)
            row = {
                str(window): exchange(bench, site, running, contender, "always", targets, window)
                for window in WINDOWS
            }
            if contender.own:
                unicast = site.ask(
                    targets=targets, window=32, seconds=2, once=True, verify=True, unicast=True
                )
                bench.judge(f"{contender.name}, unicast", unicast, own=True, complete=True)
            bench.add("always", name=contender.name, windows=row, peak_mb=running.peak_mb())


def resolve(bench: Bench) -> None:
    """Hosts are looked for, then known."""
    for targets in bench.scale.targets:
        for contender in bench.contenders:
            if RESOLVE in contender.answers:
                resolve_one(bench, contender, targets)


def resolve_one(bench: Bench, contender: Contender, targets: int) -> None:
    """One contender with so many hosts: cold by every window, each with a fresh daemon; then warm."""
    scale = bench.scale
    bound = scale.cold_bound if contender.own else scale.peer_cold_bound
    cold: dict[str, Any] = {}
    warm: dict[str, Any] = {}
    known = 0
    peak = 0.0
    what = f"resolve, {targets} hosts"
    for window in WINDOWS:
        last = window == WINDOWS[-1]
        with bench.running(contender, RESOLVE) as (site, running):
            before = running.cpu()
            result = site.ask(
                targets=targets,
                window=window,
                seconds=bound if last else min(bound, 5.0),
                once=True,
                timeout=3.0,
                verify=True,
            )
            cost = (running.cpu() - before) / max(1, result.answered) * 1e6
            finished = result.sent == targets and result.seconds < bound
            complete = finished and window <= targets
            bench.judge(
                f"{contender.name}, {what}, cold, window {window}",
                result,
                own=contender.own,
                complete=complete and (last or bench.smoke),
            )
            cold[str(window)] = {
                "rate": result.rate,
                "p50_us": result.p50_us,
                "cpu_us": cost,
                "answered": result.answered,
                "lost": result.lost,
            }
            if last:
                known = result.answered
                if known < targets:
                    time.sleep(2.0)  # answers to those that are not counted any more
                for warm_window in WINDOWS:
                    warm[str(warm_window)] = exchange(
                        bench, site, running, contender, f"{what}, warm", max(1, known), warm_window
                    )
                peak = running.peak_mb()
    bench.add(
        "resolve", name=contender.name, targets=targets, known=known, cold=cold, warm=warm, peak_mb=peak
    )


def arp(bench: Bench) -> None:
    """IPv4: hosts are looked for, then known.  No more than fit into the kernel's neighbor table, of which
    parprouted lives."""
    alone(bench, "arp alone", asked4())
    for contender in bench.arp_contenders:
        for answer in contender.answers:
            arp_one(bench, contender, answer)


def arp_one(bench: Bench, contender: Contender, answer: str) -> None:
    """One contender: other hosts for each window, which are cold; then all of them, warm."""
    scale = bench.scale
    count = scale.arp_targets
    cold: dict[str, Any] = {}
    with bench.running(contender, answer, 4) as (site, running):
        for number, window in enumerate(COLD_WINDOWS):
            result = site.ask(
                targets=count,
                skip=number * count,
                window=window,
                seconds=scale.cold_bound if contender.own else scale.peer_cold_bound,
                once=True,
                timeout=3.0,
            )
            what = f"{contender.name}, ARP, {answer}, cold, window {window}"
            bench.judge(what, result, own=contender.own, complete=True)
            cold[str(window)] = {
                "rate": result.rate,
                "p50_us": result.p50_us,
                "answered": result.answered,
                "lost": result.lost,
            }
            if not contender.own:
                time.sleep(1.0)  # late answers; and parprouted makes its routes once a second
        warm = {
            str(window): exchange(
                bench, site, running, contender, f"ARP, {answer}, warm", len(COLD_WINDOWS) * count, window
            )
            for window in WINDOWS
        }
    bench.add("arp", name=contender.name, answer=answer, targets=count, cold=cold, warm=warm)


def loss(bench: Bench) -> None:
    """10,000 solicitations a second whatever comes back, 1,000 known hosts."""
    for contender in bench.contenders:
        answer = RESOLVE if RESOLVE in contender.answers else ALWAYS
        with bench.running(contender, answer) as (site, running):
            site.ask(targets=1_000, window=32, seconds=5, once=True, timeout=3.0)
            before = running.cpu()
            result = site.pace(targets=1_000, rate=10_000, seconds=bench.scale.loss_seconds)
            busy = (running.cpu() - before) / result.seconds
            bench.judge(f"{contender.name}, 10,000/s", result, own=contender.own)
            bench.add(
                "loss",
                name=contender.name,
                answer=answer,
                sent=result.sent,
                lost=result.lost,
                p50_us=result.p50_us,
                p99_us=result.p99_us,
                max_us=result.max_us,
                busy=busy,
            )


def idle(bench: Bench) -> None:
    """All contenders at once, each with 1,000 hosts known and nothing on the wire."""
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(bench.lab())
        started: list[tuple[Contender, Running]] = []
        for number, contender in enumerate(bench.contenders):
            site = Site(lab, name=str(number), core=bench.load_core)
            answer = RESOLVE if RESOLVE in contender.answers else ALWAYS
            running = contender.start(site, answer)
            site.ask(targets=1_000, window=32, seconds=5, once=True, timeout=3.0)
            started.append((contender, running))
        time.sleep(min(3.0, bench.scale.idle))
        before = [running.cpu_exact() for _, running in started]
        time.sleep(bench.scale.idle)
        for (contender, running), earlier in zip(started, before, strict=True):
            used = running.cpu_exact() - earlier
            bench.add("idle", name=contender.name, seconds=bench.scale.idle, cpu_ms=used * 1e3)
        for _, running in started:
            running.stop()


def first_answer(bench: Bench) -> None:
    """From a matching interface having a usable address to its first answer."""
    contender = CONTENDERS[0]
    with bench.running(contender, ALWAYS) as (site, running):
        daemon = running.portier
        assert daemon is not None
        took = []
        for _ in range(bench.scale.starts):
            site.proxy.ip(f"addr flush dev {OUTER} scope link")
            wait_for(lambda: daemon.ports().get(OUTER) == "waiting", 5, "no usable address")
            seconds = 4.0
            args = site.args(targets=1_000, seconds=seconds, respond=True)
            process = site.world.popen(
                command(site.core, *args, "--rate", "2000", "--timeout", "0"),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.3)
            site.proxy.add(OUTER, "fe80::1/64")
            usable = time.monotonic()
            result = Result.read(process.communicate(timeout=seconds + 10)[0])
            if result.wrong or not result.answered:
                bench.problems.append(f"first answer: {result}")
            took.append((result.first_answer_at - usable) * 1e3)
        bench.add("first answer", median_ms=median(took), max_ms=max(took), times=len(took))


def reconcile(bench: Bench) -> None:
    """Many groups with many rules: one round, the descriptors, the memory.  The soft limit on descriptors is
    what a login has, 1,024: raising it is the daemon's own business."""
    scale = bench.scale
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with bench.lab() as lab:
        proxy, world = lab.host("proxy", forwarding=True), lab.host("world")
        world.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        names = [f"{side}{i}" for i in range(scale.groups) for side in ("up", "in")]
        proxy.run(
            ["ip", "-batch", "-"],
            stdin="".join(
                f"link add {name} type veth peer name {name} netns {world.pid}\nlink set {name} up\n"
                for name in [*names, "other"]
            ),
            timeout=300,
        )
        world.run(
            ["ip", "-batch", "-"],
            stdin="".join(f"link set {name} up\n" for name in [*names, "other"]),
            timeout=300,
        )

        def usable() -> bool:
            shown = proxy.run(["ip", "-6", "-o", "addr", "show", "scope", "link"]).stdout.splitlines()
            return len(shown) > len(names)

        # The kernel takes its time to look at so many new links (fifty a second, once it is behind).
        wait_for(usable, 120, "link-local addresses", interval=0.5)
        lines = ["version: 1", "groups:"]
        for i in range(scale.groups):
            rules = ", ".join(f'"2001:db8:{i:x}:{j:x}::/64"' for j in range(scale.rules))
            lines.append(f"  g{i}: {{upstream: up{i}, downstream: [in{i}], prefixes: [{rules}]}}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard[1]), hard[1]))
        started = time.monotonic()
        daemon = lab.portier("\n".join(lines) + "\n", on=proxy, wait=False)
        resource.setrlimit(resource.RLIMIT_NOFILE, hard)
        daemon.wait_ready(120)

        def settled() -> bool:
            status = daemon.status()
            ports = [port for group in status["groups"] for port in group["ports"]]
            return len(ports) == len(names) and all(port["state"] == "active" for port in ports)

        wait_for(settled, 120, "all ports active", interval=0.5)
        loaded = time.monotonic() - started
        running = Running(daemon.pid, lambda: None, daemon)
        took = []
        for i in range(6):
            before = daemon.status()["reconcile"]["rounds"]

            def another(before: int = before) -> bool:
                return int(daemon.status()["reconcile"]["rounds"]) > before

            proxy.ip(f"addr {'del' if i % 2 else 'add'} 2001:db8:ffff::1/64 dev other")
            time.sleep(1.0)  # asking for the status of so many groups disturbs the round
            wait_for(another, 30, "a round", interval=1.0)
            took.append(float(daemon.status()["reconcile"]["last_ms"]))
        del took[0]  # the first looks at all that changed while loading
        bench.add(
            "reconcile",
            groups=scale.groups,
            rules=scale.groups * scale.rules,
            links=2 * scale.groups,
            loaded_s=loaded,
            round_ms=median(took),
            round_max_ms=max(took),
            descriptors=running.descriptors(),
            threads=running.threads(),
            peak_mb=running.peak_mb(),
        )
        stopping = time.monotonic()
        if daemon.stop() != 0:
            bench.problems.append(f"reconcile: a bad end:\n{daemon.tail()}")
        bench.rows["reconcile"][-1]["stop_s"] = time.monotonic() - stopping


def relay(bench: Bench) -> None:
    """Data from link to link, by Portier and by what else there is."""
    for way in WAYS:
        with bench.lab() as lab:
            row = measure(way, lab, bench.load_core, bench.scale.relay_seconds, bench.scale.rounds)
        bench.add("relay", name=way.name, **row)
        if not (row["gbits"] and row["answered"] and all(row[f"udp_{size}"] for size in SIZES)):
            bench.problems.append(f"relay: nothing came over the {way.name}: {row}")


SECTIONS: Final[dict[str, Callable[[Bench], None]]] = {
    "generator": generator_alone,
    "always": always,
    "resolve": resolve,
    "arp": arp,
    "loss": loss,
    "relay": relay,
    "first-answer": first_answer,
    "reconcile": reconcile,
    "idle": idle,
}


# -- the report --------------------------------------------------------------------------------------


def machine(bench: Bench) -> dict[str, Any]:
    """Where the numbers were measured."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    versions = {}
    for contender in (*bench.contenders, *bench.arp_contenders):
        if contender.package not in {"", KERNEL}:
            query = ["dpkg-query", "-W", "-f", "${Version}", contender.package]
            done = subprocess.run(query, check=False, capture_output=True, text=True)
            versions[contender.package] = done.stdout if done.returncode == 0 else "unknown"
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(os.getppid())),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "portier": portier.__version__,
        "peers": versions,
        "generator_core": bench.load_core,
        "daemon_core": bench.own_core,
        "nice": bench.nice,
        "unprivileged": bench.keeper.unprivileged,
    }


@dataclass
class Table:
    """A Markdown table."""

    head: list[str]
    rows: list[list[str]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [self.head, ["---"] + ["---:"] * (len(self.head) - 1), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def times(base: dict[str, Any] | None, windows: dict[str, Any], window: int, what: str) -> str:
    """A number, and how many times the peer's it is."""
    value = windows[str(window)][what]
    if base is None or not base[str(window)][what]:
        return f"{value:,.0f}"
    ratio = value / base[str(window)][what]
    return f"{value:,.0f} ({ratio:,.0f}x)" if ratio >= 100 else f"{value:,.0f} ({ratio:.2f}x)"


def report(bench: Bench, where: dict[str, Any]) -> str:
    """All rows for people."""
    rows = bench.rows
    peers = ", ".join(f"{name} {version}" for name, version in where["peers"].items())
    head = (
        f"{where['cpu']}, {where['cores']} cores, Linux {where['kernel']}, Python {where['python']}, "
        f"portier {where['portier']}, {peers or 'no peers installed'}. The generator and its responder run "
        f"on core {where['generator_core']}, the daemon on core {where['daemon_core']}, "
        f"nice {where['nice']}; "
        f"medians of {bench.scale.rounds} rounds of {bench.scale.seconds} s. (x: times ndppd.)\n"
    )
    parts = [head]
    if "generator" in rows:
        table = Table(["the generator beside its own responder", "answers/s", "p50, us"])
        table.rows = [
            [f"window {row['window']}", f"{row['rate']:,.0f}", f"{row['p50_us']:.0f}"]
            for row in rows["generator"]
        ]
        parts.append(str(table))
    if "always" in rows:
        parts.append(report_always(rows["always"]))
    if "resolve" in rows:
        parts.append(report_resolve(rows["resolve"], bench.scale))
    if "arp" in rows:
        parts.append(report_arp(rows["arp"], rows["arp alone"]))
    if "loss" in rows:
        table = Table(["10,000 solicitations/s, 1,000 known hosts", "sent", "lost", "p50, us", "p99, us",
                       "longest, ms", "core busy"])  # fmt: skip
        for row in rows["loss"]:
            table.rows.append(
                [f"{row['name']} ({row['answer']})", f"{row['sent']:,}", f"{row['lost']:,}",
                 f"{row['p50_us']:.0f}", f"{row['p99_us']:.0f}", f"{row['max_us'] / 1e3:.1f}",
                 f"{row['busy']:.0%}"]
            )  # fmt: skip
        parts.append(str(table))
    if "relay" in rows:
        parts.append(report_relay(rows["relay"]))
    parts.append(report_rest(rows))
    return "\n".join(part for part in parts if part)


def report_always(rows: list[dict[str, Any]]) -> str:
    """The rows of `always`."""
    table = Table(["`always`, answers/s", *(f"window {window}" for window in WINDOWS), "p50 at 1, us",
                   "p99 at 1, us", "CPU per answer, us", "peak memory, MB"])  # fmt: skip
    base = next((row["windows"] for row in rows if row["name"] == "ndppd"), None)
    for row in rows:
        windows = row["windows"]
        rates = [times(base, windows, window, "rate") for window in WINDOWS]
        table.rows.append(
            [row["name"], *rates, times(base, windows, 1, "p50_us"), f"{windows['1']['p99_us']:.0f}",
             times(base, windows, 256, "cpu_us"), f"{row['peak_mb']:.1f}"]
        )  # fmt: skip
    return str(table)


def report_resolve(rows: list[dict[str, Any]], scale: Scale) -> str:
    """The rows of `resolve`, cold and warm, and what must be known to read them."""
    cold = Table(["`resolve`, cold, answers/s", "hosts", *(f"window {window}" for window in WINDOWS),
                  "p50 at 1, us", "CPU per answer, us", "lost", "found in time"])  # fmt: skip
    warm = Table(["`resolve`, warm, answers/s", "hosts", *(f"window {window}" for window in WINDOWS),
                  "p50 at 1, us", "CPU per answer, us", "lost", "peak memory, MB"])  # fmt: skip
    base = {row["targets"]: row for row in rows if row["name"] == "ndppd"}
    for row in rows:
        for table, kind in ((cold, "cold"), (warm, "warm")):
            windows = row[kind]
            other = base[row["targets"]][kind] if row["targets"] in base else None
            rates = [times(other, windows, window, "rate") for window in WINDOWS]
            costs = [times(other, windows, 1, "p50_us"), times(other, windows, 256, "cpu_us")]
            lost = sum(windows[str(window)]["lost"] for window in WINDOWS)
            last = f"{row['known']:,}" if kind == "cold" else f"{row['peak_mb']:.1f}"
            table.rows.append([row["name"], f"{row['targets']:,}", *rates, *costs, f"{lost:,}", last])
    note = (
        "Cold: a fresh daemon each; one asker asks for each host once, windows 1 and 32 for 5 s at most, "
        f"window 256 for {scale.cold_bound:.0f} s (ndppd: {scale.peer_cold_bound:.0f} s, as its lists are "
        "linear). Warm: over the hosts found by then. Portier's limits are raised to their maximum "
        "(neighbors, per_port, per_host, resolutions, per_source, route_changes; pending 65,536), all "
        "addresses belong to one link-layer address. No data is forwarded: above gc_thresh3 of the kernel "
        "(1,024 by default) none could be, by any proxy.\n"
    )
    return f"{cold}\n{warm}\n{note}"


def report_arp(rows: list[dict[str, Any]], alone: list[dict[str, Any]]) -> str:
    """The rows of `arp`, cold and warm, beside parprouted and beside the host itself."""
    cold = Table(["ARP, cold, answers/s", *(f"window {window}" for window in COLD_WINDOWS), "p50 at 1, us",
                  "lost"])  # fmt: skip
    warm = Table(["ARP, warm, answers/s", *(f"window {window}" for window in WINDOWS), "p50 at 1, us",
                  "p99 at 1, us", "lost"])  # fmt: skip
    itself = {str(row["window"]): row for row in alone}
    host = itself["1"]["p50_us"]
    base = next((row for row in rows if row["name"] == "parprouted"), None)
    for table, windows in ((cold, COLD_WINDOWS), (warm, WINDOWS)):
        rates = [f"{itself[str(window)]['rate']:,.0f}" for window in windows]
        table.rows.append(
            ["the host itself", *rates, f"{host:.0f}", *[""] * (len(table.head) - 2 - len(rates))]
        )
    for row in rows:
        for table, windows, kind in ((cold, COLD_WINDOWS, "cold"), (warm, WINDOWS, "warm")):
            found = row[kind]
            rates = [times(base and base[kind], found, window, "rate") for window in windows]
            p50 = f"{found['1']['p50_us']:,.0f} ({found['1']['p50_us'] - host:+,.0f})"
            rest = [f"{found['1']['p99_us']:,.0f}"] if kind == "warm" else []
            lost = sum(found[str(window)]["lost"] for window in windows)
            table.rows.append([f"{row['name']} ({row['answer']})", *rates, p50, *rest, f"{lost:,}"])
    count = rows[0]["targets"]
    note = (
        f"(x: times parprouted; +: more than the host itself.) Cold: {count:,} hosts for each window, each "
        "asked for once. Warm: over all of them. The host itself is the generator beside its own responder. "
        "The prefix is on-link upstream, where an owner has 3 ms to answer before one downstream is "
        "believed. `proxy_arp` looks for nobody: it answers for every address that it has a route to, by "
        "default up to 0.8 s later.\n"
    )
    return f"{cold}\n{warm}\n{note}"


def report_relay(rows: list[dict[str, Any]]) -> str:
    """The rows of `relay`."""
    sizes = [f"udp_{size}" for size in SIZES]
    table = Table(["relaying", "TCP, Gbit/s", *(f"UDP, {size} octets, packets/s" for size in SIZES),
                   "p50 there and back, us", "p99, us"])  # fmt: skip
    base = next((row for row in rows if row["name"] == "forwarding"), None)
    cable = next((row["p50_us"] for row in rows if row["name"] == "cable"), 0.0)
    for row in rows:

        def beside(what: str, digits: int = 0, row: dict[str, Any] = row) -> str:
            ratio = f" ({row[what] / base[what]:.2f}x)" if base and base[what] else ""
            return f"{row[what]:,.{digits}f}{ratio}"

        table.rows.append(
            [row["name"], beside("gbits", 1), *(beside(size) for size in sizes),
             f"{row['p50_us']:.0f} ({row['p50_us'] - cable:+.0f})", f"{row['p99_us']:.0f}"]
        )  # fmt: skip
    note = (
        "(x: times kernel forwarding; +: more than over the bare cable.) Both ends of the traffic, and all "
        "that the kernel does for it, share the generator's core; Portier has the other one. UDP is sent "
        "faster than anything takes it, and what arrives is counted. A segment of TCP that is passed on has "
        "up to 64 KiB.\n"
    )
    return f"{table}\n{note}"


def report_rest(rows: dict[str, list[dict[str, Any]]]) -> str:
    """The single numbers."""
    table = Table(["also", "measured"])
    for row in rows.get("first answer", []):
        table.rows.append(
            ["usable address to first answer",
             f"{row['median_ms']:.0f} ms (longest of {row['times']}: {row['max_ms']:.0f} ms)"]
        )  # fmt: skip
    for row in rows.get("reconcile", []):
        what = f"{row['groups']:,} groups, {row['rules']:,} rules, {row['links']:,} links: "
        table.rows += [
            [what + "one reconcile round",
             f"{row['round_ms']:.0f} ms (longest: {row['round_max_ms']:.0f} ms)"],
            [what + "start to all ports active; stop",
             f"{row['loaded_s']:.1f} s; {row.get('stop_s', 0):.1f} s"],
            [what + "descriptors, threads, peak memory",
             f"{row['descriptors']:,}, {row['threads']:,}, {row['peak_mb']:.0f} MB"],
        ]  # fmt: skip
    table.rows += [
        [
            f"idle with 1,000 known hosts, CPU in {row['seconds']:.0f} s: {row['name']}",
            f"{row['cpu_ms']:.1f} ms",
        ]
        for row in rows.get("idle", [])
    ]
    return str(table) if table.rows else ""


def main() -> int:
    """Run the sections, print the report; 1 when an answer was wrong or missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="about a minute, right answers only")
    parser.add_argument("--quick", action="store_true", help="a minute or two, for tuning")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there too")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="only these sections")
    parser.add_argument("--contender", nargs="+", help="only those whose name contains one of these")
    given = parser.parse_args()
    scale = SMOKE if given.smoke else QUICK if given.quick else FULL
    try:
        keeper = Keeper.start()
    except UnavailableError as error:
        print(f"no network namespaces here: {error}", file=sys.stderr)
        return 77
    bench = Bench(keeper, scale, smoke=given.smoke)
    where = machine(bench)
    if given.contender:
        bench.contenders, bench.arp_contenders = (
            [contender for contender in there if any(part in contender.name for part in given.contender)]
            for there in (bench.contenders, bench.arp_contenders)
        )
    os.sched_setaffinity(0, {bench.own_core})  # inherited by what is started from here on
    try:
        with priority(bench.nice):
            for name, section in SECTIONS.items():
                if not given.only or name in given.only:
                    bench.say(name)
                    section(bench)
    finally:
        print(report(bench, where))
        if given.json:
            numbers = {"machine": where, "scale": asdict(scale), **bench.rows}
            given.json.write_text(json.dumps(numbers, indent=1))
        keeper.close()
    for problem in bench.problems:
        print(f"PROBLEM: {problem}", file=sys.stderr)
    return 1 if bench.problems else 0


if __name__ == "__main__":
    sys.exit(main())

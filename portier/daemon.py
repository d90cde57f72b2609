"""The composition root: builds the parts, fits them together, and lives as a process.

It reads the configuration first and touches the kernel last, so that whatever keeps it from starting
changes nothing.  Then the main thread sleeps until a signal or the service manager's watchdog wants
something; the reconciler, the workers and the control socket have threads of their own.  What the control
socket answers is put together here, from what those parts know.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import ipaddress
import logging
import math
import os
import random
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, Final

from portier import config as configuration
from portier.core.engine import KernelOracle, KnownHost
from portier.core.engine import Service as PortService
from portier.core.histogram import Tally
from portier.core.loops import Memory
from portier.core.model import Bound, Config, Event, EventKind, Mode, Notice
from portier.core.notes import NOTHING_NOTED
from portier.core.outcome import Verdict
from portier.core.plan import GroupReport
from portier.core.relay import RelayEngine
from portier.core.route import RouteEngine
from portier.errors import ConfigError, PortierError, Refused
from portier.probing import Probe
from portier.runtime import metrics, reconcile
from portier.runtime.events import EventLog
from portier.runtime.facts import (
    missed,
    multicast_facts,
    noted_facts,
    notice_facts,
    port_facts,
    relay_facts,
    router_facts,
    standing_of,
    states,
)
from portier.runtime.feed import PACKET, Feed, Filter, Watcher
from portier.runtime.recollection import Recollection
from portier.runtime.reconcile import Planned, Reconciler, Round
from portier.runtime.supervisor import GroupStatus, Supervisor
from portier.runtime.worker import Worker
from portier.system import logs
from portier.system.control import SOCKET_NAME, ControlServer, Listener, Page, group_id
from portier.system.hosts import HostFile
from portier.system.kernel import Kernel
from portier.system.monitor import Monitor
from portier.system.multicast import Memberships
from portier.system.packet import PacketPort
from portier.system.process import (
    become_owner,
    hold_place,
    make_runtime_dir,
    place_holder,
    raise_descriptors,
    require_own,
    require_rights,
)
from portier.system.record import Record
from portier.system.service import Service
from portier.system.sysctl import too_few_neighbors
from portier.system.watch import ConfigWatch

EXIT_USAGE: Final = 64
EXIT_NO_DAEMON: Final = 4
EXIT_CONFIG: Final = 78

_SWITCH_INTERVAL: Final = 0.0002  # seconds; packet threads share the interpreter with everything else
# A full collection stops every thread for as long as it takes to walk all objects: seldom, then, and
# without those that live as long as the process.  Little here is cyclic.
_COLLECTIONS: Final = (50_000, 20, 1_000)
_CHANGES_HOSTS: Final = frozenset({EventKind.LEARNED, EventKind.MOVED, EventKind.LOST, EventKind.LIMIT})
_SAVE_AFTER: Final = 1.0  # seconds, so that many changes are saved at once,
_SAVE_SHARE: Final = 50  # and that saving takes a fiftieth of a CPU at most
_SAVE_AGAIN: Final = 10.0  # seconds after which it is tried again where it failed
_FIRST_ROUND: Final = 60.0  # seconds until readiness is told even if the first round is still busy
_RELOAD: Final = 110.0
_PLAN: Final = 50.0
_STATUS: Final = 2.0  # seconds that a status waits for a look at the kernel
_EXPLAIN: Final = 8.0  # seconds that a host is given to answer before `explain` says what it knows
_EXPLAIN_STEP: Final = 0.05
_OTHER_GROUPS: Final = 50  # that are asked whether they know an address which the right one refuses
_REFRESH: Final = 1.0  # seconds between updates of what the service manager shows
_LISTEN_AGAIN: Final = 10.0  # seconds after which a port that was in use is tried again
_ANSWERED: Final = frozenset(
    # The last: in mode relay the owner answers for itself.
    {Verdict.ANSWERED, Verdict.DEFENDED, Verdict.OWN_ADDRESS, Verdict.KERNEL, Verdict.RELAYED}
)
# How much a group has to say that does not answer; all others more.  A group in mode relay has a word about
# any IPv6 address.
_WEIGHTS: Final = {None: 0, Verdict.NO_RULE: 1, Verdict.NOT_IPV6: 1, Verdict.RESOLVING: 2}

_Found = tuple[list[str], Verdict | None]
"""The steps of an explanation, and where they lead; None when no engine could be asked."""

log = logging.getLogger(__name__)


class Daemon:
    """One daemon.  `run` returns the exit code; what keeps it from starting is raised: `ConfigError`
    (exit 78) with every problem, `Refused` (its own exit code) with what to do about it."""

    def __init__(self, config_path: Path, runtime_dir: Path) -> None:
        self.config_path = config_path.absolute()
        self.runtime_dir = runtime_dir.absolute()
        self.started = time.monotonic()
        self._bell, self._rope = socket.socketpair()
        self._bell.setblocking(False)
        self._rope.setblocking(False)
        self._signals: list[int] = []
        self._service = Service()
        self._events = EventLog(time.monotonic, self._ring)
        self._feed = Feed()
        self._metrics = Listener({("GET", "/metrics"): self.metrics})
        self._listen_at = math.inf
        self._load = functools.partial(configuration.load_in_child, self.config_path)
        self._digest = functools.partial(configuration.digest, self.config_path)
        self._problems: tuple[Notice, ...] = ()
        self._refresh_at = math.inf
        self._refreshed = -math.inf
        self._round_seen = 0
        self._recollection = Recollection((), time.monotonic)
        self._save_at = math.inf
        self._saved = -math.inf  # until when saving again would take too much
        self._unsaved = ""  # why the last try failed
        self._applied = 0  # generation of the configuration
        self._heard: dict[str, Memory] = {}  # what hold-downs follow from, by group: outlives its worker
        self._probing = threading.Lock()  # one probe at a time
        self._news = False  # from an engine, of what may degrade the daemon without a round

    # -- life ----------------------------------------------------------------------------------------

    def run(self) -> int:
        """Start, serve until told to stop, stop and undo everything."""
        sys.setswitchinterval(_SWITCH_INTERVAL)
        gc.set_threshold(*_COLLECTIONS)
        for early in (signal.SIGHUP, signal.SIGUSR1):
            signal.signal(early, signal.SIG_IGN)  # a reload that comes before the first load ends nothing
        become_owner(self.runtime_dir)
        loaded = self._load()
        require_rights()
        raise_descriptors()
        logs.configure(loaded.config.log_level, loaded.config.log_format)
        threading.excepthook = _log_thread_failure
        with contextlib.ExitStack() as stack:
            stack.callback(self._rope.close)
            stack.callback(self._bell.close)
            stack.callback(self._service.close)
            stack.enter_context(self._handle_signals())
            stack.enter_context(hold_place())
            make_runtime_dir(self.runtime_dir)
            self._record = stack.enter_context(Record(self.runtime_dir))
            self._hosts = HostFile(self.runtime_dir)
            self._recollection = Recollection(self._hosts.load(), time.monotonic)
            self._supervisor = Supervisor(self._make_worker, self._wake)
            stack.callback(self._supervisor.close)
            self._reconciler = Reconciler(
                open_kernel=self._open_kernel,
                record=self._record,
                workers=self._supervisor,
                load=self._load,
                digest=self._digest,
                emit=self._emit,
                after=self._ring,
                recalled=self._recollection.known,
                clock=time.monotonic,
            )
            self._reconciler.take(loaded)
            self._control = stack.enter_context(self._control_server())
            stack.callback(self._metrics.close)
            self._monitor = stack.enter_context(Monitor(self._wake))
            stack.enter_context(ConfigWatch(self.config_path, self._wake))
            self._wake("file")  # for an edit between the first load and the watch
            log.info("portier %s starts: %s", _version(), self.config_path)
            first = self._reconciler.start()
            code = 1
            try:
                first.add_done_callback(lambda _: self._ring())
                self._serve(first)
            finally:
                try:
                    self._save_hosts()
                finally:
                    code = self._undo()
            return code

    def _undo(self) -> int:
        self._service.stopping()
        log.info("stopping")
        left = self._reconciler.stop()
        self._events.flush()
        for error in left.errors:
            log.error("not undone: %s", error)
        if left.pending or left.errors:
            log.error("`portier cleanup` tries again to undo what is left")
            return 1
        return 0

    def _serve(self, first: Future[Round]) -> None:
        """Wait for signals, and do what has its time; returns when told to stop.  Readiness is told after
        the ``first`` round, or when that takes too long."""
        watchdog = self._service.watchdog
        alive_at = time.monotonic() if watchdog else math.inf
        ready_at = time.monotonic() + _FIRST_ROUND
        waiting_until = self._recollection.until
        while True:
            now = time.monotonic()
            if ready_at < math.inf and (first.done() or now >= ready_at):
                ready_at = math.inf
                self._begin()
            if watchdog and now >= alive_at:
                # Twice, the service manager's whole patience: a round may begin with a load of the file.
                if not self._reconciler.hangs(2 * watchdog):
                    self._service.alive()
                alive_at = now + watchdog
            if now >= self._listen_at:
                self._listen(self._reconciler.settings.config)
                self._refresh()
            if now >= self._refresh_at:
                self._refresh()
            if now >= self._events.due:
                self._events.flush()
            if now >= self._save_at:
                self._save_hosts()
            if now >= waiting_until:
                waiting_until = math.inf
                self._wake("recalled")  # the routes of hosts that have not answered go now
            due = min(
                ready_at,
                alive_at,
                self._refresh_at,
                self._listen_at,
                self._events.due,
                self._save_at,
                waiting_until,
            )
            timeout = None if due == math.inf else max(0.0, due - time.monotonic())
            if select.select([self._bell], [], [], timeout)[0]:
                with contextlib.suppress(BlockingIOError):
                    self._bell.recv(4096)
            if self._refresh_at == math.inf and (self._news or self._reconciler.rounds != self._round_seen):
                self._refresh_at = self._refreshed + _REFRESH
            while self._signals:
                number = self._signals.pop(0)
                if number in {signal.SIGTERM, signal.SIGINT}:
                    return
                self._obey(number)

    def _begin(self) -> None:
        """All is built: leave it to no collection any more, and say so."""
        gc.collect()
        gc.freeze()
        self._refresh()
        self._service.ready(self._status_line())

    def _obey(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._service.reloading()
            self._reconciler.ask_reload().add_done_callback(
                lambda _: self._service.ready(self._status_line())
            )
        elif number == signal.SIGUSR1:
            for line in self._summary():
                log.info("%s", line)

    def _refresh(self) -> None:
        """Tell the service manager and the log how things stand, when that has changed."""
        self._round_seen, self._news = self._reconciler.rounds, False
        self._refreshed, self._refresh_at = time.monotonic(), math.inf
        settings = self._reconciler.settings
        if settings.generation != self._applied:
            self._applied = settings.generation
            self._apply(settings.config)
        problems = tuple(self._find_problems(self._supervisor.status()))
        if problems != self._problems:
            for problem in problems:
                if problem not in self._problems:
                    log.warning("degraded: %s", problem)
            if not problems:
                log.info("healthy")
            self._problems = problems
        self._service.status(self._status_line())

    def _apply(self, config: Config) -> None:
        """What the configuration says of the process itself."""
        logs.configure(config.log_level, config.log_format)
        self._control.set_group(group_id(config.control_group))
        self._listen(config)

    def _listen(self, config: Config) -> None:
        """Serve the metrics where the configuration says."""
        self._metrics.listen(config.metrics_listen)
        self._listen_at = time.monotonic() + _LISTEN_AGAIN if self._metrics.error else math.inf

    def _status_line(self) -> str:
        groups = self._reconciler.report.groups
        ports = sum(port.state == "active" for of in groups for port in of.ports)
        line = f"{len(groups)} groups, {ports} ports active"
        return f"degraded: {self._problems[0]} ({line})" if self._problems else line

    def _wake(self, reason: str) -> None:
        self._reconciler.wake(reason)

    def _ring(self) -> None:
        """Have the main thread look whether something is due."""
        with contextlib.suppress(BlockingIOError, OSError):
            self._rope.send(b"\0")

    @contextlib.contextmanager
    def _handle_signals(self) -> Iterator[None]:
        """Collect signals for the main loop, which their arrival wakes."""

        def note(number: int, _frame: FrameType | None) -> None:
            self._signals.append(number)

        numbers = (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, note) for number in numbers}
        wakeup = signal.set_wakeup_fd(self._rope.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)

    # -- parts ---------------------------------------------------------------------------------------

    def _open_kernel(self) -> Kernel:
        return Kernel(self._record, self._monitor)

    def _make_worker(self, bound: Bound, crashed: Callable[[Exception], None]) -> Worker:
        relays = bound.group.mode is Mode.RELAY
        heard = self._heard.setdefault(bound.group.name, {}) if relays else {}

        def make_relay(_kernel: KernelOracle) -> RelayEngine:
            return RelayEngine(random.random, heard)

        return Worker(
            bound.group.name,
            open_port=functools.partial(PacketPort, data=relays),
            open_kernel=self._open_kernel,
            open_memberships=Memberships,
            recollect=self._recollection.take,
            make_engine=make_relay if relays else RouteEngine,
            feed=self._feed,
            on_event=self._hear,
            wake=self._wake,
            crashed=crashed,
        )

    def _emit(self, event: Event) -> None:
        """Tell of an event."""
        self._events.emit(event)
        self._feed.event(event)

    def _hear(self, event: Event) -> None:
        """Take an event of a worker's, in its thread."""
        self._news = self._news or event.kind in {EventKind.LOOP, EventKind.ROUTER}
        self._emit(event)
        if event.kind in _CHANGES_HOSTS and self._save_at == math.inf:
            self._save_at = max(time.monotonic() + _SAVE_AFTER, self._saved)
            self._ring()

    def _save_hosts(self) -> None:
        """Keep the known hosts for the next start, those heard last first."""
        self._save_at = math.inf
        begin = time.monotonic()
        running = self._supervisor.running()
        hosts = []
        for name, infos in self._supervisor.neighbors().items():
            bound = running.get(name)
            if bound is None or bound.group.mode is Mode.RELAY:
                continue  # what is relayed needs nobody to be known
            ports = {port.name: port for port in bound.ports}
            hosts += [
                (info.age, KnownHost(info.address, info.mac, port.ifindex, port.mac, port.name, name))
                for info in infos
                if (port := ports.get(info.port)) is not None and port.mac is not None
            ]
        hosts.sort()
        try:
            self._hosts.save(host for _, host in hosts)
            unsaved = ""
        except OSError as error:
            unsaved = str(error)
            self._save_at = begin + _SAVE_AGAIN
            if unsaved != self._unsaved:
                log.warning("the known hosts are not saved: %s", unsaved)
        self._unsaved = unsaved
        end = time.monotonic()
        self._saved = end + _SAVE_SHARE * (end - begin)

    def _control_server(self) -> ControlServer:
        routes: dict[tuple[str, str], Callable[..., object]] = {
            ("GET", "/v1/status"): self.status,
            ("GET", "/v1/neighbors"): self.neighbors,
            ("GET", "/v1/explain"): self.explain,
            ("GET", "/v1/events"): self.watch,
            ("GET", "/metrics"): self.metrics,
            ("POST", "/v1/lift"): self.lift,
            ("POST", "/v1/probe"): self.probe,
            ("POST", "/v1/reload"): self.reload,
            ("POST", "/v1/plan"): self.plan,
        }
        group = self._reconciler.settings.config.control_group
        return ControlServer(self.runtime_dir / SOCKET_NAME, routes, group_id(group))

    # -- what the control socket answers -------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Everything about everything, for `portier status`."""
        now = time.monotonic()
        reconciler = self._reconciler
        if reconciler.report.entries:
            reconciler.look(_STATUS)  # no event tells of proxy entries that are gone
        settings, last, report = reconciler.settings, reconciler.last, reconciler.report
        workers, tallies = self._supervisor.status(), self._supervisor.tallies()
        problems = list(self._find_problems(workers))
        groups = [(of, workers.get(of.group.name)) for of in report.groups]
        warnings = {of.group.name: self._warnings(of, worker) for of, worker in groups}
        told = [notice_facts("problem", "", problem) for problem in problems]
        told += [notice_facts("warning", "", warning) for warning in report.foreign]
        told += [notice_facts("warning", name, each) for name, found in warnings.items() for each in found]
        return {
            "version": 1,
            "pid": os.getpid(),
            "uptime": now - self.started,
            "healthy": not problems,
            "problems": problems,
            "notices": told,
            "config": {
                "file": str(self.config_path),
                "generation": settings.generation,
                "age": now - settings.loaded_at,
                "error": list(settings.refused) or None,
                "differs": settings.differs,
                "warnings": [*map(str, settings.warnings), *report.foreign],
            },
            "groups": [
                self._group(of, worker, tallies.get(of.group.name), warnings[of.group.name])
                for of, worker in groups
            ],
            "reconcile": {
                "rounds": reconciler.rounds,
                "last_ms": last.seconds * 1000,
                "pending_steps": [str(step) for step in last.pending],
                "errors": list(last.errors),
            },
            "sysctls": [
                f"{path} {found} -> {made}" for path, (found, made) in sorted(self._record.sysctls().items())
            ],
            "events": self._events.recent(),
        }

    @staticmethod
    def _warnings(of: GroupReport, worker: GroupStatus | None) -> list[Notice]:
        """What a group has to be warned of."""
        group = of.group
        # In mode relay, without rules, the kernel resolves nothing but what this host sends itself.
        versions = {rule.version for rule in group.rules}
        warnings = [*of.warnings, *too_few_neighbors(group.limits.neighbors, versions)]
        if worker is None:
            return warnings
        joined = worker.wires.joined
        if joined.refused:
            warnings.append(
                Notice(
                    "multicast-groups",
                    f"{joined.refused} multicast groups could not be joined ({joined.error}): a switch "
                    "that snoops MLD may keep solicitations back",
                )
            )
        if group.mode is Mode.ROUTE:
            warnings += [notice for router in worker.routers for notice in missed(router, of)]
        return warnings

    @staticmethod
    def _group(
        of: GroupReport, worker: GroupStatus | None, tally: Tally | None, warnings: list[Notice]
    ) -> dict[str, Any]:
        group = of.group
        routers = worker.routers if worker is not None else ()
        return {
            "name": group.name,
            "mode": group.mode.value,
            "table": of.tables.own if of.tables else None,
            "uplink_table": (of.tables.uplink or None) if of.tables else None,
            "upstream": {"candidates": list(group.upstream), "active": of.active},
            "ports": [port_facts(port, worker, tally) for port in of.ports],
            "routers": [router_facts(router) for router in routers],
            "live": [{"prefix": str(live.prefix), "grace_left": live.grace_left} for live in of.live],
            "rules": len(group.rules),
            "neighbors": worker.neighbors if worker else 0,
            "states": dict(tally.states) if tally else {},
            "unfound": tally.failed if tally else 0,
            "pending": worker.pending if worker else 0,
            "ipv4": "not relayed" if group.mode is Mode.RELAY else "" if of.ipv4 else "no rule",
            "worker": {
                "state": worker.state if worker else "waiting",
                "restarts": worker.restarts if worker else 0,
                "error": worker.error if worker else "",
            },
            "counters": worker.counters if worker else {},
            "multicast": multicast_facts(group, worker),
            "limits": asdict(group.limits),
            "warnings": warnings,
            **noted_facts(worker.noted if worker else NOTHING_NOTED),
        }

    def _find_problems(self, workers: Mapping[str, GroupStatus]) -> Iterator[Notice]:
        """What degrades the daemon."""
        settings, report = self._reconciler.settings, self._reconciler.report
        for line in settings.refused:
            yield Notice("config", f"the configuration on disk is refused: {line}")
        if self._metrics.error:
            where = settings.config.metrics_listen
            yield Notice("metrics", f"metrics are not served on {where}: {self._metrics.error}")
        for command in report.missing:
            yield Notice("sysctls", "`sysctls: check` leaves this to you", command)
        for of in report.groups:
            yield from of.problems
            name, most = of.group.name, of.group.limits.neighbors
            worker = workers.get(name)
            if worker is None:
                continue
            if worker.state == "restarting":
                text = f"its worker crashed and is restarted: {worker.error}"
                yield Notice("worker", text, group=name)
            for port, why in worker.wires.faults.items():
                yield Notice("ports", f"port {port}: {why}", group=name)
            ports = {port.ifindex: port.name for port in of.ports}
            for standing in worker.standings:
                if standing.service is PortService.HOLD_DOWN:
                    port = ports.get(standing.ifindex, "")
                    yield Notice(
                        "hold-down",
                        f"{port} is in hold-down: {standing.reason}; when that is put right",
                        f"portier lift {port}",
                        group=name,
                    )
            if worker.neighbors >= most:
                yield Notice("table-full", f"its table is full, limits.neighbors is {most}", group=name)
        for error in self._reconciler.last.errors:
            yield Notice("steps", error)

    def neighbors(self) -> dict[str, Any]:
        """The hosts known, for `portier neighbors`."""
        known = [
            {
                "address": str(ipaddress.ip_address(host.address)),
                "group": name,
                "port": host.port,
                "mac": host.mac.hex(":"),
                "state": host.state,
                "age": host.age,
                "route": host.route,
            }
            for name, hosts in self._supervisor.neighbors().items()
            for host in hosts
        ]
        return {"version": 1, "neighbors": known}

    def watch(
        self, group: str = "", port: str = "", address: str = "", kind: str = "", packets: str = ""
    ) -> Watcher:
        """What happens from now on, for `portier watch`.  Each filter is a list with blanks between; an
        ``address`` may be a prefix.  ``packets`` is "1" for solicitations too, "frames" for all of them."""
        kinds = sorted({*EventKind, PACKET})
        if unknown := sorted(set(kind.split()).difference(kinds)):
            raise Refused(f"no event is of kind {unknown[0]}: it is one of {', '.join(kinds)}", EXIT_USAGE)
        if packets not in {"", "1", "frames"}:
            raise Refused('packets is "1" or "frames"', EXIT_USAGE)
        networks = []
        for text in address.split():
            try:
                networks.append(ipaddress.ip_network(text))
            except ValueError as error:
                raise Refused(f"{text!r} is neither an address nor a prefix", EXIT_USAGE) from error
        return self._feed.watch(
            Filter(
                groups=frozenset(group.split()),
                ports=frozenset(port.split()),
                kinds=frozenset(kind.split()),
                networks=tuple(networks),
                packets=bool(packets),
                frames=packets == "frames",
            )
        )

    def metrics(self) -> Page:
        """Everything in numbers, in Prometheus' text format."""
        reconciler, workers = self._reconciler, self._supervisor.status()
        now = time.monotonic()
        figures = metrics.Figures(
            version=_version(),
            started=time.time() - (now - self.started),
            now=now,
            problems=sum(1 for _ in self._find_problems(workers)),
            settings=reconciler.settings,
            rounds=reconciler.rounds,
            failures=reconciler.failures,
            last=reconciler.last,
            groups=reconciler.report.groups,
            workers=workers,
            tallies=self._supervisor.tallies(),
            events=self._events.counts(),
            watchers=self._feed.watchers,
        )
        return Page(metrics.CONTENT_TYPE, metrics.page(figures))

    def lift(self, port: str) -> dict[str, Any]:
        """End the hold-down of a port, for `portier lift`."""
        why = f"no group names {port} or matches it"
        workers = self._supervisor.status()
        for of in self._reconciler.report.groups:
            for found in of.ports:
                if found.name != port:
                    continue
                name = of.group.name
                if of.group.mode is not Mode.RELAY:
                    raise Refused(
                        f"{port} is a port of group {name}, in mode route: nothing is held down there"
                    )
                standing = standing_of(found, workers.get(name))
                if standing is not None and standing.service is PortService.HOLD_DOWN:
                    self._supervisor.lift(name, found.ifindex)
                    return {"version": 1, "group": name, "port": port, "was": relay_facts(standing)}
                state = standing.service if standing else f"{found.state}, {found.reason}"
                why = f"{port} is a port of group {name}, and is not in hold-down: {state}"
        raise Refused(why)

    def reload(self, config: str | None = None) -> dict[str, Any]:
        """Load the configuration, wait for the round that applies it, for `portier reload`."""
        self._require_file(config)
        try:
            done = self._reconciler.reload(_RELOAD)
        except TimeoutError:
            raise Refused(f"the reload takes longer than {_RELOAD:.0f} s: see `portier status`") from None
        return {
            "ok": not done.refused,
            "errors": list(done.refused or done.errors),
            "steps": [str(step) for step in done.steps],
        }

    def plan(self, config: str | None = None) -> dict[str, Any]:
        """The steps that applying the configuration on disk would take now, for `portier plan`."""
        self._require_file(config)
        try:
            loaded = self._load()
        except ConfigError as error:
            raise Refused(str(error), EXIT_CONFIG) from error
        try:
            planned = self._reconciler.steps(loaded.config, _PLAN)
        except TimeoutError:
            raise Refused("the daemon is too busy to plan: see `portier status`") from None
        return plan_answer(planned)

    def _require_file(self, config: str | None) -> None:
        """Refuse when the user names another file than the daemon's own, which alone it reads."""
        if config is not None and os.path.realpath(config) != os.path.realpath(self.config_path):
            raise Refused(
                f"the daemon runs with {self.config_path}, not with {config}: leave out -c, or judge that "
                f"file by `portier check -c {config}`",
                EXIT_USAGE,
            )

    def explain(self, address: str, on: str | None = None) -> dict[str, Any]:
        """Why a solicitation for ``address`` on port ``on`` (else on the upstreams) would be answered, or
        would not, for `portier explain`."""
        try:
            target = ipaddress.ip_address(address).packed
        except ValueError as error:
            raise Refused(f"{address!r} is not an address", EXIT_USAGE) from error
        groups = self._reconciler.report.groups
        if on is None:
            steps, verdict = self._explain_anywhere(groups, target)
        else:
            steps, verdict = self._explain_on(groups, target, on)
        return {
            "version": 1,
            "address": str(ipaddress.ip_address(target)),
            "answered": verdict in _ANSWERED,
            "verdict": verdict.label if verdict is not None else "no-port",
            "steps": steps,
        }

    def probe(self, address: str, on: str | None = None) -> dict[str, Any]:
        """Follow a solicitation for ``address`` through the proxy, for `portier doctor --probe`."""
        try:
            target = ipaddress.ip_address(address).packed
        except ValueError as error:
            raise Refused(f"{address!r} is not an address", EXIT_USAGE) from error
        groups = self._reconciler.report.groups
        if not groups:
            raise Refused("no group is configured")
        if on is not None:
            chosen = next((of for of in groups if any(port.name == on for port in of.ports)), None)
            if chosen is None:
                raise Refused(f"no group names {on} or matches it")
        else:
            weights = [
                _WEIGHTS.get(verdict, 3)
                for _, verdict in (self._explain_now(of, target, None) for of in groups)
            ]
            chosen = groups[weights.index(max(weights))]
        running = self._supervisor.running()
        # To wait would keep one of few connections, and `status` with it, for half a minute each.
        if not self._probing.acquire(blocking=False):
            raise Refused("another probe is under way: try again in a few seconds")
        try:
            return Probe(self._supervisor, chosen, running.get(chosen.group.name), target, on).run()
        finally:
            self._probing.release()

    def _explain_anywhere(self, groups: tuple[GroupReport, ...], target: bytes) -> _Found:
        """Explain for the group that has most to say: one that answers, else one that has a rule."""
        best: _Found | None = None
        ready = [of for of in groups if of.active is not None or not of.group.upstream]
        names = [of.group.name for of in ready]
        explained = dict(zip(names, self._explain_in(ready, target, None), strict=True))
        for of in groups:
            missing = [f"group {of.group.name}: no upstream is active", *states(of)], None
            found = explained.get(of.group.name, missing)
            if found[1] in _ANSWERED:
                return found
            if best is None or _WEIGHTS.get(found[1], 3) > _WEIGHTS.get(best[1], 3):
                best = found
        return best or (["no group is configured"], None)

    def _explain_on(self, groups: tuple[GroupReport, ...], target: bytes, on: str) -> _Found:
        reason = f"no group names {on} or matches it"
        for of in groups:
            for port in of.ports:
                if port.name != on:
                    continue
                if port.state == "active" or port.reason == "no usable address":
                    ((steps, verdict),) = self._explain_in([of], target, port.ifindex)
                    if verdict is Verdict.NO_RULE:
                        steps += self._known_elsewhere(groups, of, target)
                    return steps, verdict
                reason = f"{on} is a port of group {of.group.name}, and {port.state}: {port.reason}"
        return [reason], None

    def _explain_in(self, groups: Sequence[GroupReport], target: bytes, ifindex: int | None) -> list[_Found]:
        """Let groups' engines explain.  Where none answers yet, a host that some would ask for is asked for
        in all of them, and waited for until one answers, for as long as the most patient of them would."""
        found = [self._explain_now(of, target, ifindex) for of in groups]
        patience = 0.0
        for of, (_, verdict) in zip(groups, found, strict=True):
            if verdict in _ANSWERED:
                return found
            if verdict is Verdict.RESOLVING:
                patience = max(patience, of.group.timers.retransmit * of.group.timers.retries + 0.5)
                with contextlib.suppress(PortierError):  # its explanation will say why
                    self._supervisor.ask(of.group.name, target)
        deadline = time.monotonic() + min(patience, _EXPLAIN)
        while time.monotonic() < deadline:
            verdicts = {verdict for _, verdict in found}
            if Verdict.RESOLVING not in verdicts or verdicts & _ANSWERED:
                break
            time.sleep(_EXPLAIN_STEP)
            for number, of in enumerate(groups):
                if found[number][1] is Verdict.RESOLVING:
                    found[number] = self._explain_now(of, target, ifindex)
        return found

    def _explain_now(self, of: GroupReport, target: bytes, ifindex: int | None) -> _Found:
        name = of.group.name
        try:
            said = self._supervisor.explain(name, target, ifindex)
        except PortierError as error:
            return [f"group {name}: {error}"], None
        return [f"group {name}", *said.steps], said.verdict

    def _known_elsewhere(
        self, groups: tuple[GroupReport, ...], here: GroupReport, target: bytes
    ) -> list[str]:
        for of in groups[:_OTHER_GROUPS]:
            if of is here:
                continue
            with contextlib.suppress(PortierError):
                if self._supervisor.explain(of.group.name, target, None).verdict is not Verdict.NO_RULE:
                    return [f"group {of.group.name} has a rule for it, but solicitations never cross groups"]
        return []

    def _summary(self) -> Iterator[str]:
        """The status in a line a group, for the log."""
        status = self.status()
        yield "healthy" if status["healthy"] else f"degraded: {'; '.join(status['problems'])}"
        for group in status["groups"]:
            ports = [port["name"] + _trouble(port) for port in group["ports"]]
            yield (
                f"group {group['name']}: upstream {group['upstream']['active'] or 'none'}; "
                f"ports {', '.join(ports) or 'none'}; {group['neighbors']} hosts known, "
                f"{group['pending']} asked for; worker {group['worker']['state']}"
            )


def _trouble(port: Mapping[str, Any]) -> str:
    """What keeps a port from taking part, in brackets; "" where nothing does."""
    if port["state"] != "active":
        return f" ({port['reason'] or port['state']})"
    relay = port["relay"]
    return f" ({relay['service']})" if relay and relay["service"] != PortService.FORWARDING else ""


# -- without a daemon ----------------------------------------------------------------------------------


def plan_answer(planned: Planned) -> dict[str, Any]:
    """What would be done, and what is wrong then, as `portier plan` takes it."""
    return {
        "version": 1,
        "steps": [str(step) for step in planned.steps],
        "warnings": list(planned.warnings),
    }


def plan_once(config_path: Path, runtime_dir: Path) -> Planned:
    """The steps that a daemon started now would do.  Touches nothing; knows no hosts.  Raises `Refused` where
    a daemon runs that did not answer."""
    if holder := place_holder():
        raise Refused(
            f"a daemon runs in this network namespace{holder}, but does not answer on {runtime_dir}: "
            "name its --runtime-dir",
            EXIT_NO_DAEMON,
        )
    become_owner(runtime_dir)
    loaded = configuration.load(config_path)
    with Record(runtime_dir) as record, Kernel(record) as kernel:
        return reconcile.once(loaded.config, kernel, record, time.monotonic)


def cleanup(runtime_dir: Path) -> Round:
    """Remove what a dead daemon left in the kernel, and restore what it changed.  Raises `Refused` while
    one runs."""
    become_owner(runtime_dir)
    require_rights()
    if runtime_dir.exists():
        require_own(runtime_dir)
    with hold_place(), Record(runtime_dir) as record, Kernel(record) as kernel:
        return reconcile.undo(kernel, record, time.monotonic)


# -- the process ---------------------------------------------------------------------------------------


def _log_thread_failure(arguments: threading.ExceptHookArgs) -> None:
    name = arguments.thread.name if arguments.thread else "?"
    trace = (arguments.exc_type, arguments.exc_value or arguments.exc_type(), arguments.exc_traceback)
    log.error("[unexpected] thread %s ends", name, exc_info=trace)


def _version() -> str:
    from portier import __version__  # noqa: PLC0415

    return __version__

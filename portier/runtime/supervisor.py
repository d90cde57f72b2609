"""Keeps one worker a group, and brings back those that crash, each in its own time.

It decides when to restart and nothing else; who runs with which ports is the reconciler's to say, through
`Supervisor.start`, `update` and `stop`.  A group whose worker crashed stays a group that runs, as far as the
reconciler is concerned: no step follows from it, and an `update` meanwhile changes what the restart begins
with.  Only its hosts are forgotten, so `Supervisor.learned` shrinks and the reconciler sweeps their routes.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Network
from time import monotonic
from typing import Final, Protocol

from portier.core.engine import Explanation, NeighborInfo, RouterInfo, Standing
from portier.core.histogram import Tally
from portier.core.model import Bound, HostRoute
from portier.core.notes import NOTHING_NOTED, Noted
from portier.core.probe import Trace
from portier.core.rules import RuleTable
from portier.errors import PortierError
from portier.runtime.worker import Engine, Wires

_FIRST_DELAY: Final = 0.5  # seconds; doubled with every crash that follows
_LONGEST_DELAY: Final = 30.0
_CLOSING: Final = 30.0
_HEALTHY: Final = 60.0  # a worker that ran so long did not crash because it was started

log = logging.getLogger(__name__)


class Supervised(Protocol):
    """What the supervisor asks of a worker; `portier.runtime.worker.Worker` has the meaning of each."""

    @property
    def running(self) -> Bound | None:
        """The ports in use, None before the first `configure`."""

    @property
    def engine(self) -> Engine | None:
        """The engine, None when the worker does not run."""

    def start(self) -> None:
        """Start the thread."""

    def configure(self, bound: Bound, rules: RuleTable) -> None:
        """Work with these ports and rules."""

    def ask(self, target: bytes) -> None:
        """Look for a host."""

    def explain(self, address: bytes, ifindex: int | None) -> Explanation:
        """Let the engine explain."""

    def lift(self, ifindex: int) -> None:
        """End a port's hold-down."""

    def trace(self, ifindex: int, frame: bytes, target: bytes) -> Trace:
        """Hand in a frame, and note what comes of it."""

    def untrace(self, trace: Trace) -> None:
        """Note no more."""

    def wires(self) -> Wires:
        """How the ports fare."""

    def stop(self, patience: float = ...) -> bool:
        """Stop; says whether it touches nothing any more."""

    def join(self, patience: float = ...) -> None:
        """Wait until all is closed."""


MakeWorker = Callable[[Bound, Callable[[Exception], None]], Supervised]
"""Makes a worker for a group from what it will work with, and from what it calls when it has crashed."""

Later = Callable[[float, Callable[[], None]], Callable[[], object]]
"""Calls something after so many seconds, in some thread; returns how to call that off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStatus:
    """How a group's worker fares.  ``state`` is "starting", "running" or "restarting"; ``error`` the last
    crash, "" when there was none; ``restart_in`` seconds until the restart, 0 when there is none to come.
    The rest is 0 or empty while it does not run."""

    state: str
    restarts: int
    error: str
    restart_in: float = 0.0
    wires: Wires = field(default_factory=lambda: Wires({}, 0, {}))
    counters: dict[str, dict[str, int]] = field(default_factory=dict)
    neighbors: int = 0
    pending: int = 0
    standings: tuple[Standing, ...] = ()
    routers: tuple[RouterInfo, ...] = ()
    noted: Noted = NOTHING_NOTED


class _Group:
    """A group that is to run.  ``lock`` is held while its worker is told something, so that a restart and
    an update never overtake each other."""

    def __init__(self, bound: Bound) -> None:
        self.lock = threading.Lock()
        self.bound = bound
        self.rules = RuleTable.compile(bound)
        self.worker: Supervised | None = None
        self.removed = False
        self.since = 0.0
        self.crashes = 0  # in a row
        self.restarts = 0
        self.error = ""
        self.due = 0.0
        self.call_off: Callable[[], object] = _nothing

    def working(self) -> Bound:
        """What the worker works with, or will after its restart."""
        if self.removed:
            return replace(self.bound, ports=())
        return (self.worker.running if self.worker else None) or self.bound


class Supervisor:
    """The workers of all groups.  For any thread.

    `wake` is called with "worker" when one has crashed or is back.  `clock` is monotonic seconds, `later`
    runs the restarts; tests bring their own.
    """

    def __init__(
        self,
        make_worker: MakeWorker,
        wake: Callable[[str], None],
        clock: Callable[[], float] = monotonic,
        later: Later | None = None,
    ) -> None:
        self._make_worker = make_worker
        self._wake = wake
        self._clock = clock
        self._later = later or _timer
        self._lock = threading.Lock()  # guards the groups' fields; never held while a worker is waited for
        self._groups: dict[str, _Group] = {}

    # -- for the reconciler --------------------------------------------------------------------------

    def running(self) -> dict[str, Bound]:
        """What each group works with.  Ports that could not be opened or went down are missing from it,
        so that they are a difference to what should be; a group that waits for its restart is there, and
        one that was not seen to stop is there without ports."""
        with self._lock:
            return {name: group.working() for name, group in self._groups.items()}

    def start(self, bound: Bound) -> None:
        """Start a group's worker, and return when it works with `bound`.

        Raises PortierError when ports could not be opened or the worker crashed at once.  It is supervised
        all the same: what is left to do is an `update`, or nothing.
        """
        group = _Group(bound)
        with self._lock:
            if bound.group.name in self._groups:
                raise PortierError(f"worker {bound.group.name} is there already")
            self._groups[bound.group.name] = group
        self._launch(group)

    def update(self, bound: Bound) -> None:
        """Have a group's worker work with `bound`, and return when it does; one that waits for its restart
        will begin with it, and one that was not seen to stop makes way for a new one.  Raises PortierError
        when ports could not be opened, when the worker does not answer, stop or live, and when there is no
        such group."""
        group = self._group(bound.group.name)
        if group.removed:
            self.stop(bound.group.name)
            self.start(bound)
            return
        rules = RuleTable.compile(bound)
        with group.lock:
            group.bound, group.rules = bound, rules
            if (worker := group.worker) is not None:
                worker.configure(bound, rules)

    def stop(self, name: str) -> None:
        """Stop a group's worker.  When this returns it touches nothing any more; raises PortierError when
        it cannot be brought to stop, and when there is no such group."""
        group = self._group(name)
        self._remove(group)
        with group.lock:
            if group.worker is not None and not group.worker.stop():
                raise PortierError(f"worker {name} does not stop")
        with self._lock:
            self._groups.pop(name, None)

    def learned(self) -> frozenset[HostRoute]:
        """The host routes that the workers want."""
        return frozenset[HostRoute]().union(*(engine.wanted_routes() for engine in self._engines().values()))

    def heard(self) -> dict[str, frozenset[IPv6Network]]:
        """The prefixes that are on-link upstream by the word of the routers there, by group."""
        now = self._clock()
        return {
            name: frozenset[IPv6Network]().union(*(router.on_link for router in engine.routers(now)))
            for name, engine in self._engines().items()
        }

    # -- for people ----------------------------------------------------------------------------------

    def status(self) -> dict[str, GroupStatus]:
        """How the groups fare."""
        with self._lock:
            groups = dict(self._groups)
        return {name: self._status(group) for name, group in groups.items()}

    def neighbors(self) -> dict[str, list[NeighborInfo]]:
        """The known hosts, by group."""
        now = self._clock()
        return {name: engine.neighbors(now) for name, engine in self._engines().items()}

    def tallies(self) -> dict[str, Tally]:
        """What the engines count, by group."""
        now = self._clock()
        return {name: engine.tally(now) for name, engine in self._engines().items()}

    def explain(self, name: str, address: bytes, ifindex: int | None) -> Explanation:
        """How a solicitation for `address` on port `ifindex`, or on the upstream, would be decided in a
        group.  Raises PortierError when the group is not there or its worker does not run."""
        return self._worker(name).explain(address, ifindex)

    def ask(self, name: str, target: bytes) -> None:
        """Have a group look for a host on all of its ports.  Raises PortierError as `explain` does."""
        self._worker(name).ask(target)

    def lift(self, name: str, ifindex: int) -> None:
        """End the hold-down of a group's port.  Raises PortierError as `explain` does."""
        self._worker(name).lift(ifindex)

    @contextlib.contextmanager
    def traced(self, name: str, ifindex: int, frame: bytes, target: bytes) -> Iterator[Trace]:
        """Hand a group a frame as if it had come in by one of its ports, and note what it does about
        `target` meanwhile.  Raises PortierError as `explain` does."""
        worker = self._worker(name)
        trace = worker.trace(ifindex, frame, target)
        try:
            yield trace
        finally:
            with contextlib.suppress(PortierError):  # gone, and its traces with it
                worker.untrace(trace)

    def close(self) -> None:
        """Stop all workers at the same time (closing sockets takes the kernel a while) and wait until all
        is closed, at most half a minute."""
        with self._lock:
            groups = list(self._groups.values())
            self._groups.clear()
        workers = []
        for group in groups:
            self._remove(group)
            with group.lock:
                if group.worker is not None:
                    group.worker.stop(0)
                    workers.append(group.worker)
        deadline = self._clock() + _CLOSING
        for worker in workers:
            worker.join(max(0.0, deadline - self._clock()))

    # -- inside --------------------------------------------------------------------------------------

    def _group(self, name: str) -> _Group:
        with self._lock:
            group = self._groups.get(name)
        if group is None:
            raise PortierError(f"there is no worker {name}")
        return group

    def _worker(self, name: str) -> Supervised:
        worker = self._group(name).worker
        if worker is None:
            raise PortierError(f"worker {name} waits for its restart")
        return worker

    def _engines(self) -> dict[str, Engine]:
        with self._lock:
            groups = dict(self._groups)
        engines = {name: group.worker.engine for name, group in groups.items() if group.worker}
        return {name: engine for name, engine in engines.items() if engine is not None}

    def _remove(self, group: _Group) -> None:
        with self._lock:
            group.removed = True
            group.call_off()

    def _launch(self, group: _Group) -> None:
        with group.lock:
            if group.removed:
                return
            worker: Supervised | None = None
            group.since = self._clock()

            def crashed(error: Exception) -> None:
                self._crash(group, worker, error)

            try:
                worker = self._make_worker(group.bound, crashed)
                with self._lock:
                    group.worker = worker
                worker.start()
            except (OSError, RuntimeError) as error:  # no more descriptors or threads
                self._crash(group, worker, error)
                raise PortierError(f"worker {group.bound.group.name}: {error}") from error
            worker.configure(group.bound, group.rules)

    def _crash(self, group: _Group, worker: Supervised | None, error: Exception) -> None:
        """Have a group restarted in a while.  Called by the worker that crashed, last of all."""
        now = self._clock()
        with self._lock:
            if group.worker is not worker:
                return
            group.worker = None
            group.error = f"{type(error).__name__}: {error}"
            if group.removed:
                return
            group.crashes = 1 if now - group.since >= _HEALTHY else group.crashes + 1
            delay = min(_FIRST_DELAY * 2.0 ** (group.crashes - 1), _LONGEST_DELAY)
            group.due = now + delay
            try:
                group.call_off = self._later(delay, lambda: self._restart(group))
            except RuntimeError:  # no more threads; what does not run is started by the reconciler
                del self._groups[group.bound.group.name]
        log.warning("worker %s is restarted in %g s", group.bound.group.name, delay)
        self._wake("worker")

    def _restart(self, group: _Group) -> None:
        with self._lock:
            group.restarts += 1
        try:
            self._launch(group)
        except PortierError as error:
            log.warning("%s", error)
        self._wake("worker")

    def _status(self, group: _Group) -> GroupStatus:
        with self._lock:
            worker, error, restarts, due = group.worker, group.error, group.restarts, group.due
        engine = worker.engine if worker else None
        if worker is None or engine is None:
            state = "starting" if worker else "restarting"
            left = 0.0 if worker else max(0.0, due - self._clock())
            return GroupStatus(state=state, restarts=restarts, error=error, restart_in=left)
        return GroupStatus(
            state="running",
            restarts=restarts,
            error=error,
            wires=worker.wires(),
            counters=engine.counters(),
            neighbors=engine.table_size(),
            pending=engine.pending_size(),
            standings=tuple(engine.standings(self._clock())),
            routers=tuple(engine.routers(self._clock())),
            noted=engine.noted(self._clock()),
        )


def _timer(delay: float, what: Callable[[], None]) -> Callable[[], object]:
    timer = threading.Timer(delay, what)
    timer.daemon = True
    timer.start()
    return timer.cancel


def _nothing() -> None:
    """Stand for a restart that was never planned."""

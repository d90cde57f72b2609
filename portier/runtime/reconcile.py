"""Makes it so, and keeps it so: one loop, one wake flag.

A file event, a link, a signal, a timer, a dead worker: all of them only `wake` the reconciler.  A round
looks at the kernel and at the workers afresh, computes the steps (portier.core.plan), does them, looks
again, and retries with backoff what is left.  A failing step stops no other.

Everything that touches anything comes in from outside, through the protocols below; a `Kernel` is opened
and used in the loop's own thread only.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Collection, Container, Mapping
from concurrent.futures import Future
from dataclasses import replace
from ipaddress import IPv6Network
from typing import Final, NamedTuple, Protocol

from portier.core import plan
from portier.core.model import (
    Bound,
    Config,
    Event,
    EventKind,
    HostRoute,
    KernelRoute,
    PolicyRule,
    ProxyEntry,
    Recorded,
    Snapshot,
    State,
)
from portier.core.outcome import RouteResult
from portier.core.plan import Memory, Report
from portier.core.steps import (
    DropProxy,
    DropRoute,
    DropRule,
    DropTableRoute,
    PutProxy,
    PutRoute,
    PutRule,
    PutTableRoute,
    SetSysctl,
    StartWorker,
    Step,
    StopWorker,
    UpdateWorker,
)
from portier.core.sysctls import FORWARDING_DEFAULT, overwritten, unseen
from portier.errors import ConfigError, PortierError, Problem

# Seconds after the first hint until the round: a saved file is several events and must be whole; links
# come with addresses a moment later, but a round too early does no harm.
_FILE_SETTLES: Final = 0.15  # after the last one, as long as they do not go on
_FILE_WAITS: Final = 1.0
_SETTLES: Final = 0.03
# Other makers' routes may change all the time: rounds for them alone take a fortieth of a CPU at most.
_FOREIGN_SETTLES: Final = 0.2
_FOREIGN_SHARE: Final = 40
_LOAD_AGAIN: Final = 5.0  # after a loader that died
_SPACING: Final = 0.1  # between rounds, however many hints there are
_SHARE: Final = 4  # and as often as the last round took, so that rounds take a fifth of a CPU at most,
_SPACING_MOST: Final = 1.0  # but never so much that a long round makes the next one late
_RETRY_FIRST: Final = 0.2
_RETRY_MOST: Final = 60.0
_RESYNC: Final = 60.0  # hints get lost, and some changes give none
_PASSES: Final = 4  # doing what the last pass uncovered, before the rest is left to a retry
_FOR_WORKERS: Final = (StartWorker, UpdateWorker, StopWorker)
_STALE: Final = 1.0  # seconds for which a recorded route must be gone before it is struck off
_REPAIRS: Final = 4096  # host routes whose repairs are counted
_MINUTE: Final = 60.0
_LINES: Final = 120  # of the log, a minute, for steps and errors; the rest as a count
_IS_STOPPING: Final = "the daemon is stopping"

log = logging.getLogger(__name__)


class Kernel(Protocol):
    """What the reconciler asks of the kernel.  Failures are `PortierError`."""

    def snapshot(self, protocol: int | Collection[int] = ..., ports: Container[int] | None = ...) -> Snapshot:
        """What the kernel shows; other makers' routes only of ``ports``."""

    def add_route(self, route: HostRoute) -> RouteResult:
        """Add a host route, never over another, and record it."""

    def move_route(self, old: HostRoute, new: HostRoute) -> RouteResult:
        """Add a host route in the place of another of Portier's."""

    def remove_route(self, route: HostRoute) -> None:
        """Remove a host route that is on record, there too; that it is gone is success."""

    def add_table_route(self, route: KernelRoute) -> None:
        """Add a route of a group's own table; that it is there is success."""

    def remove_table_route(self, route: KernelRoute) -> None:
        """Remove a route of a group's own table that is on record; that it is gone is success."""

    def add_rule(self, rule: PolicyRule) -> None:
        """Add a policy rule."""

    def remove_rule(self, rule: PolicyRule) -> None:
        """Remove a policy rule; that it is gone is success."""

    def add_proxy(self, entry: ProxyEntry) -> None:
        """Add a proxy entry, never over another."""

    def remove_proxy(self, entry: ProxyEntry) -> None:
        """Remove a proxy entry that is on record; that it is gone is success."""

    def get_sysctl(self, path: str) -> str | None:
        """The value of a sysctl, or None."""

    def set_sysctl(self, path: str, value: str) -> None:
        """Write a sysctl."""

    def close(self) -> None:
        """Close what is open."""


class Record(Protocol):
    """What survives the process: what Portier made and changed."""

    def routes(self) -> frozenset[HostRoute]:
        """Host routes on record; the kernel handle notes and strikes them itself."""

    def forget_route(self, route: HostRoute) -> None:
        """Strike a route that is gone."""

    def table_routes(self) -> frozenset[KernelRoute]:
        """Routes of groups' own tables on record."""

    def note_table_route(self, route: KernelRoute) -> None:
        """Record a route of a group's own table that is about to be added."""

    def forget_table_route(self, route: KernelRoute) -> None:
        """Strike a route of a group's own table that is gone."""

    def rules(self) -> frozenset[PolicyRule]:
        """Policy rules on record."""

    def note_rule(self, rule: PolicyRule) -> None:
        """Record a rule that is about to be added."""

    def forget_rule(self, rule: PolicyRule) -> None:
        """Strike a rule that is gone."""

    def proxies(self) -> frozenset[ProxyEntry]:
        """Proxy entries on record."""

    def note_proxy(self, entry: ProxyEntry) -> None:
        """Record a proxy entry that is about to be added."""

    def forget_proxy(self, entry: ProxyEntry) -> None:
        """Strike a proxy entry that is gone."""

    def sysctls(self) -> Mapping[str, tuple[str, str]]:
        """Sysctls on record: the value found and the value set."""

    def owners(self) -> Mapping[str, int]:
        """The interfaces whose sysctls those are, 0 where they are none's."""

    def note_sysctl(self, path: str, old: str, new: str, ifindex: int = ...) -> None:
        """Record a sysctl that is about to be written."""

    def forget_sysctl(self, path: str) -> None:
        """Strike a sysctl that needs no restoring."""


class Workers(Protocol):
    """What the reconciler asks of the supervisor."""

    def running(self) -> Mapping[str, Bound]:
        """What each group's worker was last bound to; a group that waits for its restart is among them."""

    def start(self, bound: Bound) -> None:
        """Start a group's worker."""

    def update(self, bound: Bound) -> None:
        """Bind a group's worker anew."""

    def stop(self, name: str) -> None:
        """Stop a group's worker; when this returns it touches nothing any more."""

    def learned(self) -> frozenset[HostRoute]:
        """The host routes that workers want."""

    def heard(self) -> Mapping[str, frozenset[IPv6Network]]:
        """The on-link prefixes that workers heard of in Router Advertisements, by group."""


class Loaded(Protocol):
    """A configuration that was loaded, with what identifies its text."""

    @property
    def config(self) -> Config:
        """The configuration."""

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """What is allowed, and probably not meant."""

    @property
    def digest(self) -> str:
        """Tells texts apart."""


class Settings(NamedTuple):
    """The configuration in force, and how the one on disk differs.  ``refused`` are the problems of the
    one on disk, ``differs`` tells that it is good but not applied (``watch: false``)."""

    config: Config
    warnings: tuple[Problem, ...] = ()
    digest: str = ""
    generation: int = 0
    loaded_at: float = 0.0
    refused: tuple[str, ...] = ()
    refused_digest: str = ""
    differs: bool = False


class Round(NamedTuple):
    """What a round did.  ``pending`` are the steps that are still to do, ``errors`` say why."""

    steps: tuple[Step, ...] = ()
    pending: tuple[Step, ...] = ()
    errors: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    seconds: float = 0.0


class Planned(NamedTuple):
    """What would be done, and what is wrong about the groups then, each with its group."""

    steps: tuple[Step, ...]
    warnings: tuple[str, ...]


class _Look(NamedTuple):
    """One look at the world, and what follows from it."""

    steps: tuple[Step, ...]
    snapshot: Snapshot
    want: State
    report: Report
    memory: Memory
    recorded: Recorded
    before: frozenset[HostRoute]  # what workers wanted before the kernel was asked
    after: frozenset[HostRoute]
    dropped: Mapping[tuple[bytes, int, int], HostRoute]  # to be removed, by address, table and metric
    indexes: Mapping[str, int]  # of links by name

    def index_of(self, path: str) -> int:
        """The interface whose sysctl ``path`` is, 0 if it is none's."""
        return self.indexes.get(path.split("/")[-2], 0)


class Reconciler:
    """Runs rounds when woken.  ``settings``, ``report``, ``last``, ``rounds`` and ``failures`` (the
    rounds that ended with errors) may be read from any thread: they are replaced, never changed."""

    def __init__(
        self,
        *,
        open_kernel: Callable[[], Kernel],
        record: Record,
        workers: Workers,
        load: Callable[[], Loaded],
        digest: Callable[[], str],
        emit: Callable[[Event], None],
        after: Callable[[], None] = lambda: None,
        recalled: Callable[[], Collection[tuple[bytes, int]]] = tuple,
        clock: Callable[[], float],
    ) -> None:
        self._open_kernel = open_kernel
        self._kernel: Kernel | None = None
        self._record = record
        self._workers = workers
        self._load_config = load
        self._digest = digest
        self._emit = emit
        self._after = after
        self._recalled = recalled
        self._clock = clock

        self.settings = Settings(Config())
        self.report = Report()
        self.last = Round()
        self.rounds = 0
        self.failures = 0

        self._memory = Memory()
        self._links: frozenset[int] = frozenset()
        self._unseen: frozenset[str] = frozenset()  # sysctls that are read, because no snapshot shows them
        self._foreign: dict[HostRoute, float] = {}  # routes in whose place is somebody else's, as of when
        self._stale: dict[HostRoute, float] = {}
        self._repairs: dict[HostRoute, int] = {}
        self._minute = -math.inf
        self._said = 0
        self._unsaid = 0

        self._flag = threading.Condition()
        self._reasons: dict[str, tuple[float, float]] = {}  # -> when it was first given, when it is due
        self._asked: list[Future[Round]] = []
        self._questions: list[tuple[Config, Future[Planned]]] = []
        self._stopping = False
        self._earliest = -math.inf
        self._retry_at = math.inf
        self._retry_after = _RETRY_FIRST
        self._resync_at = -math.inf
        self._thread: threading.Thread | None = None
        self._busy_since: float | None = None

    # -- from any thread

    def wake(self, reason: str) -> None:
        """Ask for a round soon.  ``reason`` is ``file`` for a file event, ``reload`` for an explicit
        request to load the configuration, ``foreign`` for a route of another maker, anything else for another
        change in the world."""
        now = self._clock()
        with self._flag:
            first, _ = self._reasons.get(reason, (now, now))
            settles = waits = _SETTLES
            if reason == "file":
                settles, waits = _FILE_SETTLES, _FILE_WAITS
            elif reason == "foreign":
                settles = waits = max(_FOREIGN_SETTLES, self.last.seconds * _FOREIGN_SHARE)
            self._reasons[reason] = (first, min(now + settles, first + waits))
            self._flag.notify()

    def reload(self, timeout: float | None = None) -> Round:
        """Load the configuration and wait for the round that applies it, or does not.  Raises
        TimeoutError after ``timeout`` seconds."""
        return self.ask_reload().result(timeout)

    def ask_reload(self) -> Future[Round]:
        """The same, without waiting."""
        future: Future[Round] = Future()
        with self._flag:
            if self._stopping:
                future.set_result(self.last)
                return future
            self._reasons["reload"] = (-math.inf, -math.inf)
            self._asked.append(future)
            self._flag.notify()
        return future

    def look(self, timeout: float) -> None:
        """Have a round, and wait for it, but no longer than ``timeout`` seconds."""
        future: Future[Round] = Future()
        with self._flag:
            if self._stopping:
                return
            self._asked.append(future)
            self._flag.notify()
        with contextlib.suppress(TimeoutError):
            future.result(timeout)

    def steps(self, config: Config, timeout: float | None = None) -> Planned:
        """The steps that would be done now under ``config``.  Raises TimeoutError after ``timeout``
        seconds, and what looking at the kernel raises."""
        future: Future[Planned] = Future()
        with self._flag:
            if self._stopping:
                raise PortierError(_IS_STOPPING)
            self._questions.append((config, future))
            self._flag.notify()
        return future.result(timeout)

    def start(self) -> Future[Round]:
        """Run rounds, in a thread of their own, the first at once; returns its outcome to come."""
        first: Future[Round] = Future()
        self._asked.append(first)
        self._thread = threading.Thread(target=self._run, name="reconcile", daemon=True)
        self._thread.start()
        return first

    def stop(self) -> Round:
        """End the loop and undo everything; what could not be undone is pending in the result, and where
        not even that could be found out, its errors say why."""
        with self._flag:
            self._stopping = True
            self._flag.notify()
        if self._thread is not None:
            self._thread.join()
        return self.last

    def hangs(self, patience: float) -> bool:
        """Whether the loop has ended, or been at one round for more than ``patience`` seconds."""
        if self._thread is None or not self._thread.is_alive():
            return True
        since = self._busy_since
        return since is not None and self._clock() - since > patience

    # -- the configuration

    def take(self, loaded: Loaded) -> None:
        """Put a configuration in force, from the next round on."""
        config = plan.keep(loaded.config, self._memory)
        self.settings = Settings(
            config, loaded.warnings, loaded.digest, self.settings.generation + 1, self._clock()
        )

    def _refresh(self, *, asked: bool) -> None:
        """Look at the configuration on disk; ``asked`` when somebody wants it applied now.  A bad one
        leaves the last good one in force, and a file that was only touched changes nothing."""
        settings = self.settings
        digest = self._digest()
        if digest == settings.digest:
            self.settings = settings._replace(refused=(), refused_digest="", differs=False)
        elif not asked and digest == settings.refused_digest:
            pass  # judged already, whether or not files are watched
        elif not asked and not settings.config.watch:
            if not settings.differs:
                self._event(EventKind.CONFIG, "the configuration on disk differs from the one in force")
            self.settings = settings._replace(refused=(), refused_digest="", differs=True)
        else:
            self._reload(digest)

    def _reload(self, digest: str) -> None:
        settings = self.settings
        try:
            loaded = self._load_config()
        except ConfigError as error:
            refused = tuple(map(str, error.problems))
        except Exception as error:  # whatever the child met, what runs goes on
            log.debug("loading the configuration failed", exc_info=True)
            refused = (f"the configuration cannot be loaded: {error}",)
            # Not the file's fault, perhaps: it is tried again, changed or not.
            digest = ""
            again = self._clock() + _LOAD_AGAIN
            with self._flag:
                self._reasons["file"] = (again, again)
        else:
            self.take(loaded)
            self._event(EventKind.CONFIG, f"configuration generation {self.settings.generation} is in force")
            return
        if refused != settings.refused:
            text = f"configuration refused, generation {settings.generation} stays in force"
            self._event(EventKind.CONFIG, text)
            for line in refused:
                log.error("%s", line)
        self.settings = settings._replace(refused=refused, refused_digest=digest, differs=True)

    # -- the loop

    def _run(self) -> None:
        while True:
            reasons, asked, questions = self._wait()
            if self._stopping:
                break
            self._busy_since = self._clock()
            try:
                if questions:
                    self._answer(questions)
                if reasons or not questions:
                    self._turn(reasons, asked)
            except (PortierError, OSError) as error:
                self._broken(str(error), reasons)
            except Exception:
                log.exception("a reconcile round failed")
                self._broken("a reconcile round failed: the log has the details", reasons)
            finally:
                self._busy_since = None
                for future in asked:
                    if not future.done():
                        future.set_result(self.last)
        with self._flag:
            asked += self._asked
            questions += self._questions
        for future in asked:
            future.set_result(self.last)
        for _, question in questions:
            question.set_exception(PortierError(_IS_STOPPING))
        self._undo()
        if self._kernel is not None:
            self._kernel.close()

    def _undo(self) -> None:
        """Undo everything; where that breaks off, once more with a kernel opened anew."""
        for _ in range(2):
            try:
                self.clear()
            except (PortierError, OSError) as error:
                self._broken(str(error), set())
            except Exception:
                log.exception("undoing failed")
                self._broken("undoing failed: the log has the details", set())
            else:
                return

    def _broken(self, why: str, reasons: set[str]) -> None:
        """A round could not even look.  The next one opens the kernel anew."""
        self._tell(Round(errors=(why,), refused=self.settings.refused))
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None
        self._retry(failed=True, reasons=reasons)

    def _due(self) -> float:
        """When the next round is due.  Call with the flag held."""
        if self._questions or self._asked or self._stopping:
            return -math.inf
        timer = min(self._retry_at, self._resync_at, self._memory.deadline)
        hinted = min((due for _, due in self._reasons.values()), default=math.inf)
        return max(min(timer, hinted), self._earliest)

    def _wait(
        self,
    ) -> tuple[set[str], list[Future[Round]], list[tuple[Config, Future[Planned]]]]:
        """Sleep until a round is due; returns why it is, who waits for it, and what is asked besides."""
        with self._flag:
            while (due := self._due()) > (now := self._clock()):
                self._flag.wait(min(due - now, threading.TIMEOUT_MAX))
            questions, self._questions = self._questions, []
            if self._stopping or (questions and self._earliest > now):
                return set(), [], questions
            # File events that are still settling wait for a later round.
            reasons = {reason for reason, (_, due) in self._reasons.items() if reason != "file" or due <= now}
            self._reasons = {reason: due for reason, due in self._reasons.items() if reason not in reasons}
            asked, self._asked = self._asked, []
            return reasons, asked, questions

    def _turn(self, reasons: set[str], asked: list[Future[Round]]) -> None:
        if "reload" in reasons:
            self._refresh(asked=True)
        elif "file" in reasons:
            self._refresh(asked=False)
        done = self.round()
        self._retry(failed=bool(done.pending or done.errors), reasons=reasons)
        for future in asked:
            future.set_result(done)

    def _retry(self, *, failed: bool, reasons: set[str]) -> None:
        now = self._clock()
        if now >= self._resync_at:
            self._resync_at = now + _RESYNC
        self._earliest = now + min(max(_SPACING, self.last.seconds * _SHARE), _SPACING_MOST)
        if not failed:
            self._retry_at, self._retry_after = math.inf, _RETRY_FIRST
            return
        if reasons:
            self._retry_after = _RETRY_FIRST  # the world changed: perhaps it goes better now
        self._retry_at = now + self._retry_after
        self._retry_after = min(self._retry_after * 2, _RETRY_MOST)

    def _answer(self, questions: list[tuple[Config, Future[Planned]]]) -> None:
        for config, future in questions:
            try:
                future.set_result(_planned(self._look(plan.keep(config, self._memory))))
            except Exception as error:  # noqa: BLE001  (the one who asked gets it)
                future.set_exception(error)

    # -- a round

    def round(self) -> Round:
        """Look, do, look again, until nothing is left to do or only what fails."""
        return self._make_so(self.settings.config)

    def clear(self) -> Round:
        """Undo everything: what is desired is nothing at all."""
        return self._make_so(None)

    def _make_so(self, config: Config | None) -> Round:
        began = self._clock()
        done: list[Step] = []
        failed: dict[str, str] = {}
        shown: _Look | None = None
        for attempt in range(_PASSES):
            look = self._look(config, shown)
            self._note(look, final=config is None)
            todo = [step for step in look.steps if str(step) not in failed]
            if not todo or attempt == _PASSES - 1:
                break
            # Where only workers were told something, the kernel needs no other look.
            shown = look if all(isinstance(step, _FOR_WORKERS) for step in todo) else None
            for step in todo:
                error = self._attempt(step, look)
                if error is None:
                    done.append(step)
                else:
                    failed[str(step)] = error
        for step in look.steps:
            failed.setdefault(str(step), "does not stay done")
        pending = {str(step) for step in look.steps}
        result = Round(
            steps=tuple(done),
            pending=look.steps,
            errors=tuple(f"{step}: {why}" for step, why in failed.items() if step in pending),
            refused=self.settings.refused,
            seconds=self._clock() - began,
        )
        self._tell(result)
        return result

    def _look(self, config: Config | None, shown: _Look | None = None) -> _Look:
        """Look at the kernel, unless a look at it is ``shown``, and at the workers, and compute.

        The order matters, because workers learn meanwhile: a route that they wanted before the kernel was
        asked and still want is one it should have; one that they want only since then may be there.
        """
        if self._kernel is None:
            self._kernel = self._open_kernel()
        sysctls = self._record.sysctls()
        recorded = Recorded(
            routes=self._record.routes(),
            rules=self._record.rules(),
            table_routes=self._record.table_routes(),
            sysctls=sysctls,
            owners=self._record.owners(),
            forwarding_default=self._kernel.get_sysctl(FORWARDING_DEFAULT)
            if FORWARDING_DEFAULT in sysctls
            else None,
            proxies=self._record.proxies(),
        )
        paths = self._unseen.union(filter(unseen, sysctls))
        now = self._clock()
        # After a while they are tried again: perhaps what was in the way is gone.
        foreign = {route for route, since in self._foreign.items() if now - since < _RESYNC}
        before = shown.before if shown else self._workers.learned()
        heard = self._workers.heard()
        links = self._links
        while True:
            snapshot = shown.snapshot if shown else self._kernel.snapshot(_numbers(config, recorded), links)
            running = self._workers.running()
            after = self._workers.learned()
            learned = after | (before & snapshot.host_routes) | self._adopted(recorded, snapshot)
            values = {path: value for path in paths if (value := self._kernel.get_sysctl(path)) is not None}
            recorded = recorded._replace(values=values)
            want, report, memory = plan.desired(
                config,
                snapshot,
                self._memory,
                learned=learned - foreign,
                heard=heard,
                recorded=recorded,
                now=now,
            )
            if report.links <= links and report.unread <= paths:
                break
            links = report.links  # the routes of links that the groups did not have before are needed too
            paths |= report.unread
        self._links = report.links
        self._unseen = paths
        have = plan.actual(snapshot, running, recorded, want)
        have = replace(have, host_routes=have.host_routes | (want.host_routes & (after - before)))
        names = {link.ifindex: link.name for link in snapshot.links}
        indexes = {link.name: link.ifindex for link in snapshot.links}
        steps = plan.diff(want, have, names)
        dropped = {
            (step.route.address, step.route.table, step.route.metric): step.route
            for step in steps
            if isinstance(step, DropRoute)
        }
        return _Look(steps, snapshot, want, report, memory, recorded, before, after, dropped, indexes)

    def _adopted(self, recorded: Recorded, snapshot: Snapshot) -> frozenset[HostRoute]:
        """The routes that a process which was killed has left to hosts that are still to be asked."""
        recalled = self._recalled()
        left = recorded.routes & snapshot.host_routes if recalled else ()
        return frozenset(route for route in left if (route.address, route.ifindex) in recalled)

    def _note(self, look: _Look, *, final: bool) -> None:
        """Take over what a look has shown: memory, report, events, and a record that says no more than
        there is."""
        self._memory = look.memory
        old, self.report = self.report, look.report
        self._tell_ports(old, look.report)
        for notice in set(look.report.foreign).difference(old.foreign):
            self._event(EventKind.ROUTE, notice)
        for text in look.report.left:
            self._event(EventKind.SYSCTL, text)

        for path in look.report.forget:
            self._record.forget_sysctl(path)
        renamed = dict(look.report.renamed)
        for path, name in renamed.items():
            self._record.note_sysctl(name, *look.recorded.sysctls[path], look.recorded.owners.get(path, 0))
        for path in renamed.keys() - renamed.values():
            self._record.forget_sysctl(path)
        for rule in look.recorded.rules - look.snapshot.rules - look.want.rules:
            self._record.forget_rule(rule)
        for table_route in look.recorded.table_routes - look.snapshot.table_routes - look.want.table_routes:
            self._record.forget_table_route(table_route)
        for entry in look.recorded.proxies - look.snapshot.proxies - look.want.proxies:
            self._record.forget_proxy(entry)

        wanted = look.before | look.after
        self._foreign = {route: since for route, since in self._foreign.items() if route in wanted}
        now = self._clock()
        gone = look.recorded.routes - look.snapshot.host_routes - wanted
        self._stale = {route: self._stale.get(route, now) for route in gone}
        for route, since in self._stale.items():
            # A worker records a route a moment before it adds it: only what stays away is gone.
            if final or now - since >= _STALE:
                self._record.forget_route(route)

    # -- one step

    def _attempt(self, step: Step, look: _Look) -> str | None:
        """Do one step; returns what went wrong, None if nothing did."""
        try:
            self._do(step, look)
        except (PortierError, OSError) as error:
            log.debug("%s: %s", step, error)
            return str(error)
        except Exception as error:
            log.exception("%s", step)
            return f"{type(error).__name__}: {error}"
        return None

    def _do(self, step: Step, look: _Look) -> None:
        kernel = self._kernel
        assert kernel is not None  # noqa: S101  (whoever looked has opened it)
        match step:
            case SetSysctl():
                self._note_sysctl(step, look)
                kernel.set_sysctl(step.path, step.new)
            case PutRule():
                self._record.note_rule(step.rule)
                kernel.add_rule(step.rule)
            case DropRule():
                kernel.remove_rule(step.rule)
                self._record.forget_rule(step.rule)
            case PutTableRoute():
                self._record.note_table_route(step.route)
                kernel.add_table_route(step.route)
            case DropTableRoute():
                kernel.remove_table_route(step.route)
                self._record.forget_table_route(step.route)
            case StartWorker():
                self._workers.start(step.bound)
            case UpdateWorker():
                self._workers.update(step.bound)
            case StopWorker():
                self._workers.stop(step.name)
            case PutRoute():
                self._put_route(kernel, step, look)
            case DropRoute():
                kernel.remove_route(step.route)
            case PutProxy():
                self._record.note_proxy(step.entry)
                kernel.add_proxy(step.entry)
            case DropProxy():
                kernel.remove_proxy(step.entry)
                self._record.forget_proxy(step.entry)

    def _put_route(self, kernel: Kernel, step: PutRoute, look: _Look) -> None:
        """Repair a route that a worker wants and the kernel has lost."""
        route = step.route
        old = look.dropped.get((route.address, route.table, route.metric))
        result = kernel.add_route(route) if old is None else kernel.move_route(old, route)
        if result is RouteResult.FOREIGN:
            if route not in self._foreign:
                self._event(EventKind.ROUTE, f"{str(step)[2:]} is somebody else's now")
            self._foreign[route] = self._clock()
            return
        self._foreign.pop(route, None)
        if result is RouteResult.ADDED and old is None:
            if len(self._repairs) >= _REPAIRS:
                self._repairs.clear()
            times = self._repairs[route] = self._repairs.get(route, 0) + 1
            if times > 1:
                self._event(EventKind.ROUTE, f"{str(step)[2:]} was deleted by somebody, {times} times now")
        elif result is RouteResult.FAILED:
            raise PortierError("the kernel refused")

    def _note_sysctl(self, step: SetSysctl, look: _Look) -> None:
        """Put on record what a sysctl was before Portier writes it; and what those were that the kernel
        overwrites at the same time."""
        known = self._record.sysctls()
        restoring = step.path in known and known[step.path][0] == step.new

        def note(path: str, value: str) -> None:
            if restoring:
                found = look.want.sysctls.get(path, value)
            else:
                found = known[path][0] if path in known and known[path][1] == value else value
            self._record.note_sysctl(path, found, step.new, look.index_of(path))

        if not restoring:
            note(step.path, step.old)
        for path in overwritten(step.path, look.snapshot.links):
            if restoring and path not in known:
                continue  # an interface that came since, which is nobody's to restore
            if (value := self._kernel.get_sysctl(path) if self._kernel else None) is not None:
                note(path, value)

    # -- telling

    def _event(self, kind: EventKind, text: str, group: str = "", port: str = "") -> None:
        self._emit(Event(kind=kind, text=text, group=group, port=port))

    def _tell(self, result: Round) -> None:
        now = self._clock()
        if now - self._minute >= _MINUTE:
            if self._unsaid:
                log.info("and %d more steps and errors, not shown", self._unsaid)
            self._minute, self._said, self._unsaid = now, 0, 0
        for step in result.steps:
            self._say(logging.INFO, step)
        if result.errors != self.last.errors:
            for error in result.errors:
                self._say(logging.WARNING, error)
            if not result.errors:
                self._say(logging.INFO, "nothing is left to do")
        self.rounds += 1
        self.failures += bool(result.errors)
        self.last = result
        self._after()

    def _say(self, level: int, line: object) -> None:
        if self._said < _LINES:
            self._said += 1
            log.log(level, "%s", line)
        else:
            self._unsaid += 1

    def _tell_ports(self, old: Report, new: Report) -> None:
        """Events for the ports that are not as they were."""
        if old.groups == new.groups:
            return
        before = {of.group.name: of.ports for of in old.groups}
        for of in new.groups:
            known = before.get(of.group.name, ())
            if known == of.ports:
                continue
            states = {port.name: port[2:4] for port in known}
            for port in of.ports:
                if states.pop(port.name, None) != port[2:4]:
                    reason = f": {port.reason}" if port.reason else ""
                    text = f"{of.group.name}: {port.name} is {port.state}{reason}"
                    self._event(EventKind.LINK, text, of.group.name, port.name)
            for name in states:
                text = f"{of.group.name}: {name} is gone"
                self._event(EventKind.LINK, text, of.group.name, name)


def _numbers(config: Config | None, recorded: Recorded) -> frozenset[int]:
    """The protocol numbers of the routes and rules that are, or once were, Portier's."""
    groups = config.groups if config else ()
    used = {group.routes.protocol for group in groups if group.routes is not None}
    made = {route.protocol for route in recorded.routes} | {rule.protocol for rule in recorded.rules}
    return frozenset({plan.PROTOCOL} | used | made | {route.protocol for route in recorded.table_routes})


def _planned(look: _Look) -> Planned:
    warnings = (f"group {of.group.name}: {warning}" for of in look.report.groups for warning in of.warnings)
    return Planned(look.steps, tuple(warnings))


def once(config: Config | None, kernel: Kernel, record: Record, clock: Callable[[], float]) -> Planned:
    """The steps towards ``config`` from where nothing of Portier runs, touching nothing."""
    return _planned(_alone(kernel, record, clock)._look(config))  # noqa: SLF001


def undo(kernel: Kernel, record: Record, clock: Callable[[], float]) -> Round:
    """Remove and restore everything on record, where nothing of Portier runs."""
    return _alone(kernel, record, clock).clear()


def _alone(kernel: Kernel, record: Record, clock: Callable[[], float]) -> Reconciler:
    def load() -> Loaded:
        raise PortierError("nothing is loaded here")

    return Reconciler(
        open_kernel=lambda: kernel,
        record=record,
        workers=_Nobody(),
        load=load,
        digest=str,
        emit=_silent,
        clock=clock,
    )


def _silent(event: Event) -> None:
    """Tell nobody."""


class _Nobody:
    """Workers where none run."""

    def running(self) -> Mapping[str, Bound]:
        """None run."""
        return {}

    def learned(self) -> frozenset[HostRoute]:
        """Nothing is known."""
        return frozenset()

    def heard(self) -> Mapping[str, frozenset[IPv6Network]]:
        """Nothing is heard."""
        return {}

    def start(self, bound: Bound) -> None:
        """Not here."""
        raise PortierError(f"no worker is started here: {bound.group.name}")

    def update(self, bound: Bound) -> None:
        """Not here."""
        raise PortierError(f"no worker runs here: {bound.group.name}")

    def stop(self, name: str) -> None:
        """Not here."""
        raise PortierError(f"no worker runs here: {name}")

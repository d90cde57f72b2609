"""Promises of the supervisor: who is restarted, when, and with what."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from ipaddress import IPv6Network

import pytest

from portier.core.engine import Explanation, RouterInfo
from portier.core.model import Bound, HostRoute
from portier.core.probe import Trace
from portier.core.rules import RuleTable
from portier.errors import PortierError
from portier.runtime.supervisor import Supervisor
from portier.runtime.worker import Wires
from tests.runtime.rig import FakeEngine, World, bound, host_route, port, wait_for

LAN = IPv6Network("2001:db8:7::/64")


class FakeWorker:
    """A worker without a thread: it runs until the test says `crash`."""

    def __init__(self, ground: Ground, first: Bound, crashed: Callable[[Exception], None]) -> None:
        self.ground = ground
        self.first = first
        self.running: Bound | None = None
        self.engine: FakeEngine | None = None
        self.stopped = False
        self.stubborn = False
        self._crashed = crashed

    def start(self) -> None:
        if self.ground.no_threads:
            raise RuntimeError("can't start new thread")
        self.engine = FakeEngine(World())

    def configure(self, what: Bound, rules: RuleTable) -> None:
        assert isinstance(rules, RuleTable)
        if self.ground.crash_at_once:
            self.crash()
            raise PortierError("worker crashed: a bug")
        closed = self.ground.closed_ports
        if not closed:
            self.running = what
            return
        ports = tuple(port for port in what.ports if port.name not in closed)
        self.running = Bound(group=what.group, ports=ports)
        raise PortierError("port2: No such device")

    def ask(self, target: bytes) -> None:
        self.ground.asked.append((self.first.group.name, target))

    def explain(self, address: bytes, ifindex: int | None) -> Explanation:
        assert self.engine is not None
        return self.engine.explain(address, ifindex, 0.0)

    def lift(self, ifindex: int) -> None:
        assert self.engine is not None
        self.engine.held.discard(ifindex)

    def trace(self, ifindex: int, frame: bytes, target: bytes) -> Trace:
        assert self.engine is not None
        trace = Trace(target, 0.0)
        trace.verdict = self.engine.receive(ifindex, frame, 0.0).verdict
        self.ground.traces.append(trace)
        return trace

    def untrace(self, trace: Trace) -> None:
        self.ground.traces.remove(trace)

    def wires(self) -> Wires:
        return Wires({"port1": 3}, 2, {})

    def stop(self, patience: float = 5.0) -> bool:  # noqa: ARG002 - nothing takes time here
        if self.stubborn:
            return False
        self.stopped = True
        self.engine = None
        return True

    def join(self, patience: float = 5.0) -> None:  # noqa: ARG002 - nor here
        assert self.stopped

    def crash(self) -> None:
        """A bug ends the worker."""
        self.engine = None
        self._crashed(ZeroDivisionError("a bug"))


class Ground:
    """A supervisor whose time passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.workers: list[FakeWorker] = []
        self.planned: list[tuple[float, Callable[[], None]]] = []
        self.delays: list[float] = []
        self.wakes: list[str] = []
        self.asked: list[tuple[str, bytes]] = []
        self.traces: list[Trace] = []
        self.closed_ports: set[str] = set()
        self.no_threads = False
        self.no_timers = False
        self.crash_at_once = False
        self.supervisor = Supervisor(self._make, self.wakes.append, lambda: self.now, self._later)

    def _make(self, first: Bound, crashed: Callable[[Exception], None]) -> FakeWorker:
        self.workers.append(FakeWorker(self, first, crashed))
        return self.workers[-1]

    def _later(self, delay: float, what: Callable[[], None]) -> Callable[[], object]:
        if self.no_timers:
            raise RuntimeError("can't start new thread")
        plan = (self.now + delay, what)
        self.delays.append(delay)
        self.planned.append(plan)
        return lambda: self.planned.remove(plan) if plan in self.planned else None

    def pass_time(self, seconds: float) -> None:
        """Let time pass; what is planned happens when it is due."""
        end = self.now + seconds
        while due := [plan for plan in self.planned if plan[0] <= end]:
            plan = min(due, key=lambda plan: plan[0])
            self.planned.remove(plan)
            self.now = max(self.now, plan[0])
            plan[1]()
        self.now = end

    def state(self, name: str = "guests") -> str:
        return self.supervisor.status()[name].state


@pytest.fixture
def ground() -> Ground:
    return Ground()


def test_a_group_runs_until_it_is_stopped(ground: Ground) -> None:
    """What runs is what was started; what is stopped is gone."""
    ground.supervisor.start(bound())
    assert ground.supervisor.running() == {"guests": bound()}
    assert ground.state() == "running"

    ground.supervisor.update(bound(port(1)))
    assert ground.supervisor.running() == {"guests": bound(port(1))}
    assert len(ground.workers) == 1

    ground.supervisor.stop("guests")
    assert ground.supervisor.running() == {}
    assert ground.workers[0].stopped
    ground.supervisor.start(bound())
    assert len(ground.workers) == 2


def test_a_crashed_worker_comes_back_with_what_it_had(ground: Ground) -> None:
    """Its group counts as running meanwhile, so that no step follows; only its hosts are forgotten."""
    ground.supervisor.start(bound())
    engine = ground.workers[0].engine
    assert engine is not None
    engine.routes.add(host_route(2))
    assert ground.supervisor.learned() == {host_route(2)}
    ground.workers[0].crash()

    assert ground.wakes == ["worker"]
    assert ground.supervisor.running() == {"guests": bound()}
    assert ground.supervisor.learned() == frozenset()
    status = ground.supervisor.status()["guests"]
    assert (status.state, status.restarts, status.restart_in) == ("restarting", 0, 0.5)
    assert status.error == "ZeroDivisionError: a bug"

    ground.pass_time(0.5)
    assert ground.wakes == ["worker", "worker"]
    assert ground.workers[1].running == bound()
    status = ground.supervisor.status()["guests"]
    assert (status.state, status.restarts, status.error) == ("running", 1, "ZeroDivisionError: a bug")


def test_the_other_groups_never_notice(ground: Ground) -> None:
    """One group's crash is that group's alone."""
    ground.supervisor.start(bound())
    ground.supervisor.start(bound(name="others"))
    other = ground.workers[1]
    assert other.engine is not None
    other.engine.routes.add(host_route(2, host=9))
    ground.workers[0].crash()
    ground.pass_time(60)

    assert [worker.first.group.name for worker in ground.workers] == ["guests", "others", "guests"]
    assert not other.stopped
    assert ground.state("others") == "running"
    assert ground.supervisor.status()["others"].restarts == 0
    assert ground.supervisor.learned() == {host_route(2, host=9)}


def test_restarts_back_off(ground: Ground) -> None:
    """Half a second, doubled with each crash that follows, 30 s at most; a minute of health ends it."""
    ground.supervisor.start(bound())
    for _ in range(9):
        ground.workers[-1].crash()
        ground.pass_time(ground.delays[-1])
    assert ground.delays == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert ground.supervisor.status()["guests"].restarts == 9

    ground.pass_time(59)
    ground.workers[-1].crash()
    ground.pass_time(30)
    assert ground.delays[-1] == 30

    ground.pass_time(60)
    ground.workers[-1].crash()
    assert ground.delays[-1] == 0.5


def test_an_update_while_waiting_changes_the_restart(ground: Ground) -> None:
    """The restart begins with what should be now, and not before its time."""
    ground.supervisor.start(bound())
    ground.workers[0].crash()
    ground.supervisor.update(bound(port(2)))
    assert ground.supervisor.running() == {"guests": bound(port(2))}
    assert len(ground.workers) == 1

    ground.pass_time(0.5)
    assert ground.workers[1].running == bound(port(2))


def test_a_group_stopped_while_waiting_stays_stopped(ground: Ground) -> None:
    """No restart comes after the end."""
    ground.supervisor.start(bound())
    ground.workers[0].crash()
    ground.supervisor.stop("guests")
    ground.pass_time(60)

    assert ground.planned == []
    assert len(ground.workers) == 1
    assert ground.supervisor.running() == {}


def test_a_late_crash_of_a_stopped_worker_is_nothing(ground: Ground) -> None:
    """A worker that crashes while it is being stopped is not brought back, nor is one that was replaced
    taken for its successor."""
    ground.supervisor.start(bound())
    ground.supervisor.stop("guests")
    ground.supervisor.start(bound())
    ground.workers[0].crash()

    assert ground.planned == []
    assert ground.state() == "running"


def test_ports_that_are_closed_do_not_run(ground: Ground) -> None:
    """A port that could not be opened is an error of the step and a difference afterwards."""
    ground.closed_ports = {"port2"}
    with pytest.raises(PortierError, match="port2: No such device"):
        ground.supervisor.start(bound())
    assert ground.supervisor.running() == {"guests": bound(port(1))}
    assert ground.state() == "running"

    ground.closed_ports.clear()
    ground.supervisor.update(bound())
    assert ground.supervisor.running() == {"guests": bound()}


def test_a_restart_with_a_closed_port_is_a_difference(ground: Ground) -> None:
    """A restart that could not open all ports leaves the rest to the reconciler, which it wakes."""
    ground.supervisor.start(bound())
    ground.workers[0].crash()
    ground.closed_ports = {"port2"}
    ground.pass_time(0.5)

    assert ground.supervisor.running() == {"guests": bound(port(1))}
    assert ground.wakes == ["worker", "worker"]


def test_a_crash_at_once_is_told_and_supervised(ground: Ground) -> None:
    """A worker that crashes on its first configuration is an error of the step, and comes back."""
    ground.crash_at_once = True
    with pytest.raises(PortierError, match="a bug"):
        ground.supervisor.start(bound())
    assert ground.state() == "restarting"
    ground.pass_time(0.5)
    assert ground.delays == [0.5, 1.0]

    ground.crash_at_once = False
    ground.pass_time(1.0)
    assert ground.state() == "running"


def test_too_many_threads_is_a_crash(ground: Ground) -> None:
    """What the system cannot give now it may give later."""
    ground.no_threads = True
    with pytest.raises(PortierError, match="can't start new thread"):
        ground.supervisor.start(bound())
    assert ground.state() == "restarting"
    ground.pass_time(0.5)
    assert ground.delays == [0.5, 1.0]

    ground.no_threads = False
    ground.pass_time(1.0)
    assert ground.state() == "running"


def test_without_a_timer_the_reconciler_starts_it(ground: Ground) -> None:
    """When not even a restart can be planned, the group no longer counts as running."""
    ground.supervisor.start(bound())
    ground.no_timers = True
    ground.workers[0].crash()

    assert ground.supervisor.running() == {}
    assert ground.wakes == ["worker"]
    ground.supervisor.start(bound())
    assert ground.state() == "running"


def test_a_worker_that_does_not_stop_is_told(ground: Ground) -> None:
    """It still counts as running, so that the next round tries again."""
    ground.supervisor.start(bound())
    ground.workers[0].stubborn = True
    with pytest.raises(PortierError, match="does not stop"):
        ground.supervisor.stop("guests")
    assert "guests" in ground.supervisor.running()

    ground.workers[0].stubborn = False
    ground.supervisor.stop("guests")
    assert ground.supervisor.running() == {}


def test_a_group_that_was_slow_to_stop_is_taken_up_again(ground: Ground) -> None:
    """Wanted again, with the very same ports, it is a difference; an update ends the old worker and makes
    a new one, and fails for as long as the old one does not stop."""
    ground.supervisor.start(bound())
    ground.workers[0].stubborn = True
    with pytest.raises(PortierError, match="does not stop"):
        ground.supervisor.stop("guests")
    assert ground.supervisor.running() == {"guests": Bound(group=bound().group, ports=())}
    with pytest.raises(PortierError, match="does not stop"):
        ground.supervisor.update(bound())

    ground.workers[0].stubborn = False
    ground.supervisor.update(bound())
    assert len(ground.workers) == 2
    assert ground.workers[0].stopped
    assert ground.supervisor.running() == {"guests": bound()}
    assert ground.state() == "running"


def test_what_is_not_there(ground: Ground) -> None:
    """Each wrong step is one line."""
    with pytest.raises(PortierError, match="there is no worker guests"):
        ground.supervisor.update(bound())
    with pytest.raises(PortierError, match="there is no worker guests"):
        ground.supervisor.stop("guests")
    ground.supervisor.start(bound())
    with pytest.raises(PortierError, match="there already"):
        ground.supervisor.start(bound())
    ground.workers[0].crash()
    with pytest.raises(PortierError, match="waits for its restart"):
        ground.supervisor.explain("guests", b"", None)


def test_status_and_questions(ground: Ground) -> None:
    """What the engine and the ports know is passed on."""
    ground.supervisor.start(bound())
    engine = ground.workers[0].engine
    assert engine is not None
    engine.routes.add(host_route(2))
    engine.counts["port1"] = {"answered": 7}

    status = ground.supervisor.status()["guests"]
    assert status.wires == Wires({"port1": 3}, 2, {})
    assert status.counters == {"port1": {"answered": 7}}
    assert status.neighbors == 1
    hosts: dict[str, list[bytes]] = {
        name: [host.address for host in hosts] for name, hosts in ground.supervisor.neighbors().items()
    }
    assert hosts == {"guests": [host_route(2).address]}
    assert ground.supervisor.explain("guests", b"x", 2).steps == ("b'x' on 2",)
    with ground.supervisor.traced("guests", 2, b"frame", b"target") as trace:
        assert ground.traces == [trace]
    assert not ground.traces
    ground.supervisor.ask("guests", b"target")
    assert ground.asked == [("guests", b"target")]
    engine.heard.append(RouterInfo(bytes(16), "port1", bytes(6), 1800, False, False, frozenset({LAN})))
    assert [router.lifetime for router in ground.supervisor.status()["guests"].routers] == [800]
    assert ground.supervisor.heard() == {"guests": {LAN}}
    assert [held.ifindex for held in status.standings] == [2]
    ground.supervisor.lift("guests", 2)
    assert ground.supervisor.status()["guests"].standings == ()


def test_close_stops_all(ground: Ground) -> None:
    """At the end nothing runs and nothing comes back."""
    for name in ("one", "two", "three"):
        ground.supervisor.start(bound(name=name))
    ground.workers[1].crash()
    ground.supervisor.close()
    ground.pass_time(60)

    assert [worker.stopped for worker in ground.workers] == [True, False, True]
    assert ground.supervisor.running() == {}
    assert ground.planned == []


# -- with real workers


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.end()


def test_a_real_worker_crashes_and_comes_back(world: World) -> None:
    """The same with threads and timers: the second worker answers on a new socket."""
    supervisor = Supervisor(lambda what, crashed: world.worker(what.group.name, crashed), world.wakes.append)
    supervisor.start(bound())
    supervisor.start(bound(name="others"))
    other = world.wires[2:4]
    world.wires[0].arrive(b"crash")

    wait_for(lambda: len(world.wires) == 6, "the restart")
    wait_for(lambda: supervisor.status()["guests"].state == "running", "the restart is done")
    world.wires[4].arrive(b"echo")
    wait_for(lambda: b"answer" in world.wires[4].sent, "the answer")
    assert world.wires[0].closed
    assert not any(wire.closed for wire in other)
    assert supervisor.status()["others"].restarts == 0

    supervisor.close()
    assert all(wire.closed for wire in world.wires)


def test_commands_from_several_threads(world: World) -> None:
    """Updates, crashes, restarts and questions at the same time: no deadlock, and the last word counts."""
    supervisor = Supervisor(
        lambda what, crashed: world.worker(what.group.name, crashed),
        world.wakes.append,
        later=_at_once,
    )
    supervisor.start(bound())
    routes: list[frozenset[HostRoute]] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            supervisor.status()
            supervisor.neighbors()
            routes.append(supervisor.learned())

    asker = threading.Thread(target=ask)
    asker.start()
    for number in range(50):
        if number % 5 == 0:
            for wire in world.wires[-2:]:
                if not wire.closed:
                    wire.arrive(b"crash")
        with contextlib.suppress(PortierError):  # it crashed just then
            supervisor.update(bound(port(1)) if number % 2 else bound())
    done.set()
    asker.join(20)
    assert routes

    def settled() -> bool:
        try:
            supervisor.update(bound(port(2)))
        except PortierError:
            return False
        return supervisor.status()["guests"].state == "running"

    wait_for(settled, "the last update")
    assert supervisor.running() == {"guests": bound(port(2))}
    supervisor.close()


def _at_once(_delay: float, what: Callable[[], None]) -> Callable[[], object]:
    thread = threading.Thread(target=what)
    thread.start()
    return lambda: None

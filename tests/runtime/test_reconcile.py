"""The reconcile loop, on a kernel and workers that hold state."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Collection, Container
from concurrent.futures import Future
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portier.core.model import Config, Event, EventKind, Group, HostRoute, PolicyRule, Routes, Rule, Snapshot
from portier.errors import ConfigError, KernelError, PortierError, Problem
from portier.runtime import reconcile
from portier.runtime.reconcile import Planned, Reconciler, Round
from tests.fakes import FakeClock, FakeKernel, FakeRecord, FakeWorkers

GUESTS = Group(name="guests", upstream=("eth0",), downstream=("tap-*",))


@dataclass
class Disk:
    """The configuration as it lies on disk."""

    config: Config
    text: str = "1"
    broken: str = ""
    loads: int = 0
    warnings: tuple[Problem, ...] = ()

    @property
    def digest(self) -> str:
        return self.text

    def load(self) -> Disk:
        self.loads += 1
        if self.broken:
            raise ConfigError([Problem("portier.yaml", 3, 5, "groups.guests", self.broken)])
        return Disk(self.config, self.text)


class World:
    """A box with an upstream and a guest, and a reconciler for it."""

    def __init__(self, kernel: FakeKernel | None = None, clock: Callable[[], float] | None = None) -> None:
        self.kernel = kernel or FakeKernel()
        if not self.kernel.links:
            self.kernel.add_link("eth0")
            self.kernel.add_address("eth0", "2001:db8:7::1/64")
            self.kernel.add_link("tap-3")
        self.clock = FakeClock()
        self.record = self.kernel.record
        self.disk = Disk(Config(groups=(GUESTS,)))
        self.events: list[Event] = []
        self.opened = 0
        self.restart(clock)

    def restart(self, clock: Callable[[], float] | None = None) -> None:
        """Another process, on what the last one left; it dies without a word."""
        self.workers = FakeWorkers(self.kernel)
        self.reconciler = Reconciler(
            open_kernel=self._open,
            record=self.record,
            workers=self.workers,
            load=self.disk.load,
            digest=lambda: self.disk.text,
            emit=self.events.append,
            clock=clock or self.clock,
        )
        self.reconciler.take(self.disk.load())

    def _open(self) -> FakeKernel:
        self.opened += 1
        return self.kernel

    def round(self) -> list[str]:
        return [str(step) for step in self.reconciler.round().steps]

    def texts(self, kind: EventKind) -> list[str]:
        return [event.text for event in self.events if event.kind is kind]


@pytest.fixture
def world() -> World:
    return World()


def host(kernel: FakeKernel, address: str = "2001:db8:7::5", name: str = "tap-3") -> HostRoute:
    return HostRoute(IPv6Address(address).packed, kernel.index(name), 254, 4389, 135)


# -- a round -----------------------------------------------------------------------------------------------


def test_round_makes_it_so(world: World) -> None:
    """One round from nothing to everything; the next has nothing to do."""
    steps = world.round()
    assert steps[-1] == "+ worker guests: upstream eth0, downstream tap-3"
    assert world.workers.bounds["guests"].ports[0].name == "eth0"
    assert len(world.kernel.rules) == 4
    assert world.round() == []


def test_failing_step_stops_no_other(world: World) -> None:
    """What the kernel refuses is reported and pending; everything else is done all the same."""
    world.kernel.refuse = lambda operation: errno.EPERM if operation.startswith("add rule eth0") else 0
    done = world.reconciler.round()
    assert len(done.pending) == 2
    assert all("EPERM" in error for error in done.errors)
    assert "guests" in world.workers.bounds
    world.kernel.refuse = lambda _: 0
    done = world.reconciler.round()
    assert len(done.steps) == 2
    assert not done.errors


def test_what_does_not_stay_is_an_error(world: World) -> None:
    """A step that succeeds and has no effect is not done for ever in one round, and is reported."""
    world.kernel.set_sysctl = lambda *_: None  # type: ignore[method-assign]
    done = world.reconciler.round()
    assert done.pending
    assert all("does not stay" in error for error in done.errors)


def test_worker_that_does_not_start(world: World) -> None:
    """A worker without descriptors is an error of that group alone."""
    world.disk.config = Config(groups=(GUESTS, Group(name="lab", downstream=("lab0",))))
    world.kernel.add_link("lab0")
    world.restart()
    world.workers.refuse = lambda name: name == "lab"
    done = world.reconciler.round()
    assert "guests" in world.workers.bounds
    assert "Too many open files" in done.errors[0]


def test_port_that_a_worker_lost_by_itself(world: World) -> None:
    """A worker whose port went down is told anew: to open it again if it is still wanted, and all the same
    if it is not, for what it knew of that port must go."""
    world.round()
    world.workers.lose("guests", "tap-3")
    assert world.round() == ["~ worker guests: +tap-3"]
    world.workers.lose("guests", "tap-3")
    world.kernel.remove_link("tap-3")
    assert world.round()[0] == "~ worker guests: bound anew"
    assert world.workers.done[-1] == "update guests"
    assert world.round() == []


class Racing(FakeKernel):
    """A kernel during whose snapshot something happens."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Callable[[], object] = lambda: None
        self.after: Callable[[], object] = lambda: None

    def snapshot(
        self, protocol: int | Collection[int] = 135, ports: Container[int] | None = None
    ) -> Snapshot:
        self.before()
        shown = super().snapshot(protocol, ports)
        self.after()
        return shown


def test_route_learned_during_a_round_is_not_swept() -> None:
    """A host learned while the kernel is being asked keeps its route, whether the snapshot has it or not,
    and makes no step."""
    kernel = Racing()
    world = World(kernel)
    world.round()
    kernel.before = lambda: world.workers.learn("2001:db8:7::5", kernel.index("tap-3"))
    assert world.round() == []
    kernel.before = lambda: None
    kernel.after = lambda: world.workers.learn("2001:db8:7::6", kernel.index("tap-3"))
    assert world.round() == []
    kernel.after = lambda: None
    assert world.round() == []
    assert len(kernel.host_routes) == 2


def test_route_forgotten_during_a_round_is_not_put_back() -> None:
    """A host that a worker forgets while the kernel is being asked does not get its route again."""
    kernel = Racing()
    world = World(kernel)
    world.round()
    route = world.workers.learn("2001:db8:7::5", kernel.index("tap-3"))

    def forget() -> None:
        world.workers.hosts.discard(route)
        kernel.remove_route(route)

    kernel.before = forget
    assert world.round() == []
    kernel.before, kernel.after = lambda: None, lambda: None
    assert world.round() == []
    assert not kernel.host_routes


def test_lost_route_is_repaired_and_repetition_told(world: World) -> None:
    """A host route that somebody deletes is back after a round; the second time that is an event."""
    world.round()
    route = world.workers.learn("2001:db8:7::5", world.kernel.index("tap-3"))
    for times in (1, 2):
        world.kernel.host_routes.remove(route)
        assert world.round() == ["+ route 2001:db8:7::5/128 dev tap-3"]
        assert len(world.texts(EventKind.ROUTE)) == times - 1
    assert "2 times" in world.texts(EventKind.ROUTE)[0]


def test_foreign_route_in_the_way_is_left(world: World) -> None:
    """Where somebody put a route of their own in place of ours, theirs stays, and that is no failure."""
    world.round()
    route = world.workers.learn("2001:db8:7::5", world.kernel.index("tap-3"))
    theirs = route._replace(protocol=4)
    world.kernel.host_routes = [theirs]
    done = world.reconciler.round()
    assert not done.errors
    assert world.kernel.host_routes == [theirs]
    assert "somebody else" in world.texts(EventKind.ROUTE)[0]
    assert world.round() == []
    world.workers.hosts.clear()
    world.reconciler.clear()
    assert world.kernel.host_routes == [theirs]


def test_foreign_route_that_goes_is_followed_by_ours(world: World) -> None:
    """Once somebody else's route is gone, ours is back within the minute, however often rounds are made
    meanwhile; while it stays, it is told once.  What no worker wants any more is forgotten."""
    reconciler = world.reconciler
    world.round()
    route = world.workers.learn("2001:db8:7::5", world.kernel.index("tap-3"))
    theirs = route._replace(protocol=4)
    world.kernel.host_routes = [theirs]
    for _ in range(4):
        reconciler._turn({"route"}, [])
        world.clock.advance(50.0)
    assert len(world.texts(EventKind.ROUTE)) == 1
    world.kernel.host_routes = []
    reconciler._turn({"route"}, [])
    world.clock.advance(50.0)
    reconciler._turn({"route"}, [])
    assert world.kernel.host_routes == [route]

    world.kernel.host_routes = [theirs]
    world.round()
    assert reconciler._foreign
    world.workers.hosts.clear()
    world.round()
    assert not reconciler._foreign


def test_resync_is_not_put_off_by_rounds(world: World) -> None:
    """A minute after the last one it is due, whatever other rounds there were; and only then anew."""
    reconciler = world.reconciler
    began = reconciler._resync_at = world.clock()
    for seconds, due in ((0.0, 60.0), (50.0, 60.0), (70.0, 130.0), (120.0, 130.0)):
        world.clock.now = began + seconds
        reconciler._turn({"link"}, [])
        assert reconciler._resync_at == began + due


def test_route_of_a_host_that_moved_takes_the_place_of_the_old(world: World) -> None:
    """A move that the worker could not carry out is carried out: the new route in the old one's place."""
    world.kernel.add_link("tap-4")
    world.round()
    old = world.workers.learn("2001:db8:7::5", world.kernel.index("tap-3"))
    world.workers.hosts.discard(old)
    new = world.workers.learn("2001:db8:7::5", world.kernel.index("tap-4"), route=False)
    assert world.round() == ["+ route 2001:db8:7::5/128 dev tap-4", "- route 2001:db8:7::5/128 dev tap-3"]
    assert world.kernel.host_routes == [new]
    assert not world.texts(EventKind.ROUTE)


def test_rules_follow_the_local_table(world: World) -> None:
    """Where the local table's rule was moved behind, as people with VRFs do, ours are behind it."""
    world.round()
    world.kernel.local_rule = 5000
    assert len(world.round()) == 8
    assert {rule.priority for rule in world.kernel.rules} == {5001}


def test_record_of_a_route_about_to_be_added_is_kept(world: World) -> None:
    """A worker records a route just before it adds it: a round in between must not strike it off, or the
    route would be nobody's.  What stays away is struck off."""
    world.round()
    route = host(world.kernel)
    world.record.note_route(route)
    world.round()
    assert world.record.routes() == {route}
    world.clock.advance(0.5)
    world.round()
    assert world.record.routes() == {route}
    world.clock.advance(0.6)
    world.round()
    assert not world.record.routes()


def test_routes_of_another_protocol_are_found_and_swept(world: World) -> None:
    """A group with a protocol number of its own has its routes adopted, swept and cleaned up like others."""
    mine = Group(name="guests", upstream=("eth0",), downstream=("tap-*",), routes=Routes(protocol=200))
    world.disk.config = Config(groups=(mine,))
    world.restart()
    world.round()
    route = host(world.kernel)._replace(protocol=200)
    world.workers.hosts.add(route)
    world.kernel.add_route(route)
    assert world.round() == []
    world.restart()
    assert "- route 2001:db8:7::5/128 dev tap-3" in world.round()


def test_only_routes_of_ports_are_asked_for(world: World) -> None:
    """The routes of links that no group names are never read: there may be 200,000 of them."""
    world.kernel.add_link("bgp0")
    asked: list[bool] = []
    inner = world.kernel.snapshot

    def snapshot(protocol: int | Collection[int] = 135, ports: Container[int] | None = None) -> Snapshot:
        asked.append(ports is None or world.kernel.index("bgp0") in ports)
        return inner(protocol, ports)

    world.kernel.snapshot = snapshot  # type: ignore[method-assign]
    world.round()
    assert world.workers.bounds["guests"].live == (IPv6Network("2001:db8:7::/64"),)
    assert not any(asked)


def test_prefixes_that_workers_hear_of_are_live(world: World) -> None:
    """They join those that the kernel routes out of the upstream; when they end they have their grace."""
    world.round()
    heard = IPv6Network("2001:db8:9::/64")
    world.workers.prefixes["guests"] = frozenset({heard, IPv6Network("2001:db8:7::/64")})
    assert world.round() == ["~ worker guests: upstream is +2001:db8:9::/64"]
    assert world.workers.bounds["guests"].live == (IPv6Network("2001:db8:7::/64"), heard)
    world.workers.prefixes.clear()
    assert world.round() == []
    world.clock.advance(601.0)
    assert world.round() == ["~ worker guests: upstream is -2001:db8:9::/64"]


def test_events_tell_what_became_of_ports(world: World) -> None:
    """A port that comes, waits or goes is an event with its reason."""
    world.round()
    world.events.clear()
    world.kernel.change_link("tap-3", carrier=False)
    world.round()
    world.kernel.remove_link("tap-3")
    world.round()
    assert world.texts(EventKind.LINK) == [
        "guests: tap-3 is waiting: no carrier",
        "guests: tap-3 is gone",
    ]


# -- stop and start ----------------------------------------------------------------------------------------


def picture(kernel: FakeKernel) -> tuple[object, ...]:
    """What must be as it was."""
    return (
        sorted(kernel.links.items()),
        sorted(kernel.host_routes),
        sorted(kernel.rules),
        kernel.forwarding,
        kernel.forwarding_default,
        list(kernel.routes),
    )


@pytest.mark.parametrize("force", [True, False])
def test_stop_restores_everything(force: bool) -> None:
    """After a stop the kernel is as it was: interfaces whose own forwarding differed from the switch have
    theirs back, foreign routes and rules with our number are there, the record is empty."""
    kernel = FakeKernel(force_forwarding=force)
    world = World(kernel)
    kernel.add_link("eth8")
    kernel.change_link("eth8", forwarding=1)
    kernel.change_link("eth0", accept_ra=1)
    kernel.host_routes.append(host(kernel, "2001:db8:7::99"))
    kernel.rules.add(PolicyRule(99, "eth8", "fe80::/10", "", 135))
    before = picture(kernel)
    world.round()
    world.workers.learn("2001:db8:7::5", kernel.index("tap-3"))
    world.round()
    assert picture(kernel) != before
    done = world.reconciler.clear()
    assert not done.pending
    assert picture(kernel) == before
    assert world.record.empty()


@pytest.mark.parametrize("force", [True, False])
def test_killed_and_started_again(force: bool) -> None:
    """A start after a kill adopts what is still wanted, sweeps the rest, and a stop then restores what the
    first one found, not what the second did."""
    kernel = FakeKernel(force_forwarding=force)
    world = World(kernel)
    kernel.add_link("tap-4")
    before = picture(kernel)
    world.round()
    world.workers.learn("2001:db8:7::5", kernel.index("tap-3"))
    world.restart()
    steps = world.round()
    assert "- route 2001:db8:7::5/128 dev tap-3" in steps
    assert not [step for step in steps if "sysctl" in step or "rule" in step]
    world.reconciler.clear()
    assert picture(kernel) == before
    assert world.record.empty()


class Killed(BaseException):
    """The process is no more: nothing may catch this."""


class Counted:
    """Kills before one of the operations on the kernel or the record: the ``last``-th, if any."""

    def __init__(self, world: World, last: int) -> None:
        self.left = last
        for name in ("set_sysctl", "add_rule", "remove_rule", "add_route", "remove_route"):
            self._count(world.kernel, name)
        for kind in ("route", "rule", "sysctl"):
            self._count(world.record, f"note_{kind}")
            self._count(world.record, f"forget_{kind}")

    def _count(self, target: object, name: str) -> None:
        inner = getattr(target, name)

        def counted(*arguments: object) -> object:
            self.left -= 1
            if self.left == 0:
                raise Killed(name)
            return inner(*arguments)

        setattr(target, name, counted)


def life(world: World) -> None:
    """A daemon's whole life: it starts, learns a host, forgets it, and stops."""
    world.round()
    world.workers.learn("2001:db8:7::5", world.kernel.index("tap-3"))
    world.round()
    world.workers.hosts.clear()
    world.round()
    world.reconciler.clear()


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize("cleanup", [True, False])
def test_killed_at_any_moment(force: bool, cleanup: bool) -> None:
    """Whichever operation a kill comes before, a start and a stop, or a cleanup, leaves the kernel as it was
    and nothing on record; even a cleanup after one that was killed before any of its operations."""

    def undo(world: World) -> None:
        world.restart()
        if cleanup:
            reconcile.undo(world.kernel, world.record, world.clock)
        else:
            life(world)

    def survives(first: int, second: int) -> tuple[bool, bool]:
        """Whether there was a kill in the life, and in what came next."""
        kernel = FakeKernel(force_forwarding=force)
        world = World(kernel)
        kernel.add_link("eth8")
        kernel.change_link("eth8", forwarding=1)
        kernel.change_link("eth0", accept_ra=1, forwarding=1)
        before = picture(kernel)
        kills = Counted(world, first)
        killed = []
        for act, after in ((life, second), (undo, 0)):
            try:
                act(world)
                killed.append(False)
            except Killed:
                killed.append(True)
            kills.left = after
        undo(world)
        assert picture(kernel) == before, (first, second)
        assert world.record.empty(), (first, second)
        return killed[0], killed[1]

    first = 1
    while survives(first, 0)[0]:
        second = 1
        while cleanup and survives(first, second)[1]:
            second += 1
        first += 1
    assert first > 20


def test_renamed_while_nothing_ran(world: World) -> None:
    """A link that is renamed between a kill and the next start gets its own back all the same, and so do
    two that swapped their names."""
    before = {link.ifindex: link.force_forwarding for link in world.kernel.links.values()}
    world.kernel.add_link("tap-4")
    world.round()
    world.kernel.change_link("tap-3", name="old")
    world.kernel.change_link("tap-4", name="tap-3")
    world.kernel.change_link("old", name="tap-4")
    world.kernel.change_link("eth0", name="wan0")
    world.restart()
    world.round()
    world.reconciler.clear()
    assert world.record.empty()
    assert {i: world.kernel.links[i].force_forwarding for i in before} == before


def test_undo_alone(world: World) -> None:
    """What a killed daemon left is undone without a config, and `once` shows steps without doing any."""
    before = picture(world.kernel)
    world.round()
    world.workers.learn("2001:db8:7::5", world.kernel.index("tap-3"))
    steps = reconcile.once(Config(groups=(GUESTS,)), world.kernel, world.record, world.clock).steps
    assert [str(step) for step in steps] == [
        "+ worker guests: upstream eth0, downstream tap-3",
        "- route 2001:db8:7::5/128 dev tap-3",
    ]
    assert world.kernel.host_routes
    done = reconcile.undo(world.kernel, world.record, world.clock)
    assert not done.pending
    assert picture(world.kernel) == before
    assert world.record.empty()


def test_what_cannot_be_undone_is_reported(world: World) -> None:
    """A stop that the kernel hinders names what is left, and the record keeps it for `cleanup`."""
    world.round()
    world.kernel.refuse = lambda operation: errno.EPERM if operation.startswith("remove rule") else 0
    done = world.reconciler.clear()
    assert len(done.pending) == 4
    assert len(world.record.rules()) == 4
    assert not world.record.sysctls()


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["add", "remove", "down", "up", "learn", "forget", "lose", "rename", "enslave", "round", "crash"]
        ),
        st.integers(0, 5),
    ),
    max_size=30,
)


@settings(max_examples=60)
@given(OPERATIONS, st.booleans())
def test_whatever_happens_it_converges_and_nothing_is_left(
    operations: list[tuple[str, int]], force: bool
) -> None:
    """Links come, go, are renamed and enslaved, hosts are learned and lost, the daemon is killed: a round
    leaves nothing to do, and a stop leaves no rule, route or sysctl of ours."""
    kernel = FakeKernel(force_forwarding=force)
    world = World(kernel)
    bridge = kernel.add_link("br0", kind="bridge")
    for number, (what, which) in enumerate(operations):
        name = f"tap-{which}"
        there = any(link.name == name for link in kernel.links.values())
        if what == "add" and not there:
            kernel.add_link(name)
        elif what == "remove" and there:
            kernel.remove_link(name)
        elif what in {"down", "up"} and there:
            kernel.change_link(name, up=what == "up")
        elif what == "rename" and there:
            kernel.change_link(name, name=f"tap-r{number}")
        elif what == "enslave" and there:
            kernel.change_link(name, master=bridge)
        elif what == "learn" and any(p.name == name for b in world.workers.bounds.values() for p in b.ports):
            if there:
                world.workers.learn(f"2001:db8:7::{number + 16:x}", kernel.index(name))
        elif what == "forget" and world.workers.hosts:
            world.workers.hosts.discard(min(world.workers.hosts))
        elif what == "lose" and kernel.host_routes:
            kernel.host_routes.pop()
        elif what == "crash":
            world.restart()
        elif what == "round":
            world.reconciler.round()
    done = world.reconciler.round()
    assert not done.pending
    assert world.round() == []
    assert not world.reconciler.clear().pending
    assert world.record.empty()
    assert not kernel.rules
    assert not kernel.host_routes
    assert kernel.forwarding == 0
    for link in kernel.links.values():
        assert (link.forwarding, link.accept_ra, link.force_forwarding or 0) == (0, 1, 0), link.name


# -- the configuration -------------------------------------------------------------------------------------


def reload(world: World, reason: str = "file") -> None:
    world.reconciler._turn({reason}, [])


def test_touched_file_is_not_even_loaded(world: World) -> None:
    """A file event without a change costs one fingerprint."""
    world.round()
    loads = world.disk.loads
    reload(world)
    assert world.disk.loads == loads
    assert world.reconciler.settings.generation == 1


def test_saved_file_is_applied(world: World) -> None:
    """A changed file is in force after its event; an untouched group notices nothing."""
    world.kernel.add_link("lab0")
    world.round()
    kept = world.workers.bounds["guests"]
    world.disk.config = Config(groups=(GUESTS, Group(name="lab", downstream=("lab0",))))
    world.disk.text = "2"
    reload(world)
    assert world.reconciler.settings.generation == 2
    assert world.workers.bounds["guests"] is kept
    assert world.workers.done == ["start guests", "start lab"]


def test_bad_config_changes_nothing_and_is_told_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A broken file leaves the last good one in force; its place is logged once, and it is loaded again
    only when it changed."""
    world.round()
    world.disk.text, world.disk.broken = "2", "no such key"
    with caplog.at_level(logging.ERROR, logger="portier.runtime.reconcile"):
        reload(world)
        loads = world.disk.loads
        reload(world)
        reload(world)
    assert world.disk.loads == loads
    assert caplog.messages == ["portier.yaml:3:5: groups.guests: no such key"]
    assert world.reconciler.settings.refused == ("portier.yaml:3:5: groups.guests: no such key",)
    assert world.reconciler.settings.generation == 1
    assert "guests" in world.workers.bounds
    world.disk.text, world.disk.broken = "1", ""
    reload(world)
    assert not world.reconciler.settings.refused
    assert not world.reconciler.settings.differs


def test_watch_false_waits_to_be_asked(world: World) -> None:
    """With `watch: false` an edit is only noticed; an explicit reload applies it."""
    world.disk.config = Config(groups=(GUESTS,), watch=False)
    world.restart()
    world.round()
    world.disk.text = "2"
    loads = world.disk.loads
    reload(world)
    assert world.disk.loads == loads
    assert world.reconciler.settings.differs
    reload(world, "reload")
    assert world.reconciler.settings.generation == 2
    assert not world.reconciler.settings.differs


def test_loader_that_fails_in_another_way(world: World) -> None:
    """Whatever a loader meets, what runs goes on."""

    def load() -> Disk:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    world.round()
    world.disk.text = "2"
    world.reconciler._load_config = load
    reload(world)
    assert "Cannot allocate memory" in world.reconciler.settings.refused[0]
    assert "guests" in world.workers.bounds


# -- the loop ----------------------------------------------------------------------------------------------


def test_backoff_doubles_and_a_change_resets_it(world: World) -> None:
    """What fails is retried after 0.2 s, 0.4 s, ... 60 s; a change in the world starts that over."""
    world.kernel.refuse = lambda operation: errno.EPERM if "rule" in operation else 0
    waits = []
    for _ in range(12):
        world.reconciler._turn(set(), [])
        waits.append(world.reconciler._retry_at - world.clock())
        world.clock.advance(waits[-1])
    assert [round(wait, 3) for wait in waits[:3]] == [0.2, 0.4, 0.8]
    assert waits[-1] == 60.0
    world.reconciler._turn({"link"}, [])
    assert round(world.reconciler._retry_at - world.clock(), 3) == 0.2


def test_next_round_is_due(world: World) -> None:
    """Rounds are due for hints, soon but not at once; else for the grace of a prefix; else once a minute."""
    reconciler = world.reconciler
    reconciler._turn(set(), [])
    assert reconciler._due() == world.clock() + 60.0
    world.kernel.remove_address("eth0", "2001:db8:7::1/64")
    world.disk.config = Config(groups=(Group(name="guests", upstream=("eth0",), downstream=("tap-*",)),))
    reconciler._turn({"address"}, [])
    assert reconciler._memory.deadline == world.clock() + 600.0
    world.clock.advance(30.0)
    reconciler.wake("link")
    first = reconciler._due()
    assert world.clock() < first <= world.clock() + 0.1
    world.clock.advance(0.01)
    reconciler.wake("link")
    assert reconciler._due() == first, "a stream of hints does not put the round off"
    with reconciler._flag:
        reconciler._reasons.clear()
    reconciler.wake("file")
    assert reconciler._due() > world.clock() + 0.1, "a file may be half written"


def test_steps_are_logged_within_bounds(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A storm of steps makes so many lines a minute, and a count."""
    for number in range(100):
        world.kernel.add_link(f"tap-b{number}")
    with caplog.at_level(logging.INFO, logger="portier.runtime.reconcile"):
        steps = len(world.round())
        assert len(caplog.messages) == 120
        world.clock.advance(60.0)
        world.round()
    assert caplog.messages[-1] == f"and {steps - 120} more steps and errors, not shown"


def test_loop_that_hangs_is_noticed(live: World) -> None:
    """The watchdog is told the truth: a loop that is stuck in a round, or has ended, hangs."""
    assert not live.reconciler.hangs(5.0)
    stuck = threading.Event()
    inner = live.workers.learned

    def learned() -> frozenset[HostRoute]:
        stuck.wait(20)
        return inner()

    live.workers.learned = learned  # type: ignore[method-assign]
    live.reconciler.wake("link")
    until(lambda: live.reconciler.hangs(0.05))
    stuck.set()
    until(lambda: not live.reconciler.hangs(0.05))
    live.reconciler.stop()
    assert live.reconciler.hangs(5.0)


def test_rounds_are_apart_but_never_long(world: World) -> None:
    """Between rounds there is some time, more where they are expensive, but a round that took long because
    it had much to do does not keep the next waiting; and who asks for a reload never waits for that."""
    reconciler = world.reconciler
    for seconds, apart in ((0.001, 0.1), (0.1, 0.4), (30.0, 1.0)):
        reconciler.last = Round(seconds=seconds)
        reconciler._retry(failed=False, reasons=set())
        reconciler.wake("link")
        assert reconciler._due() == pytest.approx(world.clock() + apart)
    reconciler.ask_reload()
    assert reconciler._due() < world.clock()


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


@pytest.fixture
def live() -> World:
    """A world whose reconciler runs, in its own thread on the real clock."""
    world = World(clock=time.monotonic)
    world.reconciler.start().result(20)
    return world


def test_loop_reacts_reloads_plans_and_stops(live: World) -> None:
    """The loop does a round when it starts and when woken, applies a reload before `reload` returns, plans
    without touching, and undoes everything when it stops."""
    assert "guests" in live.workers.bounds
    live.kernel.add_link("tap-9")
    live.reconciler.wake("link")
    until(lambda: len(live.workers.bounds["guests"].ports) == 3)

    live.disk.config = Config(groups=(GUESTS, Group(name="lab", downstream=("lab0",))))
    assert live.reconciler.settings.generation == 1
    live.kernel.add_link("lab0")
    steps = live.reconciler.steps(live.disk.config, 20).steps
    assert "+ worker lab: downstream lab0" in map(str, steps)
    assert "lab" not in live.workers.bounds
    live.disk.text = "2"
    done = live.reconciler.reload(20)
    assert not done.errors
    assert "lab" in live.workers.bounds

    live.reconciler.stop()
    assert not live.workers.bounds
    assert live.record.empty()
    assert not [thread for thread in threading.enumerate() if thread.name == "reconcile"]


def test_reload_of_a_bad_file_returns_its_errors(live: World) -> None:
    """Who asked for a reload learns what is wrong."""
    live.disk.text, live.disk.broken = "2", "no such key"
    assert live.reconciler.reload(20).refused == ("portier.yaml:3:5: groups.guests: no such key",)
    live.reconciler.stop()


def test_kernel_that_cannot_be_read(live: World) -> None:
    """A snapshot that fails is an error in the status; the loop goes on, with a kernel opened anew."""
    inner = live.kernel.snapshot
    opened = live.opened

    def snapshot(*_: object) -> Snapshot:
        raise KernelError("list links", "No buffer space available", errno.ENOBUFS)

    live.kernel.snapshot = snapshot  # type: ignore[method-assign, assignment]
    live.reconciler.wake("link")
    until(lambda: live.reconciler.last.errors)
    assert live.reconciler.last.errors == ("list links: No buffer space available",)
    live.kernel.snapshot = inner  # type: ignore[method-assign]
    until(lambda: not live.reconciler.last.errors)
    assert live.opened > opened
    live.reconciler.stop()


@pytest.mark.parametrize("error", [KernelError("list links", "none", errno.ETIMEDOUT), ValueError()])
def test_stop_although_a_look_fails(live: World, error: Exception) -> None:
    """One look that fails while everything is undone is made once more, with a kernel opened anew."""
    inner = live.kernel.snapshot
    opened = live.opened

    def snapshot(*_: object) -> Snapshot:
        live.kernel.snapshot = inner  # type: ignore[method-assign]
        raise error

    live.kernel.snapshot = snapshot  # type: ignore[method-assign, assignment]
    done = live.reconciler.stop()
    assert (done.pending, done.errors) == ((), ())
    assert live.opened == opened + 1
    assert not live.workers.bounds
    assert live.record.empty()


def test_stop_that_cannot_look(live: World) -> None:
    """Where nothing could be undone, the result of the stop says so."""

    def snapshot(*_: object) -> Snapshot:
        raise KernelError("list links", "none within 5 s", errno.ETIMEDOUT)

    live.kernel.snapshot = snapshot  # type: ignore[method-assign, assignment]
    assert live.reconciler.stop().errors == ("list links: none within 5 s",)


def test_who_asks_while_it_stops_is_answered(world: World) -> None:
    """Nobody waits for ever for a round or a plan that never comes: not who asked before the stop, nor
    who was just being served, nor who asks after."""
    reconciler = world.reconciler
    asked = reconciler.ask_reload()
    question: Future[Planned] = Future()
    reconciler._questions.append((world.disk.config, question))
    inner = reconciler._wait

    def wait() -> tuple[set[str], list[Future[Round]], list[tuple[Config, Future[Planned]]]]:
        served = inner()
        reconciler._stopping = True
        return served

    reconciler._wait = wait  # type: ignore[method-assign]
    reconciler._run()
    assert asked.done()
    with pytest.raises(PortierError, match="stopping"):
        question.result(0)
    assert reconciler.ask_reload().done()
    with pytest.raises(PortierError, match="stopping"):
        reconciler.steps(world.disk.config)


def test_bug_in_a_round_is_survived(live: World, caplog: pytest.LogCaptureFixture) -> None:
    """An exception that nobody foresaw is logged with its traceback; the loop goes on."""
    broken = True

    def learned() -> frozenset[HostRoute]:
        if broken:
            raise ZeroDivisionError
        return frozenset()

    live.workers.learned = learned  # type: ignore[method-assign]
    live.reconciler.wake("link")
    until(lambda: live.reconciler.last.errors)
    assert "ZeroDivisionError" in caplog.text
    broken = False
    until(lambda: not live.reconciler.last.errors)
    live.reconciler.stop()


def test_burst_of_hints_makes_few_rounds(live: World) -> None:
    """A hundred links in a burst are one change, or a few."""
    before = live.reconciler.rounds
    for number in range(100):
        live.kernel.add_link(f"tap-b{number}")
        live.reconciler.wake("link")
    until(lambda: len(live.workers.bounds["guests"].ports) == 102)
    assert live.reconciler.rounds - before < 30
    live.reconciler.stop()


def test_rules_of_a_group_are_not_compared_again(world: World) -> None:
    """A reload that leaves a big group as it was keeps the very group, so that later rounds find it
    unchanged at a glance."""
    rules = tuple(Rule(prefix=IPv6Network(f"2001:db8:7:{i:x}::/64")) for i in range(200))
    big = Group(name="big", upstream=("eth0",), downstream=("tap-*",), rules=rules)
    world.disk.config = Config(groups=(big,))
    world.restart()
    world.round()
    copy = Group(name="big", upstream=("eth0",), downstream=("tap-*",), rules=tuple(rules))
    world.disk.config, world.disk.text = Config(groups=(copy,)), "2"
    reload(world)
    assert world.reconciler.settings.config.groups[0] is big


def test_fake_record_starts_empty() -> None:
    """The stand-in for the record has nothing on it at first."""
    assert FakeRecord().empty()

"""Stand-ins for what a worker drives: wires over socket pairs, a kernel that keeps its routes, an engine
that does what a frame tells it to."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from portier.core.engine import (
    Explanation,
    KernelOracle,
    KnownHost,
    NeighborInfo,
    RouterInfo,
    Service,
    Standing,
)
from portier.core.histogram import FOUND_BOUNDS, Histogram, Tally
from portier.core.mld import Joined
from portier.core.model import Bound, Event, EventKind, Group, HostRoute, Port, Role
from portier.core.notes import Noted
from portier.core.outcome import (
    AddRoute,
    Join,
    Leave,
    MoveRoute,
    Outcome,
    Reconsider,
    RemoveRoute,
    RouteResult,
    Verdict,
)
from portier.core.rules import RuleTable
from portier.errors import KernelError
from portier.runtime.feed import Feed
from portier.runtime.worker import Worker

GROUP = bytes.fromhex("ff0200000000000000000001ff000005")
MAC = {1: b"\2\0\0\0\0\1", 2: b"\2\0\0\0\0\2", 3: b"\2\0\0\0\0\3"}
_REFUSED = b"refused"
PATIENCE = 20.0  # seconds until a test gives up; far more than anything takes on a busy machine


def wait_for(condition: Callable[[], Any], what: str) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.002)


def port(ifindex: int, *, mac: bytes | None = b"", name: str = "") -> Port:
    """A port as it usually is."""
    return Port(
        ifindex=ifindex,
        name=name or f"port{ifindex}",
        role=Role.UPSTREAM if ifindex == 1 else Role.DOWNSTREAM,
        mac=MAC[ifindex] if mac == b"" else mac,
        mtu=1500,
        source=bytes(16),
    )


def bound(*ports: Port, name: str = "guests") -> Bound:
    """A group with these ports, or with ports 1 and 2."""
    return Bound(group=Group(name=name), ports=ports or (port(1), port(2)))


def host_route(ifindex: int, host: int = 5) -> HostRoute:
    """A route to a host."""
    return HostRoute(bytes(15) + bytes([host]), ifindex, 254, 4389, 135)


class FakeWire:
    """A port's socket: what the world does at its other end is in `arrive`, `sent` and `breaks`."""

    def __init__(self, world: World, ifindex: int, mac: bytes) -> None:
        self.world = world
        self.ifindex = ifindex
        self.mac = mac
        self.sent: list[bytes] = []
        self.send_error = 0
        self.receive_error = 0
        self.endless = b""
        self.closed = False
        self.taken = 0
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ours.setblocking(False)

    def arrive(self, *frames: bytes) -> None:
        for frame in frames:
            self._theirs.send(frame)

    def flood(self, frame: bytes) -> None:
        """From now on there is always one more frame."""
        self.endless = frame
        self._theirs.send(frame)

    def breaks(self, number: int) -> None:
        """The link goes down."""
        self.send_error = self.receive_error = number
        with contextlib.suppress(OSError):
            self._theirs.send(b"")

    def refuse_next(self) -> None:
        """A frame comes that the kernel cannot hand over."""
        self._theirs.send(_REFUSED)

    def recv(self) -> bytes:
        if self.receive_error:
            raise OSError(self.receive_error, os.strerror(self.receive_error))
        self.taken += 1
        frame = self.endless or self._ours.recv(1 << 17)
        if frame == _REFUSED:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return frame

    def into(self, buffer: bytearray) -> Callable[[], int]:
        def take() -> int:
            frame = self.recv()
            kept = frame[: len(buffer)]
            buffer[: len(kept)] = kept
            return len(frame)

        return take

    def send(self, frame: bytes | memoryview, /) -> int:
        if self.send_error:
            raise OSError(self.send_error, os.strerror(self.send_error))
        sent = bytes(frame)
        self.world.log.append(f"send {self.ifindex} {sent.decode(errors='replace')}")
        self.sent.append(sent)
        return len(sent)

    def fileno(self) -> int:
        return self._ours.fileno()

    def drops(self) -> int:
        return self.ifindex

    def close(self) -> None:
        self.closed = True
        self._ours.close()
        self._theirs.close()


class FakeKernel:
    """Keeps routes; `result` is what becomes of those that are added, `error` what every call raises."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.routes: set[HostRoute] = set()
        self.result = RouteResult.ADDED
        self.error: KernelError | None = None
        self.closed = False

    def _does(self, what: str) -> None:
        if self.error:
            raise self.error
        self.world.log.append(what)

    def add_route(self, route: HostRoute) -> RouteResult:
        self._does(f"add {route.ifindex}")
        if self.result is RouteResult.ADDED:
            self.routes.add(route)
        return self.result

    def move_route(self, old: HostRoute, new: HostRoute) -> RouteResult:
        self._does(f"move {old.ifindex} {new.ifindex}")
        self.routes = self.routes - {old} | {new}
        return RouteResult.ADDED

    def remove_route(self, route: HostRoute) -> None:
        self._does(f"remove {route.ifindex}")
        self.routes.discard(route)

    def route(self, address: bytes, table: int) -> int:
        self._does("look up")
        found = [route for route in self.routes if (route.address, route.table) == (address, table)]
        return found[0].ifindex if found else 0

    def host_route(self, address: bytes, table: int) -> int:
        assert address
        assert table
        return 0  # no other router has hosts here

    def neighbor(self, address: bytes, ports: Iterable[int]) -> int:
        assert len(address) == 16
        assert all(ports)
        self._does("look for")
        return 0  # this host talks to nobody

    def heard_on(self, ifindex: int) -> list[tuple[bytes, bytes]]:
        if self.error:
            raise self.error
        return self.world.heard.get(ifindex, [])

    def close(self) -> None:
        self.closed = True


class FakeMemberships:
    """Keeps what was joined."""

    def __init__(self) -> None:
        self.groups: set[tuple[int, bytes]] = set()
        self.closed = False

    def join(self, ifindex: int, group: bytes, /) -> None:
        self.groups.add((ifindex, group))

    def leave(self, ifindex: int, group: bytes, /) -> None:
        self.groups.discard((ifindex, group))

    def joined(self) -> Joined:
        return Joined(len(self.groups), 0, "")

    def close(self) -> None:
        self.closed = True


class FakeEngine:
    """Does what a frame says: ``echo``, ``learn``, ``move``, ``forget``, ``join``, ``leave``, ``crash``,
    ``tick``, ``loud``, ``astray``, ``known`` (answered with what the kernel says)."""

    def __init__(self, world: World, kernel: KernelOracle | None = None) -> None:
        self.deadline = math.inf
        self.kernel = kernel
        self.world = world
        self.bound: Bound | None = None
        self.counts: dict[str, dict[str, int]] = {}
        self.settled: list[RouteResult] = []
        self.routes: set[HostRoute] = set()
        self.ticks = 0
        self.threads: set[str] = set()
        self.on_settle = Outcome(Verdict.HEARD)
        self.held = {2}
        self.heard: list[RouterInfo] = []

    def configure(self, bound: Bound, rules: RuleTable, now: float) -> Outcome:
        assert isinstance(rules, RuleTable)
        assert now <= time.monotonic()
        self.bound = bound
        names = ",".join(port.name for port in bound.ports)
        self.world.log.append(f"configure {names}")
        if self.world.bad_config:
            raise ValueError("a bug in configure")
        return Outcome(
            Verdict.HEARD, sends=tuple((port.ifindex, b"hello") for port in bound.ports if port.mac)
        )

    def rehearse(self, ifindex: int, frame: bytes, now: float) -> Outcome:
        return self.receive(ifindex, frame, now)

    def receive(self, ifindex: int, frame: bytes, now: float) -> Outcome:
        assert now <= time.monotonic()
        self.threads.add(threading.current_thread().name)
        counts = self.counts.setdefault(f"port{ifindex}", {})
        counts["answered"] = counts.get("answered", 0) + 1
        answer = ((ifindex, b"answer"),)
        match frame:
            case b"learn":
                self.routes.add(host_route(2))
                return Outcome(Verdict.ANSWERED, (AddRoute(host_route(2)),), answer)
            case b"move":
                return Outcome(Verdict.ANSWERED, (MoveRoute(host_route(2), host_route(1)),), answer)
            case b"forget":
                return Outcome(Verdict.HEARD, (RemoveRoute(host_route(2)),), answer)
            case b"join":
                return Outcome(Verdict.HEARD, (Join(2, GROUP), Join(1, GROUP)), answer)
            case b"leave":
                return Outcome(Verdict.HEARD, (Leave(1, GROUP),), answer)
            case b"router":
                return Outcome(Verdict.HEARD, (Reconsider("router"),))
            case b"crash":
                raise ZeroDivisionError("a bug in receive")
            case b"tick":
                self.deadline = now + 0.01
                return Outcome(Verdict.HEARD)
            case b"loud":
                return Outcome(Verdict.CLAIM, events=(Event(kind=EventKind.CLAIM, text="a claim"),))
            case b"known":
                assert self.kernel is not None
                said = f"{self.kernel.route(bytes(16), 254)} {self.kernel.neighbor(bytes(16), (1, 2))}"
                return Outcome(Verdict.HEARD, sends=((ifindex, said.encode()),))
            case b"astray":
                return Outcome(Verdict.ANSWERED, sends=((99, b"answer"), *answer))
        return Outcome(Verdict.ANSWERED, sends=answer)

    def tick(self, now: float) -> Outcome:
        assert now >= self.deadline
        self.deadline = math.inf
        self.ticks += 1
        return Outcome(Verdict.HEARD, sends=((1, b"tick"),))

    def settle(self, effect: AddRoute | MoveRoute, result: RouteResult) -> Outcome:
        self.settled.append(result)
        self.world.log.append(f"settle {effect.route.ifindex} {result.value}")
        return self.on_settle

    def ask(self, target: bytes, now: float) -> Outcome:
        assert now <= time.monotonic()
        self.threads.add(threading.current_thread().name)
        return Outcome(Verdict.RESOLVING, sends=((2, b"ask " + target),))

    def explain(self, address: bytes, ifindex: int | None, now: float) -> Explanation:
        assert now <= time.monotonic()
        self.threads.add(threading.current_thread().name)
        return Explanation(Verdict.NO_RULE, (f"{address!r} on {ifindex}",))

    def recall(self, hosts: Iterable[KnownHost], now: float) -> Outcome:
        assert now <= time.monotonic()
        return Outcome(
            Verdict.HEARD, sends=tuple((host.ifindex, b"recall " + host.address) for host in hosts)
        )

    def lift(self, ifindex: int, now: float) -> Outcome:
        assert now <= time.monotonic()
        self.held.discard(ifindex)
        return Outcome(Verdict.HEARD, sends=((ifindex, b"lifted"),))

    def standings(self, now: float) -> list[Standing]:
        return [
            Standing(ifindex, Service.HOLD_DOWN, "a rogue", bytes(16), MAC[1], now) for ifindex in self.held
        ]

    def routers(self, now: float) -> list[RouterInfo]:
        return [info._replace(lifetime=info.lifetime - now) for info in self.heard]

    def noted(self, _now: float) -> Noted:
        return Noted()

    def counters(self) -> dict[str, dict[str, int]]:
        return {name: dict(counts) for name, counts in list(self.counts.items())}

    def neighbors(self, now: float) -> list[NeighborInfo]:
        return [NeighborInfo(route.address, "port2", MAC[2], "reachable", now, "") for route in self.routes]

    def tally(self, now: float) -> Tally:
        assert now <= time.monotonic()
        return Tally({"reachable": len(self.routes)}, {}, Histogram(FOUND_BOUNDS), 0, len(self.routes), 0)

    def wanted_routes(self) -> frozenset[HostRoute]:
        return frozenset(self.routes)

    def table_size(self) -> int:
        return len(self.routes)

    def pending_size(self) -> int:
        return 0


class FakeRelay(FakeEngine):
    """Passes every frame that ``flow`` stands in behind the headers to the other port, with ``moved`` for an
    Ethernet header; the frames that it is asked to judge are in `judged`."""

    def __init__(self, world: World, kernel: KernelOracle | None = None) -> None:
        super().__init__(world, kernel)
        self.judged: list[bytes] = []

    def forward(self, ifindex: int, buffer: bytearray, length: int, now: float) -> int:
        assert 64 <= length <= len(buffer)
        assert now <= time.monotonic()
        if buffer[64:68] != b"flow":
            return 0
        buffer[10:24] = b"moved".ljust(14, b".")
        return 3 - ifindex

    def receive(self, ifindex: int, frame: bytes, now: float) -> Outcome:
        self.judged.append(frame)
        return super().receive(ifindex, frame, now)


class World:
    """What a worker has around it, and a record of what it did to it, in order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.wires: list[FakeWire] = []
        self.kernels: list[FakeKernel] = []
        self.engines: list[FakeEngine] = []
        self.recalled: list[KnownHost] = []
        self.heard: dict[int, list[tuple[bytes, bytes]]] = {}  # by the kernel
        self.memberships: list[FakeMemberships] = []
        self.feed = Feed()
        self.events: list[Event] = []
        self.wakes: list[str] = []
        self.crashes: list[Exception] = []
        self.missing: dict[int, int] = {}
        self.bad_config = False
        self.no_kernel = False
        self.relay = False
        self.workers: list[Worker] = []

    def worker(self, name: str = "guests", crashed: Callable[[Exception], None] | None = None) -> Worker:
        """A worker in this world, not started."""
        worker = Worker(
            name,
            open_port=self._open_port,
            open_kernel=self._open_kernel,
            open_memberships=self._open_memberships,
            recollect=lambda bound: [host for host in self.recalled if host.group == bound.group.name],
            make_engine=self._make_engine,
            feed=self.feed,
            on_event=self.events.append,
            wake=self.wakes.append,
            crashed=crashed or self.crashes.append,
        )
        self.workers.append(worker)
        return worker

    def started(self, *ports: Port, name: str = "guests") -> Worker:
        """A worker that works with these ports, or with ports 1 and 2."""
        worker = self.worker(name)
        worker.start()
        what = bound(*ports, name=name)
        worker.configure(what, RuleTable.compile(what))
        return worker

    def wire(self, ifindex: int) -> FakeWire:
        """The wire that was opened last on an interface."""
        return next(wire for wire in reversed(self.wires) if wire.ifindex == ifindex)

    @property
    def engine(self) -> FakeEngine:
        """The engine made last."""
        return self.engines[-1]

    @property
    def kernel(self) -> FakeKernel:
        """The kernel handle opened last."""
        return self.kernels[-1]

    def end(self) -> None:
        """Stop what still runs."""
        for worker in self.workers:
            assert worker.stop(PATIENCE)
            worker.join(PATIENCE)

    def _open_port(self, ifindex: int, mac: bytes) -> FakeWire:
        if number := self.missing.get(ifindex, 0):
            raise OSError(number, os.strerror(number))
        wire = FakeWire(self, ifindex, mac)
        self.wires.append(wire)
        return wire

    def _open_memberships(self) -> FakeMemberships:
        self.memberships.append(FakeMemberships())
        return self.memberships[-1]

    def _open_kernel(self) -> FakeKernel:
        if self.no_kernel:
            raise OSError(errno.EMFILE, "Too many open files")
        self.kernels.append(FakeKernel(self))
        return self.kernels[-1]

    def _make_engine(self, kernel: KernelOracle) -> FakeEngine:
        assert self.kernels
        self.engines.append((FakeRelay if self.relay else FakeEngine)(self, kernel))
        return self.engines[-1]


NO_ROOM = errno.ENOBUFS
DOWN = errno.ENETDOWN
GONE = errno.ENODEV

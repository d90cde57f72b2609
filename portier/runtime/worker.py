"""One group's worker: a thread that takes frames, lets the engine decide, and carries out what it says.

The thread owns the sockets of the group's ports, the engine and a kernel handle; whoever else wants
something of them leaves a call with it.  A worker decides nothing: what a frame means is the engine's to
say, what ports there are the reconciler's.

An engine of mode relay is handed the data too (`Relay`): every frame lies in one buffer that all ports share,
and one of a known flow leaves from there, without having been copied.

A port that cannot be opened, or that goes down, costs the group that port and nothing else: it is missing
from `Worker.running`, which the reconciler sees.  An exception from the engine ends the worker.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import random
import select
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from time import monotonic
from typing import Any, Final, NamedTuple, Protocol, TypeVar, runtime_checkable

from portier.core.engine import Explanation, KernelOracle, KnownHost, NeighborInfo, RouterInfo, Standing
from portier.core.histogram import SERVED_BOUNDS, Histogram, Tally
from portier.core.mld import NOTHING_JOINED, Joined, RouterBeacon
from portier.core.model import Bound, Event, EventKind, HostRoute, Port, Role
from portier.core.notes import Noted
from portier.core.outcome import (
    AddRoute,
    DrawAll,
    Join,
    Leave,
    MoveRoute,
    Outcome,
    Reconsider,
    RemoveRoute,
    RouteResult,
    Verdict,
)
from portier.core.probe import Done, Trace
from portier.core.rules import RuleTable
from portier.errors import PortierError
from portier.runtime.feed import Feed

_BATCH: Final = 64  # frames from one port before the others, the timers and the calls have their turn
_MEASURED: Final = 64  # batches of which one is measured: a look at the clock for each would show in the rate
_PATIENCE: Final = 5.0  # seconds in which a worker does what it was told, however busy it is
_LONGEST_SLEEP: Final = 3600.0  # what epoll can count has an end
_GONE: Final = frozenset({errno.ENETDOWN, errno.ENXIO, errno.ENODEV})
_HEADERS: Final = 10 + 14 + 40  # octets of a frame: the virtio-net, Ethernet and IPv6 headers
_LARGEST: Final = _HEADERS + 0xFFFF

_T = TypeVar("_T")
_Receive = Callable[[int, bytes, float], Outcome]

log = logging.getLogger(__name__)


class Wire(Protocol):
    """A port's socket.  Frames begin with a virtio-net header of 10 octets."""

    def recv(self) -> bytes:
        """Take the next frame; BlockingIOError when there is none, OSError (EINVAL) for one, lost by that,
        that cannot be handed over."""

    def into(self, buffer: bytearray) -> Callable[[], int]:
        """Make a `recv` that puts the frame into `buffer` and returns its length, which is more than the
        buffer's where the frame was cut."""

    def send(self, frame: bytes | memoryview, /) -> int:
        """Put a frame on the link; OSError when that fails."""

    def fileno(self) -> int:
        """What epoll waits for."""

    def drops(self) -> int:
        """Frames lost because they were not read in time; from any thread, and after `close`."""

    def close(self) -> None:
        """Close; this takes the kernel some 15 ms (it waits for an RCU grace period)."""


class Kernel(KernelOracle, Protocol):
    """What a worker asks of the kernel.  Used in the worker's own thread only."""

    def add_route(self, route: HostRoute) -> RouteResult:
        """Add a host route, never over another."""

    def move_route(self, old: HostRoute, new: HostRoute) -> RouteResult:
        """Add `new`, then remove `old`."""

    def remove_route(self, route: HostRoute) -> None:
        """Remove a host route; that it is gone is success."""

    def heard_on(self, ifindex: int) -> Sequence[tuple[bytes, bytes]]:
        """List the neighbors that the kernel has on an interface, each with its link-layer address."""

    def close(self) -> None:
        """Close the handle."""


class Memberships(Protocol):
    """Multicast groups that switches are told of.  Nothing here waits or fails."""

    def join(self, ifindex: int, group: bytes, /) -> None:
        """Be a member of a group (packed) on an interface."""

    def leave(self, ifindex: int, group: bytes, /) -> None:
        """Be none any more."""

    def joined(self) -> Joined:
        """How things stand; from any thread."""

    def close(self) -> None:
        """End all memberships."""


class Engine(Protocol):
    """Decides.  The methods of the second half may be called from any thread."""

    @property
    def deadline(self) -> float:
        """The monotonic time at which `tick` is due, infinity when nothing is."""

    def configure(self, bound: Bound, rules: RuleTable, now: float) -> Outcome:
        """Take over ports and rules."""

    def receive(self, ifindex: int, frame: bytes, now: float) -> Outcome:
        """Decide on a frame; an empty one is one that the port could not hand over whole."""

    def rehearse(self, ifindex: int, frame: bytes, now: float, /) -> Outcome:
        """The same for a frame that nobody sent: it is not counted, and is no sign that somebody asks."""

    def tick(self, now: float) -> Outcome:
        """Do what is due."""

    def settle(self, effect: AddRoute | MoveRoute, result: RouteResult) -> Outcome:
        """Hear how a route effect ended."""

    def ask(self, target: bytes, now: float) -> Outcome:
        """Look for a target on all ports."""

    def recall(self, hosts: Iterable[KnownHost], now: float, /) -> Outcome:
        """Ask hosts that an earlier process knew, before they are used; nothing in mode relay."""

    def explain(self, address: bytes, ifindex: int | None, now: float) -> Explanation:
        """Say how a solicitation would be decided."""

    def lift(self, ifindex: int, now: float, /) -> Outcome:
        """End the hold-down of a port."""

    def standings(self, now: float, /) -> list[Standing]:
        """List the parts that ports take in mode relay; nothing in mode route."""

    def routers(self, now: float, /) -> list[RouterInfo]:
        """List the routers whose Router Advertisements are relayed."""

    def noted(self, now: float, /) -> Noted:
        """Say what may tell why nothing happens."""

    def counters(self) -> dict[str, dict[str, int]]:
        """Count frames by port and verdict."""

    def neighbors(self, now: float) -> list[NeighborInfo]:
        """List the known hosts."""

    def tally(self, now: float, /) -> Tally:
        """Count what there is to count, for programs."""

    def wanted_routes(self) -> frozenset[HostRoute]:
        """List the host routes that should be in the kernel."""

    def table_size(self) -> int:
        """Count the known hosts."""

    def pending_size(self) -> int:
        """Count the targets being asked for."""


@runtime_checkable
class Relay(Engine, Protocol):
    """An engine of mode relay: one that decides on data too."""

    def forward(self, ifindex: int, buffer: bytearray, length: int, now: float) -> int:
        """Where the frame in the first `length` octets of the buffer (which hold its headers up to IPv6's) is
        one of a known flow: write its new Ethernet header, and return the interface it leaves by.  Else touch
        nothing and return 0, and `receive` decides."""


class Wires(NamedTuple):
    """How a worker's ports fare.  ``drops`` are frames lost in the sockets by port name, ``unsent`` frames
    that no link took, ``faults`` the ports that should be open and are not, with the reason, ``joined`` the
    multicast groups, ``served`` how long frames take, as far as it was measured, ``drawn`` the ports on which
    all multicast is drawn because there are too many groups to join."""

    drops: dict[str, int]
    unsent: int
    faults: dict[str, str]
    joined: Joined = NOTHING_JOINED
    served: Histogram = Histogram(SERVED_BOUNDS)
    drawn: tuple[str, ...] = ()


class _Open:
    """An open port.  ``batch`` is how many frames are tried for at once: more than one only while the last
    look found more than one, because a look in vain costs a tenth of an answer."""

    __slots__ = ("batch", "ifindex", "mac", "name", "recv", "recv_into", "wire")

    def __init__(self, port: Port, wire: Wire, buffer: bytearray) -> None:
        self.ifindex = port.ifindex
        self.mac = port.mac
        self.name = port.name
        self.wire = wire
        self.recv = wire.recv
        self.recv_into = wire.into(buffer)
        self.batch = 1


class _Oracle:
    """A kernel that knows of nothing where it cannot be asked (no buffers, no answer in time): the engine
    then decides as for an address of which the kernel has not heard."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def route(self, address: bytes, table: int) -> int:
        """The interface by which a route leaves, or 0."""
        try:
            return self._kernel.route(address, table)
        except (PortierError, OSError) as error:
            log.debug("no word on a route: %s", error)
            return 0

    def host_route(self, address: bytes, table: int) -> int:
        """The interface by which a host route to a gateway leaves, or 0."""
        try:
            return self._kernel.host_route(address, table)
        except (PortierError, OSError) as error:
            log.debug("no word on a host route: %s", error)
            return 0

    def neighbor(self, address: bytes, ports: Iterable[int]) -> int:
        """The port on which the kernel has talked to an address, or 0."""
        try:
            return self._kernel.neighbor(address, ports)
        except (PortierError, OSError) as error:
            log.debug("no word on a neighbor: %s", error)
            return 0


class Worker:
    """The thread of group `name`.

    `open_port` makes a socket from an interface index and its link-layer address, `open_kernel` a kernel
    handle, `open_memberships` what joins multicast groups, `make_engine` an engine that may ask the kernel
    handle and never sees it fail, `recollect` gives the hosts that an earlier process knew on ports, each
    once; all are called in the worker's thread.
    `feed` takes the frames that the engine judges, with their verdicts, while somebody wants packets.
    `on_event` is told the engine's events, `wake` that something is no longer as the reconciler left it;
    both are called from that thread and must not block.  `crashed` is called when an exception has ended
    the worker, which touches nothing any more then, and has only sockets left to close.
    """

    def __init__(
        self,
        name: str,
        *,
        open_port: Callable[[int, bytes], Wire],
        open_kernel: Callable[[], Kernel],
        open_memberships: Callable[[], Memberships],
        recollect: Callable[[Bound], Sequence[KnownHost]],
        make_engine: Callable[[KernelOracle], Engine],
        feed: Feed,
        on_event: Callable[[Event], None],
        wake: Callable[[str], None],
        crashed: Callable[[Exception], None],
    ) -> None:
        self.name = name
        self.running: Bound | None = None  # replaced, never changed: for any thread
        self.engine: Engine | None = None  # None before the first and after the last frame
        self._open_port = open_port
        self._open_kernel = open_kernel
        self._open_memberships = open_memberships
        self._recollect = recollect
        self._make_engine = make_engine
        self._feed = feed
        self._on_event = on_event
        self._wake = wake
        self._crashed = crashed
        # What other threads leave; the lock also keeps the doorbell open while it is rung.
        self._lock = threading.Lock()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._bell = -1
        self._stopping = False
        self._silent = threading.Event()
        self._thread = threading.Thread(target=self._main, name=f"portier-{name}", daemon=True)
        # What belongs to the thread.
        self._kernel: Kernel
        self._memberships: Memberships | None = None
        self._beacon = RouterBeacon(random.random)
        self._epoll: select.epoll
        self._ports: dict[int, _Open] = {}  # by file descriptor
        self._senders: dict[int, Callable[[bytes | memoryview], int]] = {}  # by interface index
        self._names: dict[int, str] = {}  # of ports, by interface index
        self._buffer = bytearray()  # has room in mode relay
        self._bound: Bound | None = None
        self._faults: dict[str, str] = {}
        self._unsent = 0
        self._served = Histogram(SERVED_BOUNDS)
        self._traces: list[Trace] = []

    # -- for other threads ---------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread; it opens nothing before `configure`.  Raises OSError or RuntimeError when there
        are too many descriptors or threads."""
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            self._thread.start()
        except RuntimeError:
            os.close(self._bell)
            raise

    def configure(self, bound: Bound, rules: RuleTable) -> None:
        """Work with these ports and rules from now on, and return when that is so.  Ports that are there
        already, with the same index and link-layer address, keep their sockets.

        Raises PortierError when the worker is gone, when it does not answer within 5 s, and when ports
        could not be opened; all that could be done is done then.
        """
        faults = self._call(lambda: self._bind(bound, rules))
        if faults:
            raise PortierError("; ".join(f"{port}: {why}" for port, why in faults.items()))

    def ask(self, target: bytes) -> None:
        """Look for a host on all ports; its answer, if one comes, is in the engine's table a moment
        later.  Raises PortierError as `configure` does."""
        self._call(lambda: self._carry_out(self._engine().ask(target, monotonic())))

    def explain(self, address: bytes, ifindex: int | None) -> Explanation:
        """Let the engine explain, in the thread whose kernel handle it asks.  Raises PortierError as
        `configure` does."""
        return self._call(lambda: self._engine().explain(address, ifindex, monotonic()))

    def trace(self, ifindex: int, frame: bytes, target: bytes) -> Trace:
        """Have a frame judged, and what it says done, as if it had come in by a port; what is done about
        `target` goes on to be noted until `untrace`.  Raises PortierError as `configure` does; nothing is
        done any more then."""

        def begin() -> Trace:
            trace = Trace(target, monotonic())
            self._traces.append(trace)
            outcome = self._engine().rehearse(ifindex, frame, trace.began)
            trace.verdict = outcome.verdict
            if self._feed.packets:
                self._feed.packet(self.name, self._names.get(ifindex, ""), frame, outcome.verdict)
            self._carry_out(outcome)
            return trace

        return self._call(begin, late=False)

    def untrace(self, trace: Trace) -> None:
        """Note no more.  Raises PortierError as `configure` does."""
        self._call(lambda: self._traces.remove(trace))

    def lift(self, ifindex: int) -> None:
        """End the hold-down of a port.  Raises PortierError as `configure` does."""
        self._call(lambda: self._carry_out(self._engine().lift(ifindex, monotonic())))

    def wires(self) -> Wires:
        """How the ports fare."""
        ports = list(self._ports.values())
        drops = {port.name: port.wire.drops() for port in ports}
        joined = self._memberships.joined() if self._memberships else NOTHING_JOINED
        drawn = tuple(sorted(port.name for port in ports if port.ifindex in self._beacon.drawn))
        return Wires(drops, self._unsent, self._faults, joined, self._served, drawn)

    def stop(self, patience: float = _PATIENCE) -> bool:
        """Have the worker stop, and wait until it touches nothing any more, at most `patience` seconds;
        says whether that is so.  Its sockets are being closed then."""
        with self._lock:
            self._stopping = True
            self._ring()
        return self._silent.wait(patience)

    def join(self, patience: float = _PATIENCE) -> None:
        """Wait until the stopped worker's sockets are closed too."""
        self._thread.join(patience)

    def _call(self, what: Callable[[], _T], *, late: bool = True) -> _T:
        """Have `what` done in the worker's thread; `late` when nobody waits for it any more, too."""
        done: Future[_T] = Future()
        with self._lock:
            if self._stopping or self._silent.is_set():
                raise PortierError(f"worker {self.name} is not running")
            self._calls.append((what, done))
            self._ring()
        try:
            return done.result(_PATIENCE)
        except TimeoutError:
            if not late:
                done.cancel()
            raise PortierError(f"worker {self.name} does not answer") from None

    def _ring(self) -> None:
        if self._bell >= 0:
            os.eventfd_write(self._bell, 1)

    # -- the thread ----------------------------------------------------------------------------------

    def _main(self) -> None:
        failure: Exception | None = None
        try:
            with contextlib.ExitStack() as stack:
                self._kernel = self._open_kernel()
                stack.callback(self._kernel.close)
                self._memberships = self._open_memberships()
                stack.callback(self._memberships.close)
                self._epoll = stack.enter_context(select.epoll())
                self._epoll.register(self._bell, select.EPOLLIN)
                self.engine = self._make_engine(_Oracle(self._kernel))
                if isinstance(self.engine, Relay):
                    self._buffer = bytearray(_LARGEST)
                self._loop(self.engine)
                self._say(self._beacon.stop())
        except Exception as error:
            log.exception("[unexpected] worker %s ends", self.name)
            failure = error
        self.engine = None
        with self._lock:
            self._silent.set()
            os.close(self._bell)
            self._bell = -1
        why = f"worker {self.name} " + ("has stopped" if failure is None else f"crashed: {failure!r}")
        for _, done in self._calls:
            if done.set_running_or_notify_cancel():
                done.set_exception(PortierError(why))
        try:
            if failure is not None:
                self._crashed(failure)
                self._on_event(Event(kind=EventKind.WORKER, text=why, group=self.name))
        finally:
            _close(self._ports.values())

    def _loop(self, engine: Engine) -> None:
        """Serve ports, timers and calls until told to stop.  Nothing is polled: without frames, calls and
        due timers this sleeps."""
        poll = self._epoll.poll
        ports = self._ports
        carry_out = self._carry_out
        beacon = self._beacon
        feed = self._feed
        # Two of each, so that it costs nothing to be able to publish.
        serve, show = (
            self._relaying(engine, receive) if isinstance(engine, Relay) else self._judging(receive)
            for receive in (engine.receive, self._shown(engine))
        )
        batches = _MEASURED
        while not self._stopping:
            timeout = -1.0
            deadline = min(engine.deadline, beacon.deadline)
            if deadline < math.inf:
                timeout = min(deadline - monotonic(), _LONGEST_SLEEP)
                if timeout <= 0:
                    now = monotonic()
                    if now >= beacon.deadline:
                        carry_out(Outcome(Verdict.HEARD, sends=beacon.tick(now)))
                    if now >= engine.deadline:
                        carry_out(engine.tick(now))
                    timeout = 0.0
            for descriptor, _ in poll(timeout):
                port = ports.get(descriptor)
                if port is None:
                    if descriptor == self._bell:
                        self._answer()
                    continue  # a port that was closed since
                batches -= 1
                if not batches:
                    batches = _MEASURED
                    begin = monotonic()
                    if count := (show if feed.packets else serve)(port):
                        self._served.observe((monotonic() - begin) / count)
                elif feed.packets:
                    show(port)
                else:
                    serve(port)

    def _shown(self, engine: Engine) -> _Receive:
        """The engine's `receive`, with all that it judges published."""
        receive = engine.receive
        publish = self._feed.packet

        def show(ifindex: int, frame: bytes, now: float) -> Outcome:
            outcome = receive(ifindex, frame, now)
            publish(self.name, self._names.get(ifindex, ""), frame, outcome.verdict)
            return outcome

        return show

    def _judging(self, receive: _Receive) -> Callable[[_Open], int]:
        """What serves a port in mode route: every frame is the engine's to judge, by its `receive`; returns
        how many there were."""
        carry_out = self._carry_out

        def serve(port: _Open) -> int:
            recv = port.recv
            ifindex = port.ifindex
            now = monotonic()
            for count in range(port.batch):
                try:
                    frame = recv()
                except BlockingIOError:
                    port.batch = _BATCH if count > 1 else 1
                    return count
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        self._lose(port, error)
                        return count
                    frame = b""
                carry_out(receive(ifindex, frame, now))
            tried, port.batch = port.batch, _BATCH
            return tried

        return serve

    def _relaying(self, engine: Relay, receive: _Receive) -> Callable[[_Open], int]:
        """What serves a port in mode relay: a frame of a known flow goes out of the buffer it came into,
        any other is the engine's to judge, by its `receive`; returns how many there were."""
        forward = engine.forward
        carry_out = self._carry_out
        senders = self._senders
        buffer = self._buffer
        view = memoryview(buffer)

        def serve(port: _Open) -> int:
            recv_into = port.recv_into
            ifindex = port.ifindex
            now = monotonic()
            for count in range(port.batch):
                try:
                    length = recv_into()
                except BlockingIOError:
                    port.batch = _BATCH if count > 1 else 1
                    return count
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        self._lose(port, error)
                        return count
                    length = 0
                if _HEADERS <= length <= _LARGEST:
                    out = forward(ifindex, buffer, length, now)
                    if out:
                        try:
                            senders[out](view[:length])
                        except (OSError, KeyError) as error:
                            self._fail(out, error)
                        continue
                elif length > _LARGEST:
                    length = 0  # half a frame is none
                carry_out(receive(ifindex, bytes(view[:length]), now))
            tried, port.batch = port.batch, _BATCH
            return tried

        return serve

    def _carry_out(self, outcome: Outcome) -> None:
        """Do to the kernel what the engine wants, then send: a host must be reachable before others are
        told that it is."""
        _, effects, sends, events = outcome
        if effects:
            failed = False
            for effect in effects:
                if isinstance(effect, RemoveRoute):
                    self._remove(effect)
                elif isinstance(effect, Join):
                    self._groups.join(effect.ifindex, effect.group)
                elif isinstance(effect, Leave):
                    self._groups.leave(effect.ifindex, effect.group)
                elif isinstance(effect, DrawAll):
                    self._say(self._beacon.draw(effect.ifindex, monotonic(), wanted=effect.wanted))
                elif isinstance(effect, Reconsider):
                    self._wake(effect.what)
                else:
                    result = self._put(effect)
                    for trace in self._traces:
                        trace.note(Done(monotonic(), effect, result))
                    failed = failed or result is RouteResult.FAILED
                    self._carry_out(self._engine().settle(effect, result))
            if failed:
                sends = ()
        for ifindex, frame in sends:
            why = ""
            try:
                self._senders[ifindex](frame)
            except (OSError, KeyError) as error:
                why = str(error.strerror) if isinstance(error, OSError) else "the port is not open"
                self._fail(ifindex, error)
            if self._traces:
                for trace in self._traces:
                    trace.note(Done(monotonic(), ifindex=ifindex, frame=frame, error=why))
        for event in events:
            self._on_event(event)

    def _say(self, sends: Iterable[tuple[int, bytes]]) -> None:
        """Send what nobody misses by ports that may be gone already."""
        for ifindex, frame in sends:
            with contextlib.suppress(OSError, KeyError):
                self._senders[ifindex](frame)

    def _put(self, effect: AddRoute | MoveRoute) -> RouteResult:
        try:
            if isinstance(effect, MoveRoute):
                return self._kernel.move_route(effect.old, effect.route)
            return self._kernel.add_route(effect.route)
        except (PortierError, OSError) as error:
            log.debug("%s: %s", effect, error)  # the engine tells of it, once a host
            return RouteResult.FAILED

    def _remove(self, effect: RemoveRoute) -> None:
        try:
            self._kernel.remove_route(effect.route)
        except (PortierError, OSError) as error:
            log.debug("%s: %s", effect, error)
            self._wake("route")  # nobody wants it any more, so the reconciler removes it

    def _fail(self, ifindex: int, error: OSError | KeyError) -> None:
        """Count a frame that was not sent; the port may be gone, or only have too much to do."""
        self._unsent += 1
        if isinstance(error, OSError) and error.errno in _GONE:
            for port in list(self._ports.values()):
                if port.ifindex == ifindex:
                    self._lose(port, error)

    def _answer(self) -> None:
        """Do what other threads have left."""
        os.eventfd_read(self._bell)
        while self._calls:
            what, done = self._calls.popleft()
            if not done.set_running_or_notify_cancel():
                continue
            try:
                result = what()
            except PortierError as error:  # a refusal; whatever else is a bug, and ends the worker
                done.set_exception(error)
                continue
            except Exception as error:
                done.set_exception(PortierError(f"worker {self.name} crashed: {error!r}"))
                raise
            done.set_result(result)

    # -- ports ---------------------------------------------------------------------------------------

    def _bind(self, bound: Bound, rules: RuleTable) -> dict[str, str]:
        """Take over ports and rules; returns the ports that could not be opened, with the reason."""
        wanted: dict[tuple[int, bytes | None], Port] = {
            (port.ifindex, port.mac): port for port in bound.ports if port.mac is not None
        }
        self._say(self._beacon.configure(bound, monotonic()))
        leaving = [port for port in self._ports.values() if (port.ifindex, port.mac) not in wanted]
        for port in leaving:
            self._forget(port)
        _close_aside(leaving)
        for kept in self._ports.values():
            new = wanted.pop((kept.ifindex, kept.mac))
            kept.name = new.name
        faults = {}
        for new in wanted.values():
            try:
                self._open(new)
            except OSError as error:
                faults[new.name] = error.strerror or str(error)
        self._faults = faults
        self._names = {port.ifindex: port.name for port in self._ports.values()}
        self._bound = bound
        self._carry_out(self._engine().configure(bound, rules, monotonic()))
        fresh = [port for port in wanted.values() if port.ifindex in self._senders]
        if hosts := [*self._recollect(bound), *self._heard_before(fresh)]:
            self._carry_out(self._engine().recall(hosts, monotonic()))
        self._publish()
        return self._faults

    def _heard_before(self, ports: Iterable[Port]) -> Iterator[KnownHost]:
        """Who told the kernel of itself on a downstream before it was open here: a container's first words
        may be that early, and it may have nothing more to ask for a long time."""
        for port in ports:
            if port.role is not Role.DOWNSTREAM or port.mac is None:
                continue
            try:
                heard = self._kernel.heard_on(port.ifindex)
            except (PortierError, OSError) as error:
                log.debug("no word on the neighbors of %s: %s", port.name, error)
                continue
            for address, mac in heard:
                yield KnownHost(address, mac, port.ifindex, port.mac, port.name, self.name, hearsay=True)

    def _open(self, port: Port) -> None:
        assert port.mac is not None  # noqa: S101 - what has no link-layer address is not asked for
        wire = self._open_port(port.ifindex, port.mac)
        try:
            self._epoll.register(wire.fileno(), select.EPOLLIN)
        except OSError:
            wire.close()
            raise
        self._ports[wire.fileno()] = _Open(port, wire, self._buffer)
        self._senders[port.ifindex] = wire.send

    def _lose(self, port: _Open, error: OSError) -> None:
        """Do without a port that takes no more frames, until the reconciler has looked at it."""
        if self._ports.get(port.wire.fileno()) is not port:
            return
        self._forget(port)
        _close_aside([port])
        self._faults = {**self._faults, port.name: error.strerror or str(error)}
        self._publish()
        text = f"port {port.name} of group {self.name}: {error.strerror or error}"
        self._on_event(Event(kind=EventKind.LINK, text=text, group=self.name, port=port.name))
        self._wake("port")

    def _forget(self, port: _Open) -> None:
        self._epoll.unregister(port.wire.fileno())
        del self._ports[port.wire.fileno()]
        del self._senders[port.ifindex]

    def _publish(self) -> None:
        """Show what the worker works with: a port that should be open and is not does not count."""
        bound = self._bound
        if bound is not None and self._faults:
            ports = tuple(p for p in bound.ports if p.mac is None or p.ifindex in self._senders)
            bound = replace(bound, ports=ports)
        self.running = bound

    @property
    def _groups(self) -> Memberships:
        assert self._memberships is not None  # noqa: S101 - opened before the first frame
        return self._memberships

    def _engine(self) -> Engine:
        assert self.engine is not None  # noqa: S101 - only called in the thread, which has made it
        return self.engine


def _close(ports: Iterable[_Open]) -> None:
    for port in ports:
        port.wire.close()


def _close_aside(ports: list[_Open]) -> None:
    """Close sockets without keeping frames waiting: a hundred take more than a second."""
    if not ports:
        return
    try:
        threading.Thread(target=_close, args=(ports,), name="portier-close").start()
    except RuntimeError:  # no more threads
        _close(ports)

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from portier.core import mld
from portier.core.mld import Joined
from portier.core.model import Bound, EventKind, Group, Multicast
from portier.core.outcome import Outcome, RouteResult, Verdict
from portier.core.rules import RuleTable
from portier.errors import KernelError, PortierError
from portier.runtime import worker as worker_module
from portier.runtime.worker import Worker
from tests.runtime.rig import (
    DOWN,
    GONE,
    GROUP,
    MAC,
    NO_ROOM,
    PATIENCE,
    FakeRelay,
    World,
    bound,
    host_route,
    port,
    wait_for,
)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.end()


def configure(worker: Worker, what: Bound) -> None:
    worker.configure(what, RuleTable.compile(what))


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# -- frames and outcomes


def test_frames_are_answered(world: World) -> None:
    """What the engine says to send goes out, in order, on the ports it names; so does what `configure`
    wants sent."""
    world.started()
    world.wire(1).arrive(b"one", b"two")
    world.wire(2).arrive(b"three")

    wait_for(lambda: len(world.log) == 6, "three answers")
    assert world.log[:3] == ["configure port1,port2", "send 1 hello", "send 2 hello"]
    assert world.wire(1).sent == [b"hello", b"answer", b"answer"]
    assert world.wire(2).sent == [b"hello", b"answer"]


def test_a_long_queue_is_answered_whole(world: World) -> None:
    """Nothing is left behind in a socket, however many frames came at once."""
    world.started()
    for _ in range(50):
        world.wire(1).arrive(*[b"frame"] * 5)
        world.wire(2).arrive(b"frame")

    wait_for(lambda: len(world.wire(1).sent) == 251 and len(world.wire(2).sent) == 51, "all answers")


def test_whom_the_kernel_heard_before_a_port_was_open_is_asked(world: World) -> None:
    """Once, on a downstream that is opened; the kernel's refusal to tell costs nothing else."""
    world.heard = {1: [(bytes(16), MAC[1])], 2: [(b"a" * 16, MAC[2])], 3: [(b"b" * 16, MAC[3])]}
    worker = world.started()
    assert [line for line in world.log if "recall" in line] == ["send 2 recall " + "a" * 16]
    world.log.clear()
    configure(worker, bound(port(1), port(2), port(3)))
    assert [line for line in world.log if "recall" in line] == ["send 3 recall " + "b" * 16]
    world.log.clear()
    configure(worker, bound(port(1), port(2)))
    world.kernels[0].error = KernelError("netlink", "no memory", 12)
    configure(worker, bound(port(1), port(2), port(3)))
    assert not [line for line in world.log if "recall" in line]


def test_the_route_is_there_before_the_answer(world: World) -> None:
    """A host is reachable before others are told that it is."""
    world.started()
    world.log.clear()
    world.wire(1).arrive(b"learn")

    wait_for(lambda: "send 1 answer" in world.log, "the answer")
    assert world.log == ["add 2", "settle 2 added", "send 1 answer"]
    assert world.kernel.routes == {host_route(2)}


def test_what_settling_wants_is_carried_out(world: World) -> None:
    """The engine may have more to say once it knows how an effect ended; it comes before the answer."""
    worker = world.started()
    world.engine.on_settle = Outcome(Verdict.HEARD, sends=((2, b"settled"),))
    world.log.clear()
    world.wire(1).arrive(b"learn")

    wait_for(lambda: "send 1 answer" in world.log, "the answer")
    assert world.log == ["add 2", "settle 2 added", "send 2 settled", "send 1 answer"]
    assert worker.wires().unsent == 0


def test_a_failed_route_keeps_the_answer_back(world: World) -> None:
    """Without its route a host is not reachable, so nobody is told that it is."""
    world.started()
    world.kernel.result = RouteResult.FAILED
    world.log.clear()
    world.wire(1).arrive(b"learn", b"echo")

    wait_for(lambda: "send 1 answer" in world.log, "the answer to the second frame")
    assert world.log == ["add 2", "settle 2 failed", "send 1 answer"]


def test_a_foreign_route_does_not(world: World) -> None:
    """Somebody else's route to the same host serves as well."""
    world.started()
    world.kernel.result = RouteResult.FOREIGN
    world.log.clear()
    world.wire(1).arrive(b"learn")

    wait_for(lambda: "send 1 answer" in world.log, "the answer")
    assert world.engine.settled == [RouteResult.FOREIGN]


def test_a_kernel_that_refuses_ends_nothing(world: World) -> None:
    """An error from the kernel is a failed route; one on removal is left to the reconciler."""
    world.started()
    world.kernel.error = KernelError("add a route", "Cannot allocate memory", 12)
    world.wire(1).arrive(b"learn", b"move", b"forget")

    wait_for(lambda: "route" in world.wakes, "the reconciler is woken")
    assert world.engine.settled == [RouteResult.FAILED, RouteResult.FAILED]
    wait_for(lambda: world.wire(1).sent == [b"hello", b"answer"], "the answer that needed no route")


def test_a_kernel_that_cannot_be_asked_knows_nothing(world: World) -> None:
    """No buffers, or no answer in time, while the engine decides: the kernel counts as knowing no route
    and no neighbor, and the worker goes on."""
    world.started()
    world.kernel.error = KernelError("look up ::", "No buffer space available", 105)
    world.wire(1).arrive(b"known", b"echo")

    wait_for(lambda: world.wire(1).sent == [b"hello", b"0 0", b"answer"], "both answers")
    assert not world.crashes


def test_a_call_that_is_refused_ends_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PortierError in a call is its caller's only."""

    def refuse(*_: object) -> None:
        raise KernelError("look up ::", "No buffer space available", 105)

    worker = world.started()
    with monkeypatch.context() as patch:
        patch.setattr(world.engine, "explain", refuse)
        with pytest.raises(PortierError, match="No buffer space"):
            worker.explain(bytes(16), None)
    assert worker.explain(bytes(16), None)
    assert not world.crashes


def test_a_move_and_an_end(world: World) -> None:
    """A host that moves has its route moved, one that goes has it removed."""
    world.started()
    world.wire(1).arrive(b"learn", b"move")
    wait_for(lambda: world.kernel.routes == {host_route(1)}, "the moved route")
    world.wire(1).arrive(b"forget")
    wait_for(lambda: "remove 2" in world.log, "the removal")

    assert "move 2 1" in world.log


def test_events_are_told(world: World) -> None:
    """The engine's events reach whoever listens."""
    world.started()
    world.wire(2).arrive(b"loud")

    wait_for(lambda: world.events, "the event")
    assert [event.text for event in world.events] == ["a claim"]


def test_ticks_come_when_due(world: World) -> None:
    """The engine hears of the passing of time at its deadline, without a frame."""
    world.started()
    world.wire(1).arrive(b"tick")

    wait_for(lambda: world.wire(1).sent == [b"hello", b"tick"], "the tick")
    assert world.engine.ticks == 1


# -- fairness and idleness


def test_a_flood_starves_nobody(world: World) -> None:
    """While one port never runs dry, the others, the timers and the reconciler have their turn."""
    worker = world.started()
    world.wire(1).flood(b"flood")
    world.wire(2).arrive(b"echo", b"tick")

    wait_for(lambda: b"answer" in world.wire(2).sent, "the other port")
    wait_for(lambda: world.engine.ticks, "the tick")
    configure(worker, bound(port(1)))
    assert worker.running == bound(port(1))


def test_idle_costs_nothing(world: World) -> None:
    """Without frames and timers a worker sleeps, and is not woken once."""
    worker = world.started()
    status = Path(f"/proc/self/task/{worker._thread.native_id}/status")

    def switches() -> list[str]:
        return [line for line in status.read_text().splitlines() if "ctxt_switches" in line]

    wait_for(lambda: "S (sleeping)" in status.read_text(), "the worker sleeps")
    before = switches()
    time.sleep(0.3)
    assert switches() == before


def test_one_frame_at_a_time_costs_no_look_in_vain(world: World) -> None:
    """With one outstanding frame at most every other answer is followed by a look for more."""
    world.started()
    wire = world.wire(1)
    for number in range(100):
        wire.arrive(b"echo")
        wait_for(lambda: len(wire.sent) == number + 2, "the answer")  # noqa: B023 - called at once
    assert wire.taken <= 151


# -- mode relay


class Relaying:
    """A world whose engine is one of mode relay."""

    def __init__(self, world: World) -> None:
        self.world = world
        assert isinstance(world.engine, FakeRelay)
        self.engine: FakeRelay = world.engine

    def passed(self, ifindex: int) -> list[bytes]:
        """What went out by a port, beside what `configure` sends."""
        return self.world.wire(ifindex).sent[1:]


@pytest.fixture
def relay(world: World) -> Relaying:
    world.relay = True
    world.started()
    return Relaying(world)


HEAD, MOVED = b"v" * 10 + b"e" * 14, b"v" * 10 + b"moved........."
DATA = b"i" * 40 + b"flow and what it carries"


def test_the_data_of_a_known_flow_is_passed_on(relay: Relaying) -> None:
    """It leaves by the port that the engine names, with the Ethernet header that the engine wrote, and is not
    judged."""
    relay.world.wire(1).arrive(HEAD + DATA)
    relay.world.wire(2).arrive(HEAD + DATA + DATA)

    wait_for(lambda: relay.passed(1) and relay.passed(2), "both frames")
    assert relay.passed(2) == [MOVED + DATA]
    assert relay.passed(1) == [MOVED + DATA + DATA]
    assert relay.engine.judged == []


def test_what_is_of_no_known_flow_is_judged(relay: Relaying) -> None:
    """Whole, and free of what another frame left in the buffer."""
    stranger = HEAD + b"i" * 40 + b"strange"
    relay.world.wire(1).arrive(HEAD + DATA, stranger, b"echo")

    wait_for(lambda: len(relay.engine.judged) == 2, "both verdicts")
    assert relay.engine.judged == [stranger, b"echo"]
    assert relay.passed(1) == [b"answer"] * 2


def test_the_largest_frame_is_passed_on(relay: Relaying) -> None:
    """A packet of the longest payload that IPv6 has without a jumbo option."""
    largest = HEAD + DATA.ljust(40 + 0xFFFF, b"x")
    relay.world.wire(1).arrive(largest)

    wait_for(lambda: relay.passed(2), "the frame")
    assert relay.passed(2) == [MOVED + largest[24:]]


def test_half_a_frame_is_never_passed_on(relay: Relaying) -> None:
    """One that does not fit the buffer, or that the socket cannot hand over, is an empty one to the engine,
    and the port goes on."""
    relay.world.wire(1).arrive(HEAD + DATA.ljust(40 + 0x10000, b"x"))
    wait_for(lambda: relay.engine.judged, "the verdict on a frame that is too long")
    relay.world.wire(1).refuse_next()
    wait_for(lambda: len(relay.engine.judged) == 2, "the verdict on a frame that is refused")
    relay.world.wire(1).arrive(HEAD + DATA)

    wait_for(lambda: relay.passed(2), "the next frame")
    assert relay.engine.judged == [b"", b""]
    assert relay.world.wakes == []


def test_a_frame_that_cannot_be_handed_over_costs_no_port(world: World) -> None:
    """In mode route too it is a verdict, and no reason to open the port anew."""
    worker = world.started()
    world.wire(1).refuse_next()
    wait_for(lambda: b"answer" in world.wire(1).sent, "the verdict")
    world.wire(1).arrive(b"echo")

    wait_for(lambda: len(world.wire(1).sent) == 3, "the next frame")
    assert worker.running == bound()
    assert world.wakes == []


def test_the_reconciler_is_woken_when_the_engine_says_so(world: World) -> None:
    """What it plans by has changed: the prefixes that routers tell."""
    world.started()
    world.wire(1).arrive(b"router")
    wait_for(lambda: world.wakes == ["router"], "the reconciler is woken")


def test_data_that_a_link_does_not_take_is_counted(relay: Relaying) -> None:
    """A full queue costs the frame and nothing else; a link that is gone costs its port."""
    worker = relay.world.workers[0]
    relay.world.wire(2).send_error = NO_ROOM
    relay.world.wire(1).arrive(HEAD + DATA, HEAD + DATA)
    wait_for(lambda: worker.wires().unsent == 2, "the count")
    assert worker.running == bound()

    relay.world.wire(2).send_error = DOWN
    relay.world.wire(1).arrive(HEAD + DATA)
    wait_for(lambda: relay.world.wakes == ["port"], "the reconciler is woken")
    assert worker.running == bound(port(1))
    assert worker.wires().unsent == 3


def test_a_flood_of_data_starves_nobody(relay: Relaying) -> None:
    """While data never runs dry on one port, the others' frames, the timers and the reconciler have their
    turn."""
    relay.world.wire(1).flood(HEAD + DATA)
    relay.world.wire(2).arrive(b"echo", b"tick")

    wait_for(lambda: relay.engine.ticks, "the tick")
    assert relay.engine.judged == [b"echo", b"tick"]
    configure(relay.world.workers[0], bound(port(2)))
    assert relay.world.workers[0].running == bound(port(2))


# -- ports


def test_ports_are_opened_and_closed_by_difference(world: World) -> None:
    """What stays keeps its socket, even when it is renamed; a new MAC is a new port."""
    worker = world.started()
    first, second = world.wires
    configure(worker, bound(port(1, name="renamed"), port(3)))
    assert [wire.ifindex for wire in world.wires] == [1, 2, 3]
    assert not first.closed
    wait_for(lambda: second.closed, "the socket that went")
    assert worker.wires().drops == {"renamed": 1, "port3": 3}

    configure(worker, bound(port(1, mac=MAC[2]), port(3)))
    assert world.wire(1).mac == MAC[2]
    wait_for(lambda: first.closed, "the socket of the old MAC")
    world.wire(1).arrive(b"echo")
    wait_for(lambda: b"answer" in world.wire(1).sent, "the new socket answers")
    assert len(world.wires) == 4


def test_a_port_without_link_layer_address_has_no_socket(world: World) -> None:
    """Behind a tunnel nobody solicits; the engine knows of the port all the same."""
    worker = world.started(port(1), port(2, mac=None))

    assert [wire.ifindex for wire in world.wires] == [1]
    assert worker.running == bound(port(1), port(2, mac=None))
    assert world.engine.bound == worker.running


def test_a_port_that_cannot_be_opened_costs_only_itself(world: World) -> None:
    """The others serve, the reconciler is told why, and what runs is what is open; the next attempt opens
    what is missing and nothing else."""
    world.missing[2] = GONE
    worker = world.worker()
    worker.start()
    with pytest.raises(PortierError, match="port2: No such device"):
        configure(worker, bound())

    assert worker.running == bound(port(1))
    assert worker.wires().faults == {"port2": "No such device"}
    world.wire(1).arrive(b"echo")
    wait_for(lambda: b"answer" in world.wire(1).sent, "the other port answers")

    del world.missing[2]
    configure(worker, bound())
    assert worker.running == bound()
    assert worker.wires().faults == {}
    assert [wire.ifindex for wire in world.wires] == [1, 2]


@pytest.mark.parametrize("number", [DOWN, GONE])
def test_a_port_that_goes_down_is_let_go(world: World, number: int) -> None:
    """No spin, no crash: its socket is closed, it no longer counts as running, the reconciler is woken."""
    worker = world.started()
    world.wire(2).breaks(number)

    wait_for(lambda: world.wakes == ["port"], "the reconciler is woken")
    wait_for(lambda: world.wire(2).closed, "the socket is closed")
    assert worker.running == bound(port(1))
    assert worker.wires().faults == {"port2": os.strerror(number)}
    assert [(event.kind, event.port) for event in world.events] == [(EventKind.LINK, "port2")]
    world.wire(1).arrive(b"echo")
    wait_for(lambda: b"answer" in world.wire(1).sent, "the other port answers")

    configure(worker, bound())
    assert worker.running == bound()
    assert len(world.wires) == 3


def test_a_link_that_takes_no_more_costs_frames_only(world: World) -> None:
    """A full queue is not a lost port; what was not sent is counted."""
    worker = world.started()
    world.wire(1).send_error = NO_ROOM
    world.wire(1).arrive(b"echo", b"echo")

    wait_for(lambda: worker.wires().unsent == 2, "the count")
    assert worker.running == bound()
    assert world.wakes == []


def test_a_link_that_is_gone_shows_when_sending(world: World) -> None:
    """The first frame that is refused for good ends the port."""
    worker = world.started()
    world.wire(1).send_error = DOWN
    world.wire(1).arrive(b"echo")

    wait_for(lambda: world.wakes == ["port"], "the reconciler is woken")
    assert worker.running == bound(port(2))
    assert worker.wires().unsent == 1


def test_frames_for_a_port_that_is_not_there_are_counted(world: World) -> None:
    """An engine that knows of a port longer than the worker loses a frame, and no more."""
    worker = world.started()
    world.wire(1).arrive(b"astray")

    wait_for(lambda: b"answer" in world.wire(1).sent, "the rest of the outcome")
    assert worker.wires().unsent == 1


# -- life and death


def test_calls_are_made_in_the_workers_thread(world: World) -> None:
    """Engine and kernel handle belong to one thread, whoever asks."""
    worker = world.started()
    said = worker.explain(b"address", 2)
    worker.ask(b"target")
    worker.lift(2)

    assert said.steps == ("b'address' on 2",)
    assert world.wire(2).sent == [b"hello", b"ask target", b"lifted"]
    assert world.engine.threads == {"portier-guests"}


def test_stop_is_silence(world: World) -> None:
    """When `stop` returns nothing more is answered; all that was open is closed soon after."""
    worker = world.started()
    wire = world.wire(1)
    assert worker.stop()
    with contextlib.suppress(OSError):  # it may be closed by now
        wire.arrive(b"echo")
    worker.join()

    assert wire.sent == [b"hello"]
    assert all(wire.closed for wire in world.wires)
    assert world.kernel.closed
    assert worker.engine is None
    assert world.crashes == []
    with pytest.raises(PortierError, match="not running"):
        configure(worker, bound())


def test_nothing_leaks(world: World) -> None:
    """Workers that come and go, with ports that come and go, leave no descriptor and no thread."""
    before, threads = descriptors(), threading.active_count()
    for number in range(20):
        world.wakes.clear()
        world.crashes.clear()
        worker = world.started()
        configure(worker, bound(port(2), port(3)))
        if number % 2:
            world.wire(2).arrive(b"crash")
            wait_for(lambda: world.crashes, "the crash")
        else:
            world.wire(3).breaks(DOWN)
            wait_for(lambda: world.wakes, "the lost port")
        worker.stop()
        worker.join()

    wait_for(lambda: threading.active_count() == threads, "the threads end")
    assert descriptors() == before


def test_a_crash_ends_one_worker_only(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A bug in one group is logged with its traceback and reported; another group's sockets and counters
    are as they were."""
    other = World()
    neighbor = other.started(name="others")
    other.wire(1).arrive(b"echo")
    wait_for(lambda: b"answer" in other.wire(1).sent, "the other group answers")
    worker = world.started()
    world.wire(1).arrive(b"crash")

    wait_for(lambda: world.crashes, "the report")
    assert [repr(error) for error in world.crashes] == ["ZeroDivisionError('a bug in receive')"]
    assert "ZeroDivisionError" in caplog.text
    assert "Traceback" in caplog.text
    wait_for(lambda: world.wire(1).closed and world.wire(2).closed, "the sockets are closed")
    assert world.kernel.closed
    with pytest.raises(PortierError, match="not running"):
        worker.explain(b"", 1)
    wait_for(lambda: world.events, "the event")
    assert [event.kind for event in world.events] == [EventKind.WORKER]

    assert len(other.wires) == 2
    assert neighbor.running == bound(name="others")
    assert other.engine.counters() == {"port1": {"answered": 1}}
    other.wire(2).arrive(b"echo")
    wait_for(lambda: b"answer" in other.wire(2).sent, "the other group still answers")
    other.end()


def test_a_crash_in_configure_is_told_to_both(world: World) -> None:
    """Whoever configures hears that it did not work, and the supervisor that the worker is gone."""
    world.bad_config = True
    worker = world.worker()
    worker.start()
    with pytest.raises(PortierError, match="a bug in configure"):
        configure(worker, bound())

    wait_for(lambda: world.crashes, "the report")
    assert worker.running is None


def test_calls_that_wait_hear_of_the_end(world: World) -> None:
    """Nobody waits in vain for a worker that crashed before it came to the call."""
    world.no_kernel = True
    worker = world.worker()
    errors: list[str] = []

    def ask() -> None:
        try:
            worker.explain(b"", 1)
        except PortierError as error:
            errors.append(str(error))

    callers = [threading.Thread(target=ask) for _ in range(3)]
    for caller in callers:
        caller.start()
    wait_for(lambda: len(worker._calls) == 3, "the calls are left")
    worker.start()
    for caller in callers:
        caller.join(20)

    assert len(errors) == 3
    assert all("Too many open files" in error for error in errors)


def test_a_frame_is_not_handed_in_when_nobody_waits_for_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe that was told that the worker does not answer leaves nothing behind, in it or on the wire."""
    monkeypatch.setattr(worker_module, "_PATIENCE", 0.01)
    worker = world.worker()
    with pytest.raises(PortierError, match="does not answer"):
        worker.trace(1, b"echo", b"target")
    monkeypatch.undo()
    worker.start()
    configure(worker, bound())
    trace = worker.trace(1, b"echo", b"target")
    assert world.wire(1).sent.count(b"answer") == 1
    worker.untrace(trace)


# -- multicast


def test_groups_are_joined_and_left(world: World) -> None:
    """What the engine wants of multicast groups is done before its answer goes out, and shown; all of it ends
    with the worker."""
    worker = world.started()
    world.wire(1).arrive(b"join")
    wait_for(lambda: b"answer" in world.wire(1).sent, "an answer")
    (memberships,) = world.memberships
    assert memberships.groups == {(1, GROUP), (2, GROUP)}
    assert worker.wires().joined == Joined(2, 0, "")
    world.wire(1).arrive(b"leave")
    wait_for(lambda: memberships.groups == {(2, GROUP)}, "left")
    assert not memberships.closed
    assert worker.stop(PATIENCE)
    assert memberships.closed


def test_routers_are_advertised_until_the_worker_stops(world: World) -> None:
    """`multicast: router` is the worker's own doing: each port says it at the start, and takes it back at the
    end, while the engine's timers go on."""
    worker = world.worker()
    worker.start()
    link_local = bytes.fromhex("fe80") + bytes(13) + b"\1"
    ports = tuple(port(number)._replace(source=link_local) for number in (1, 2))
    what = Bound(group=Group(name="guests", multicast=Multicast.ROUTER), ports=ports)
    configure(worker, what)
    said = [mld.advertisement(MAC[number], link_local) for number in (1, 2)]
    wait_for(lambda: all(said[at] in world.wire(at + 1).sent for at in (0, 1)), "advertisements")
    world.wire(1).arrive(b"tick")
    wait_for(lambda: world.engine.ticks, "a tick")
    configure(worker, replace(what, ports=ports[:1]))
    assert world.wire(2).sent[-1] == mld.termination(MAC[2], link_local)
    assert worker.stop(PATIENCE)
    assert world.wire(1).sent[-1] == mld.termination(MAC[1], link_local)

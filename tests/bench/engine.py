"""Frames a second through the engines alone: no sockets, no kernel, no thread.

Cases: `always`; `known` (`resolve`, all hosts known); `cold` (`resolve`, each host asked for, found and
answered: two frames a host), of IPv6 or, with `--family 4`, of IPv4; `relay` (mode relay, 512 octets
to each host in turn, which is more flows than the engine keeps where there are 100,000); each with 10, 10,000
and 100,000 hosts.  Limits are raised so far that none bites.  What the engine says is checked while warming
up, so a fast wrong answer is an error and no number.

    python -m tests.bench.engine [--hosts N ...] [--seconds S] [--case NAME ...] [--family 4|6] [--profile]
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import random
import struct
import sys
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from portier.core.model import (
    Answer,
    Bound,
    Group,
    Limits,
    LoopProtection,
    Mode,
    Port,
    Role,
    Routes,
    Rule,
    Timers,
)
from portier.core.outcome import AddRoute, MoveRoute, Outcome, RouteResult, Verdict
from portier.core.relay import RelayEngine
from portier.core.route import RouteEngine
from portier.core.rules import RuleTable

UPSTREAM: Final = 11
DOWNSTREAM: Final = 12
UPSTREAM_MAC: Final = bytes.fromhex("02000000000b")
DOWNSTREAM_MAC: Final = bytes.fromhex("02000000000c")
ROUTER_MAC: Final = bytes.fromhex("020000000001")
HOST_MAC: Final = bytes.fromhex("020000000002")
UPSTREAM_SOURCE: Final = bytes.fromhex("fe80000000000000000000000000000b")
DOWNSTREAM_SOURCE: Final = bytes.fromhex("fe80000000000000000000000000000c")
ROUTER: Final = bytes.fromhex("fe800000000000000000000000000001")
PREFIX: Final = IPv6Network("2001:db8:7::/64")
PREFIX4: Final = IPv4Network("10.0.0.0/8")
UPSTREAM_SOURCE4: Final = bytes((10, 255, 0, 11))
ROUTER4: Final = bytes((192, 0, 2, 1))
REQUEST: Final = bytes.fromhex("08060001080006040001")
REPLY: Final = bytes.fromhex("08060001080006040002")
UNBOUNDED: Final = 10_000_000
LIMITS: Final = Limits(
    neighbors=UNBOUNDED,
    per_port=UNBOUNDED,
    per_host=UNBOUNDED,
    pending=UNBOUNDED,
    resolutions=UNBOUNDED,
    per_source=UNBOUNDED,
    route_changes=UNBOUNDED,
)


class Kernel:
    """A kernel that has no routes and knows no neighbors."""

    def route(self, address: bytes, table: int) -> int:
        """No route."""
        del address, table
        return 0

    def host_route(self, address: bytes, table: int) -> int:
        """No route."""
        del address, table
        return 0

    def neighbor(self, address: bytes, ports: Iterable[int]) -> int:
        """No neighbor."""
        del address, ports
        return 0


def checksum(source: bytes, destination: bytes, message: bytes) -> int:
    """The ICMPv6 checksum of `message`, whose own checksum field is zero (RFC 4443 section 2.3)."""
    data = source + destination + struct.pack("!IxxxB", len(message), 58) + message
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def frame(to_mac: bytes, from_mac: bytes, source: bytes, destination: bytes, message: bytes) -> bytes:
    """A whole frame, virtio-net header in front."""
    right = checksum(source, destination, message)
    return b"".join(
        (
            bytes(10),
            struct.pack("!6s6sH", to_mac, from_mac, 0x86DD),
            struct.pack("!IHBB16s16s", 6 << 28, len(message), 58, 255, source, destination),
            message[:2],
            right.to_bytes(2, "big"),
            message[4:],
        )
    )


def solicitation(target: bytes) -> bytes:
    """The upstream router's multicast solicitation."""
    group = bytes.fromhex("ff0200000000000000000001ff") + target[13:]
    message = struct.pack("!BBHI16sBB6s", 135, 0, 0, 0, target, 1, 1, ROUTER_MAC)
    return frame(b"\x33\x33" + group[12:], ROUTER_MAC, ROUTER, group, message)


def advertisement(target: bytes) -> bytes:
    """The downstream host's answer to Portier."""
    message = struct.pack("!BBHI16sBB6s", 136, 0, 0, 0x60000000, target, 2, 1, HOST_MAC)
    return frame(DOWNSTREAM_MAC, HOST_MAC, target, DOWNSTREAM_SOURCE, message)


def request(target: bytes) -> bytes:
    """The upstream router's broadcast request."""
    return b"".join((bytes(10), b"\xff" * 6, ROUTER_MAC, REQUEST, ROUTER_MAC, ROUTER4, bytes(6), target))


def reply(target: bytes) -> bytes:
    """The downstream host's reply to Portier."""
    ends = (DOWNSTREAM_MAC, HOST_MAC)
    return b"".join((bytes(10), *ends, REPLY, HOST_MAC, target, DOWNSTREAM_MAC, UPSTREAM_SOURCE4))


ASK: Final = {6: solicitation, 4: request}
TELL: Final = {6: advertisement, 4: reply}


def targets(count: int, family: int) -> list[bytes]:
    """`count` addresses of the prefix in an order that no cache likes."""
    network = PREFIX if family == 6 else PREFIX4
    first = int(network.network_address) + 0x1000
    found = [(first + i).to_bytes(network.max_prefixlen // 8, "big") for i in range(count)]
    random.Random(7).shuffle(found)
    return found


def engine(answer: Answer, *, routes: bool) -> RouteEngine:
    """An engine with one upstream, one downstream and one rule."""
    group = Group(
        name="bench",
        upstream=("up",),
        downstream=("down",),
        rules=(Rule(prefix=PREFIX, answer=answer), Rule(prefix=PREFIX4, answer=answer)),
        routes=Routes() if routes else None,
        limits=LIMITS,
        timers=Timers(reachable=300.0),
    )
    bound = Bound(
        group=group,
        ports=(
            Port(
                UPSTREAM,
                "up",
                Role.UPSTREAM,
                UPSTREAM_MAC,
                1500,
                UPSTREAM_SOURCE,
                source4=UPSTREAM_SOURCE4,
            ),
            Port(
                DOWNSTREAM,
                "down",
                Role.DOWNSTREAM,
                DOWNSTREAM_MAC,
                1500,
                DOWNSTREAM_SOURCE,
                prefixes=(PREFIX, PREFIX4),
                on_link=(PREFIX, PREFIX4),
            ),
        ),
        live=(PREFIX, PREFIX4),
    )
    made = RouteEngine(Kernel())
    made.configure(bound, RuleTable.compile(bound), time.monotonic())
    return made


def carry_out(made: RouteEngine, outcome: Outcome) -> list[tuple[int, bytes]]:
    """Everything an outcome and what follows from its effects would send."""
    sends: list[tuple[int, bytes]] = []
    waiting = [outcome]
    while waiting:
        current = waiting.pop()
        waiting.extend(
            made.settle(effect, RouteResult.ADDED)
            for effect in current.effects
            if isinstance(effect, AddRoute | MoveRoute)
        )
        sends.extend(current.sends)
    return sends


def is_answer(sends: list[tuple[int, bytes]], target: bytes) -> bool:
    """Whether exactly one frame goes out, an answer for `target` to the router."""
    if len(sends) != 1 or sends[0][0] != UPSTREAM:
        return False
    sent = sends[0][1]
    if len(target) == 4:
        return sent[22:32] == REPLY and sent[38:42] == target and sent[10:16] == ROUTER_MAC
    return sent[64] == 136 and sent[72:88] == target and sent[10:16] == ROUTER_MAC


def check(right: bool, what: str, outcome: Outcome) -> None:
    """Stop when the engine is wrong: its speed is of no interest then."""
    if not right:
        raise SystemExit(f"wrong: {what}: {outcome}")


def cold(count: int, family: int, *, routes: bool) -> tuple[RouteEngine, float]:
    """Ask for, find and answer `count` hosts.  The engine, and the seconds taken."""
    made = engine(Answer.RESOLVE, routes=routes)
    addresses = targets(count, family)
    asked = [ASK[family](target) for target in addresses]
    found = [TELL[family](target) for target in addresses]
    receive, clock = made.receive, time.monotonic
    started = time.perf_counter()
    for i, target in enumerate(addresses):
        now = clock()
        if now >= made.deadline:
            carry_out(made, made.tick(now))
        outcome = receive(UPSTREAM, asked[i], now)
        check(outcome.verdict == Verdict.RESOLVING, "cold solicitation", outcome)
        check(any(port == DOWNSTREAM for port, _ in carry_out(made, outcome)), "nobody was asked", outcome)
        outcome = receive(DOWNSTREAM, found[i], clock())
        check(is_answer(carry_out(made, outcome), target), "found, not answered", outcome)
    return made, time.perf_counter() - started


def rate(made: RouteEngine, addresses: list[bytes], seconds: float) -> float:
    """Answers a second to questions for `addresses`, over and over for `seconds`."""
    frames = [ASK[4 if len(target) == 4 else 6](target) for target in addresses]
    for asked, target in zip(frames[:1000], addresses, strict=False):
        outcome = made.receive(UPSTREAM, asked, time.monotonic())
        check(is_answer(carry_out(made, outcome), target), "not answered", outcome)
    receive, clock = made.receive, time.monotonic
    done = 0
    started = clock()
    end = started + seconds
    now = started
    while now < end:
        for asked in frames:
            now = clock()
            if now >= made.deadline:
                made.tick(now)
            receive(UPSTREAM, asked, now)
            done += 1
            if now >= end:
                break
    return done / (clock() - started)


def always(count: int, family: int, seconds: float) -> float:
    """Answers a second where every address is answered for."""
    return rate(engine(Answer.ALWAYS, routes=True), targets(count, family), seconds)


def relay(count: int, seconds: float) -> float:
    """Packets a second to `count` neighbors, one after the other, as a worker has them sent on."""
    made = RelayEngine(lambda: 0.0, {})
    group = Group(
        name="bench",
        mode=Mode.RELAY,
        loop_protection=LoopProtection.OFF,
        limits=LIMITS,
        timers=Timers(reachable=300.0),
    )
    ports = (
        Port(UPSTREAM, "up", Role.UPSTREAM, UPSTREAM_MAC, 1500, UPSTREAM_SOURCE, on_link=(PREFIX,)),
        Port(DOWNSTREAM, "down", Role.DOWNSTREAM, DOWNSTREAM_MAC, 1500, DOWNSTREAM_SOURCE),
    )
    made.configure(Bound(group=group, ports=ports, live=(PREFIX,)), RuleTable(()), time.monotonic())
    buffer = bytearray(65600)
    addresses = targets(count, 6)
    packets = []
    for target in addresses:
        outcome = made.receive(DOWNSTREAM, advertisement(target), time.monotonic())
        check(outcome.verdict == Verdict.HEARD, "advertisement", outcome)
        body = bytes(464)
        header = struct.pack(
            "!6s6sHIHBB16s16s", UPSTREAM_MAC, ROUTER_MAC, 0x86DD, 6 << 28, len(body), 17, 64, ROUTER, target
        )
        packets.append(bytes(10) + header + body)
        outcome = made.receive(UPSTREAM, packets[-1], time.monotonic())
        check(outcome.verdict == Verdict.RELAYED and len(outcome.sends) == 1, "packet", outcome)
    forward, receive, clock = made.forward, made.receive, time.monotonic
    done = 0
    started = clock()
    end = started + seconds
    now = started
    while now < end:
        for packet in packets:
            now = clock()
            length = len(packet)
            buffer[:length] = packet
            if not forward(UPSTREAM, buffer, length, now):
                receive(UPSTREAM, bytes(buffer[:length]), now)
            done += 1
            if now >= end:
                break
    return done / (clock() - started)


def main() -> int:
    """Run the cases and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--hosts", type=int, nargs="+", default=[10, 10_000, 100_000])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--case", nargs="+", choices=("always", "cold", "known", "relay"), default=None)
    parser.add_argument("--family", type=int, choices=(4, 6), default=6)
    parser.add_argument("--profile", action="store_true", help="show where the time of each case goes")
    given = parser.parse_args()
    cases = given.case or ["always", "cold", "known", "relay"]
    family = given.family

    def report(name: str, count: int, measure: Callable[[], float]) -> None:
        profiler = cProfile.Profile() if given.profile else None
        per_second = profiler.runcall(measure) if profiler else measure()
        print(f"{name:<14} {count:>7,} hosts {per_second:>10,.0f}/s {1e9 / per_second:>8,.0f} ns")
        if profiler:
            pstats.Stats(profiler, stream=sys.stdout).sort_stats("tottime").print_stats(25)
        sys.stdout.flush()

    for count in given.hosts:
        if "always" in cases:
            report("always", count, lambda count=count: always(count, family, given.seconds))  # type: ignore[misc]
        if "relay" in cases:
            report("relay", count, lambda count=count: relay(count, given.seconds))  # type: ignore[misc]
        for routes in (True, False):
            suffix = "" if routes else " no routes"
            if "cold" in cases:
                report(
                    "cold" + suffix,
                    count,
                    lambda count=count, routes=routes: count / cold(count, family, routes=routes)[1],  # type: ignore[misc]
                )
            if "known" in cases:
                made, _ = cold(count, family, routes=routes)
                addresses = targets(count, family)
                report(
                    "known" + suffix,
                    count,
                    lambda made=made, addresses=addresses: rate(made, addresses, given.seconds),  # type: ignore[misc]
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())

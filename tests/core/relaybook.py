"""A group in mode relay on the bench: frames go in, what comes out is kept as it is.

The ports are those of `playbook`: `U` upstream (1), `D` and `E` downstream (2, 3).  Host number N has the
link-layer address `mac(N)` and, unless a test says otherwise, the address `::N`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scapy.layers.inet6 import UDP, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from portier.core import ndp
from portier.core.loops import Memory
from portier.core.model import Bound, EventKind, Group, HostRoute, LoopProtection, Port
from portier.core.outcome import AddRoute, MoveRoute, Outcome, RemoveRoute, RouteResult, Verdict
from portier.core.relay import RelayEngine
from portier.core.rules import RuleTable
from tests.core.playbook import LAN, NAMES, D, E, U, ip, mac, port

VNET = bytes(10)


@dataclass(frozen=True)
class Out:
    """A frame that went out."""

    port: int
    frame: bytes

    @property
    def to(self) -> bytes:
        """Its Ethernet destination."""
        return self.frame[10:16]

    @property
    def by(self) -> bytes:
        """Its Ethernet source."""
        return self.frame[16:22]

    @property
    def packet(self) -> bytes:
        """The IPv6 packet, from its first octet."""
        return self.frame[24:]

    @property
    def message(self) -> ndp.Message:
        """The Neighbor Discovery message in it."""
        message = ndp.parse(self.frame)
        assert isinstance(message, ndp.Message), message
        return message

    def __repr__(self) -> str:
        return f"{NAMES[self.port]}: {Ether(self.frame[10:]).summary()}"


class RelayBook:
    """An engine with the ports U, D and E.  Loop protection is off unless a test is about it, so that the
    ports take part at once."""

    def __init__(self, *, ports: tuple[Port, ...] = (), random: float = 0.5, **group: Any) -> None:
        self.chance = random
        self.heard: Memory = {}
        self.engine = RelayEngine(lambda: self.chance, self.heard)
        self.now = 1000.0
        self.sent: list[Out] = []
        self.events: list[tuple[EventKind, str]] = []
        self.host_routes: list[HostRoute] = []
        self.result = RouteResult.ADDED
        self.group = Group(
            name="segments",
            **{"upstream": ("up0",), "loop_protection": LoopProtection.OFF, **group},
        )
        on_link: dict[str, Any] = {"prefixes": (LAN,), "on_link": (LAN,)}
        self.ports = ports or (port(U, **on_link), port(D), port(E))
        self.configure()

    def configure(self, **changes: Any) -> None:
        """Take over ports, or another group."""
        self.sent, self.events = [], []
        self.ports = changes.pop("ports", self.ports)
        self.group = changes.pop("group", self.group)
        bound = Bound(group=self.group, ports=self.ports, live=(LAN,), **changes)
        self._carry_out(self.engine.configure(bound, RuleTable(()), self.now))

    def crash(self) -> None:
        """The worker is restarted: another engine, which knows what was heard on ports and nothing else."""
        self.engine = RelayEngine(lambda: self.chance, self.heard)
        self.configure()

    def receive(self, ifindex: int, frame: bytes) -> Verdict:
        """A frame arrives, or the host's own stack sends it; `sent` and `events` are what came of it."""
        self.sent, self.events = [], []
        outcome = self.engine.receive(ifindex, frame, self.now)
        self._carry_out(outcome)
        while self.engine.deadline < 0:
            self._carry_out(self.engine.tick(self.now))
        return outcome.verdict

    def put(self, ifindex: int, host: int, packet: Packet | bytes, *, to: bytes = b"") -> Verdict:
        """Host `host` sends an IPv6 packet: to the port, or to the group's Ethernet address."""
        octets = bytes(packet)
        if not to:
            to = b"\x33\x33" + octets[36:40] if octets[24] == 0xFF else self.mac_of(ifindex)
        return self.receive(ifindex, VNET + to + mac(host) + b"\x86\xdd" + octets)

    def forward(self, ifindex: int, host: int, packet: Packet | bytes) -> Out | None:
        """The same by the fast path: what went out, None where it does not know the flow."""
        frame = VNET + self.mac_of(ifindex) + mac(host) + b"\x86\xdd" + bytes(packet)
        buffer = bytearray(65600)
        buffer[: len(frame)] = frame
        out = self.engine.forward(ifindex, buffer, len(frame), self.now)
        return Out(out, bytes(buffer[: len(frame)])) if out else None

    def udp(self, ifindex: int, host: int, target: str, *, size: int = 10, **how: Any) -> Verdict:
        """Host `host` sends a datagram."""
        return self.put(ifindex, host, datagram(how.pop("source", f"::{host:x}"), target, size, **how))

    def ns(self, ifindex: int, host: int, target: str, *, unicast: bool = False, source: str = "") -> Verdict:
        """Host `host` solicits, or probes by unicast."""
        frame = ndp.solicitation(
            mac(host), ip(source or f"::{host:x}"), ip(target), self.mac_of(ifindex) if unicast else b""
        )
        return self.receive(ifindex, frame)

    def na(self, ifindex: int, host: int, to: str = "", *, flags: str = "SO", **how: Any) -> Verdict:
        """Host `host` advertises `target` (its own address) to address `to`, or to all."""
        bits = sum({"R": ndp.R_FLAG, "S": ndp.S_FLAG, "O": ndp.O_FLAG}[flag] for flag in flags)
        target = ip(how.get("target", f"::{host:x}"))
        source = ip(how["source"]) if "source" in how else target
        destination, to_mac = (ip(to), self.mac_of(ifindex)) if to else (ndp.ALL_NODES, ndp.ALL_NODES_MAC)
        said = how.get("says", mac(host))
        frame = ndp.advertisement(to_mac, mac(host), source, destination, target, bits, said)
        return self.receive(ifindex, frame)

    def dad(self, ifindex: int, host: int, target: str, nonce: bytes = b"") -> Verdict:
        """Host `host` probes for a duplicate."""
        return self.receive(ifindex, ndp.dad_probe(mac(host), ip(target), nonce))

    def learn(self, ifindex: int, host: int, address: str = "") -> None:
        """Make a host REACHABLE: it answers the proxy's own solicitation."""
        self.na(ifindex, host, flags="O", target=address or f"::{host:x}")
        self.na(ifindex, host, f"fe80::{ifindex}", target=address or f"::{host:x}")
        assert self.state(ifindex, address or f"::{host:x}") == "reachable"

    def pass_time(self, seconds: float) -> None:
        """Let time pass, doing what is due when it is due; `sent` and `events` are all of it."""
        self.sent, self.events = [], []
        end = self.now + seconds
        while self.engine.deadline <= end:
            self.now = max(self.now, self.engine.deadline)
            self._carry_out(self.engine.tick(self.now))
        self.now = end

    def state(self, ifindex: int, address: str) -> str | None:
        """The state of an address in the cache of a port."""
        for info in self.engine.neighbors(self.now):
            if info.address == ip(address) and info.port == NAMES[ifindex]:
                return info.state
        return None

    def mac_known(self, ifindex: int, address: str) -> bytes | None:
        """The link-layer address of an entry."""
        for info in self.engine.neighbors(self.now):
            if info.address == ip(address) and info.port == NAMES[ifindex]:
                return info.mac
        return None

    def part(self, ifindex: int) -> str:
        """Which part a port takes."""
        return next(
            found.service.value for found in self.engine.standings(self.now) if found.ifindex == ifindex
        )

    def route(self, address: str) -> int | None:
        """The port by which the kernel has a host route."""
        found = [route.ifindex for route in self.host_routes if route.address == ip(address)]
        assert len(found) <= 1
        return found[0] if found else None

    def on(self, ifindex: int) -> list[Out]:
        """What went out by a port."""
        return [out for out in self.sent if out.port == ifindex]

    def where(self) -> list[int]:
        """The ports by which something went out."""
        return [out.port for out in self.sent]

    def kinds(self) -> set[EventKind]:
        return {kind for kind, _ in self.events}

    def counts(self, ifindex: int) -> dict[str, int]:
        return self.engine.counters()[NAMES[ifindex]]

    def mac_of(self, ifindex: int) -> bytes:
        found = next(this for this in self.ports if this.ifindex == ifindex).mac
        assert found is not None
        return found

    def _carry_out(self, outcome: Outcome) -> None:
        assert not (outcome.effects and outcome.sends), "a refused route would hold back what is relayed"
        for effect in outcome.effects:
            if isinstance(effect, AddRoute | MoveRoute):
                if isinstance(effect, MoveRoute):
                    self.host_routes.remove(effect.old)
                if self.result is RouteResult.ADDED and effect.route not in self.host_routes:
                    self.host_routes.append(effect.route)
                self._carry_out(self.engine.settle(effect, self.result))
            elif isinstance(effect, RemoveRoute) and effect.route in self.host_routes:
                self.host_routes.remove(effect.route)
        self.sent += [Out(ifindex, frame) for ifindex, frame in outcome.sends]
        self.events += [(event.kind, event.text) for event in outcome.events]


def advertised(
    router: int = 1,
    *,
    flags: int = 0,
    lifetime: int = 1800,
    to: str = "",
    to_mac: bytes = ndp.ALL_NODES_MAC,
    hop_limit: int = 255,
    prefix: tuple[str, int] | None = None,
) -> bytes:
    """A Router Advertisement of router `router`, with its source link-layer option, and that of an on-link
    prefix (/64, seconds)."""
    body = b"\x86\0\0\0\x40" + bytes((flags,)) + lifetime.to_bytes(2, "big") + bytes(8)
    body += b"\x01\x01" + mac(router)
    if prefix is not None:
        seconds = prefix[1].to_bytes(4, "big")
        body += b"\x03\x04\x40\xc0" + seconds + seconds + bytes(4) + ip(prefix[0])
    whole = VNET + to_mac + mac(router) + b"\x86\xdd\x60\0\0\0" + len(body).to_bytes(2, "big")
    whole += bytes((58, hop_limit)) + ip(f"fe80::1:{router:x}") + (ip(to) if to else ndp.ALL_NODES) + body
    total = int.from_bytes(whole[ndp.IPV6 + 8 :], "big") + len(body) + 58
    at = ndp.ICMPV6 + 2
    return whole[:at] + (-total % 0xFFFF).to_bytes(2, "big") + whole[at + 2 :]


def datagram(source: str, target: str, size: int = 10, *, hlim: int = 64) -> bytes:
    """A UDP packet with `size` octets of payload."""
    return bytes(
        IPv6(src=_written(source), dst=_written(target), hlim=hlim) / UDP(sport=1, dport=2) / (b"x" * size)
    )


def _written(text: str) -> str:
    """An address as scapy wants it; short forms like `::5` stand in the LAN."""
    return "2001:db8:7" + text if text.startswith("::") and text != "::" else text


__all__ = [
    "LAN",
    "NAMES",
    "VNET",
    "D",
    "E",
    "Out",
    "RelayBook",
    "U",
    "advertised",
    "datagram",
    "ip",
    "mac",
    "port",
]

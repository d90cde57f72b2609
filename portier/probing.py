"""`portier doctor --probe`: follows one solicitation, and then packets, through the whole proxy.

The group's worker is handed a solicitation as the router would send it, as if it had come in by the upstream
port, and does all that it would do: ask behind, set the host route, answer on the wire.  What that came to is
told hop by hop, and the first that fails is the last that is tried.

In mode route the solicitation does not say where its sender is, so nobody learns from it; hosts that it is
relayed to have to know it.  It is not counted, and is no sign that somebody asks, by which doctor would go.
Its answer goes to the router, which did not ask: RFC 4861 section 7.2.5 has it ignore that where it knows
nothing of the host, and else take it for what it is, the proxy's word that it leads there.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Generator, Iterator, Mapping
from ipaddress import ip_address
from typing import Any, Final

from portier.core.engine import Explanation, NeighborInfo, Service, link_local, mac_text
from portier.core.model import Bound, Mode, Port, Role
from portier.core.outcome import Verdict
from portier.core.plan import GroupReport
from portier.core.probe import Done, Hop, State, Trace, solicitation
from portier.errors import KernelError, PortierError
from portier.runtime.supervisor import Supervisor
from portier.system import probe as kernel

_PATIENCE: Final = 8.0  # seconds that a host has to answer, whatever its timers say
_GRACE: Final = 0.5  # seconds on top of what the engine waits
_STEP: Final = 0.02
_PING: Final = 1.5
_PINGS: Final = 2  # the first may be what makes the kernel look for the host
_MADE_UP: Final = {4: bytes((169, 254, 43, 89)), 16: b"\xfe\x80" + bytes(10) + b"\x43\x89\0\1"}
_MADE_UP_MAC: Final = bytes.fromhex("024389000001")  # locally administered

# Which hop a verdict stops at.
_STOPS: Final[Mapping[Verdict, str]] = {
    **dict.fromkeys(
        (
            Verdict.NO_RULE,
            Verdict.DENIED,
            Verdict.WRONG_PORT,
            Verdict.ASKER_REFUSED,
            Verdict.ISOLATED,
            Verdict.LINK_LOCAL,
            Verdict.BROADCAST,
            Verdict.NOT_IPV6,
            Verdict.SAME_PORT,
            Verdict.NO_ROUTE,
        ),
        "rule",
    ),
    **dict.fromkeys(
        (
            Verdict.NOWHERE,
            Verdict.PENDING_FULL,
            Verdict.PORT_LIMIT,
            Verdict.SOURCE_LIMIT,
            Verdict.LOOP,
        ),
        "question",
    ),
    Verdict.NOBODY: "host",
    Verdict.ROUTE_LIMIT: "route",
    Verdict.ROUTE_FAILED: "route",
    Verdict.NO_SOURCE: "advertisement",
}
_GOES_ON: Final = frozenset({Verdict.ANSWERED, Verdict.RESOLVING, Verdict.RELAYED})
# The kernel answers for itself.
_KERNELS: Final = frozenset({Verdict.OWN_ADDRESS, Verdict.KERNEL})


class Probe:
    """One probe: for `target` (packed), in a group that stands as in `of` and works with `bound`, as if it
    were asked for on the interface ``on``, by default on the upstream."""

    def __init__(
        self, supervisor: Supervisor, of: GroupReport, bound: Bound | None, target: bytes, on: str | None
    ) -> None:
        self._supervisor = supervisor
        self._of = of
        self._name = of.group.name
        self._relays = of.group.mode is Mode.RELAY
        self._ports = {port.name: port for port in (bound.ports if bound else ())}
        self._names = {port.ifindex: port.name for port in self._ports.values()}
        self._target = target
        self._text = str(ip_address(target))
        self._on = on
        self._source: bytes | None = None  # of who asks, where he can be written to from behind
        self._home: Port | None = None
        self._port: Port | None = None

    def run(self) -> dict[str, Any]:
        """Do it, and tell how it went."""
        hops: list[Hop] = []
        with contextlib.closing(self._hops()) as way:
            for hop in way:
                hops.append(hop)
                if hop.state is State.FAILED:
                    break
        return {
            "version": 1,
            "address": self._text,
            "group": self._name,
            "mode": self._of.group.mode.value,
            "port": self._port.name if self._port else None,
            "home": self._home.name if self._home else None,
            "router": str(ip_address(self._source)) if self._source else None,
            "hops": [hop._asdict() for hop in hops],
        }

    def _hops(self) -> Generator[Hop, None, None]:
        port = self._find_port()
        if isinstance(port, Hop):
            yield port
            return
        self._port = port
        part = "the upstream" if port.role is Role.UPSTREAM else "a downstream port"
        yield Hop("port", State.OK, f"{port.name} is {part} of group {self._name}")
        if self._relays and len(self._target) == 4:
            yield Hop("rule", State.FAILED, "mode relay relays IPv6 alone", "in that group: mode: route")
            return
        source, mac, who = self._asker(port)
        frame = solicitation(mac, source, self._target, secrets.token_bytes(6), named=self._relays)
        try:
            said = self._expected(port)
            before = self._known()
            with self._supervisor.traced(self._name, port.ifindex, frame, self._target) as trace:
                yield from self._judged(trace, said, who)
                if trace.verdict in _KERNELS:
                    return
                self._wait(trace, port)
                yield from self._answered(trace, port, before)
        except PortierError as error:
            yield Hop("port", State.FAILED, str(error), "portier status")
            return
        if not self._relays:
            yield from self._forwarded(port)
        yield from self._pinged(port)

    # -- who asks, and where -------------------------------------------------------------------------

    def _find_port(self) -> Port | Hop:
        wanted = self._on or self._of.active
        for report in self._of.ports:
            if report.name != wanted:
                continue
            if report.state != "active":
                return Hop(
                    "port", State.FAILED, f"{wanted} is {report.state}: {report.reason}", "portier status"
                )
            port = self._ports.get(report.name)
            if port is None:
                return Hop("port", State.FAILED, f"{wanted} is not open", "portier status")
            return self._serving(port)
        if self._on is not None:
            text = f"{self._on} is no port of group {self._name}"
        elif self._of.group.upstream:
            candidates = [
                f"{report.name}: {report.state}" + (f", {report.reason}" if report.reason else "")
                for report in self._of.ports
                if report.role is Role.UPSTREAM
            ]
            text = f"no upstream of group {self._name} is active ({'; '.join(candidates)})"
        else:
            text = f"group {self._name} has no upstream: name a port by --on"
        return Hop("port", State.FAILED, text, "portier status")

    def _serving(self, port: Port) -> Port | Hop:
        """In mode relay a port may be open and take no part."""
        worker = self._supervisor.status().get(self._name)
        for standing in worker.standings if worker else ():
            if standing.ifindex == port.ifindex and standing.service is not Service.FORWARDING:
                text = f"{port.name} takes no part: {standing.service}, {standing.reason}"
                return Hop("port", State.FAILED, text, f"portier lift {port.name}")
        return port

    def _asker(self, port: Port) -> tuple[bytes, bytes, str]:
        """Address and link-layer address of who asks, and who that is in words."""
        length = len(self._target)
        try:
            router = kernel.router(port.ifindex, length)
        except KernelError:
            router = None
        if router is not None and not link_local(router.address):
            self._source = router.address
        if router is not None and router.mac:
            return router.address, router.mac, f"{ip_address(router.address)}, the default router"
        for host in self._supervisor.neighbors().get(self._name, ()) if router is None else ():
            other = host.address != self._target and not link_local(host.address)
            if other and host.port == port.name and len(host.address) == length:
                self._source = host.address
                return host.address, host.mac, f"{ip_address(host.address)}, a host there"
        made_up = _MADE_UP[length]
        return made_up, _MADE_UP_MAC, f"{ip_address(made_up)}, a made-up neighbor"

    # -- the solicitation ----------------------------------------------------------------------------

    def _judged(self, trace: Trace, said: Explanation, who: str) -> Iterator[Hop]:
        """What the engine made of the solicitation."""
        verdict = trace.verdict
        stop = _STOPS.get(verdict, "" if verdict in _GOES_ON | _KERNELS else "solicitation")
        asked = "an ARP request" if len(self._target) == 4 else "a solicitation"
        if stop == "solicitation":
            text = f"{asked} from {who}, is not taken: {verdict.label}"
            yield Hop("solicitation", State.FAILED, text, f"portier explain {self._text}")
            return
        yield Hop("solicitation", State.OK, f"{asked} from {who}, is valid")
        words = "; ".join(said.steps[1:-1])
        if stop == "rule":
            yield Hop("rule", State.FAILED, f"{words} ({verdict.label})", self._rule_remedy(verdict))
            return
        yield Hop("rule", State.OK, "mode relay has no rules" if self._relays else words)
        if verdict in _KERNELS:
            yield Hop("advertisement", State.UNKNOWN, "the kernel answers, not Portier")
        elif stop:
            yield Hop(stop, State.FAILED, f"{verdict.label}: {words}", f"portier explain {self._text}")

    def _rule_remedy(self, verdict: Verdict) -> str:
        if verdict is Verdict.NO_RULE:
            return f"add to prefixes of group {self._name}: - {self._text}/{8 * len(self._target)}"
        elsewhere = [name for name in self._ports if self._port is None or name != self._port.name]
        if verdict is Verdict.SAME_PORT and elsewhere:
            return f"portier doctor --probe {self._text} --on {elsewhere[0]}"
        return f"portier explain {self._text}"

    def _expected(self, port: Port) -> Explanation:
        """How it would be decided; once the engine may ask again, where it did lately and nobody answered."""
        deadline = time.monotonic() + min(_PATIENCE, self._of.group.timers.negative + _GRACE)
        while True:
            said = self._supervisor.explain(self._name, self._target, port.ifindex)
            if said.verdict is not Verdict.NOBODY or time.monotonic() >= deadline:
                return said
            time.sleep(_STEP)

    def _known(self) -> NeighborInfo | None:
        hosts = self._supervisor.neighbors().get(self._name, ())
        return next((host for host in hosts if host.address == self._target), None)

    def _answers(self, trace: Trace, port: Port) -> list[Done]:
        return [done for done in trace.sends("answer") if done.ifindex == port.ifindex]

    def _wait(self, trace: Trace, port: Port) -> None:
        """Wait until the host has answered and was answered for, for as long as the engine asks."""
        timers = self._of.group.timers
        deadline = trace.began + min(_PATIENCE, timers.retransmit * timers.retries + _GRACE)
        while time.monotonic() < deadline:
            known = self._known()
            if self._answers(trace, port) and (
                self._relays
                or (known is not None and known.state == "reachable")
                or (known is None and not trace.sends("question"))
            ):
                break
            time.sleep(_STEP)

    def _answered(self, trace: Trace, port: Port, before: NeighborInfo | None) -> Iterator[Hop]:
        """What was asked, who answered, and what was told on."""
        known = self._known()
        answers = self._answers(trace, port)
        asked = [done for done in trace.sends("question") if done.ifindex != port.ifindex]
        names = list(dict.fromkeys(self._names.get(done.ifindex, "?") for done in asked))
        if before is not None:
            where = f"known on {before.port} with {mac_text(before.mac)}, heard {before.age:.0f} s ago"
            yield Hop("question", State.OK, f"{where}; asked again by unicast" if asked else where)
        elif asked:
            times = len(asked) // len(names)
            text = f"asked for on {', '.join(names)}" + (f", {times} times" if times > 1 else "")
            broken = next((done for done in asked if done.error), None)
            if broken is not None:
                text = f"{self._names.get(broken.ifindex)}: the solicitation cannot be sent: {broken.error}"
                yield Hop("question", State.FAILED, text, f"ip link show {self._names.get(broken.ifindex)}")
                return
            yield Hop("question", State.OK, text)
        else:
            yield Hop("question", State.OK, "nobody has to be asked")
        yield self._host(known, answers, names, before, trace)
        if known is not None:
            self._home = self._ports.get(known.port)
        downstream = self._home is not None and self._home.role is Role.DOWNSTREAM
        if known is not None and downstream and not self._relays:
            yield from self._routed(known)
        yield self._told(answers, port, trace)

    def _host(
        self,
        known: NeighborInfo | None,
        answers: list[Done],
        asked: list[str],
        before: NeighborInfo | None,
        trace: Trace,
    ) -> Hop:
        on = before.port if before is not None else ", ".join(asked)
        waited = f"within {time.monotonic() - trace.began:.1f} s"
        fact = "is the address on the host, is the host up? on the host: ip addr show"
        if known is not None and self._port is not None and known.port == self._port.name:
            text = f"is on {known.port} itself, with {mac_text(known.mac)}: there it answers for itself"
            return Hop("host", State.FAILED, text, f"ip neigh show {self._text} dev {known.port}")
        if known is not None and (known.state == "reachable" or self._relays):
            return Hop("host", State.OK, f"is on {known.port} with {mac_text(known.mac)}")
        if known is not None or before is not None:
            return Hop("host", State.FAILED, f"was on {on} and does not answer {waited}", fact)
        if self._relays and answers:
            return Hop("host", State.OK, "its answer was relayed")
        if not asked:
            return Hop("host", State.UNKNOWN, "answered for without a look whether it is there")
        return Hop("host", State.FAILED, f"nobody answers on {on} {waited}", fact)

    def _routed(self, known: NeighborInfo) -> Iterator[Hop]:
        if known.route == "yes":
            yield Hop("route", State.OK, f"host route by {known.port}")
        elif known.route == "foreign":
            yield Hop("route", State.OK, "somebody else's host route is there and is left alone")
        elif known.route == "-":
            yield Hop("route", State.UNKNOWN, "none is wanted")
        else:
            show = f"ip -{6 if len(self._target) == 16 else 4} route show {self._text}"
            yield Hop(
                "route", State.FAILED, f"the host route by {known.port} is not there: {known.route}", show
            )

    def _told(self, answers: list[Done], port: Port, trace: Trace) -> Hop:
        if not answers:
            return Hop("advertisement", State.FAILED, f"none left by {port.name}", "portier watch --packets")
        first = answers[0]
        if first.error:
            text = f"cannot be sent by {port.name}: {first.error}"
            return Hop("advertisement", State.FAILED, text, "nft list ruleset # a chain on egress?")
        to = mac_text(first.frame[10:16])
        after = (first.at - trace.began) * 1000
        return Hop("advertisement", State.OK, f"left by {port.name} after {after:.1f} ms, to {to}")

    # -- packets -------------------------------------------------------------------------------------

    def _forwarded(self, port: Port) -> Iterator[Hop]:
        """What the kernel would do with packets from the router's side, and with those back."""
        length = len(self._target)
        if self._source is None and port.role is Role.DOWNSTREAM:
            yield Hop(
                "forwarding", State.UNKNOWN, f"no host is known on {port.name} that might send a packet"
            )
            return
        if any(self._target in this.addresses for this in self._ports.values()):
            yield Hop("forwarding", State.OK, "it is an address of this host itself")
            return
        there = kernel.way(self._source, self._target, port.ifindex)
        home = self._home or next((p for p in self._ports.values() if p.ifindex == there.ifindex), None)
        for name in dict.fromkeys((port.name, home.name if home else port.name)):
            if command := kernel.forwards(name, length):
                text = f"the kernel does not forward what comes in by {name}"
                yield Hop("forwarding", State.FAILED, text, command)
                return
        if there.why or (home is not None and there.ifindex != home.ifindex):
            by = there.why or f"it would leave by {kernel.name_of(there.ifindex)}"
            text = f"a packet for {self._text} that comes in by {port.name} goes astray: {by}"
            yield Hop("forwarding", State.FAILED, text, there.asked)
            return
        self._home = home
        if home is None:
            where = kernel.name_of(there.ifindex)
            yield Hop("forwarding", State.OK, f"by {where}, which is no port of the group")
            return
        yield Hop("forwarding", State.OK, f"a packet that comes in by {port.name} leaves by {home.name}")
        back = kernel.way(self._target, self._source or kernel.OUTSIDE[length], home.ifindex)
        if back.why or back.ifindex != port.ifindex:
            by = back.why or f"it would leave by {kernel.name_of(back.ifindex)}"
            yield Hop("way-back", State.FAILED, f"its answer goes astray: {by}", back.asked)
            return
        yield Hop("way-back", State.OK, f"its answer leaves by {port.name}")

    def _pinged(self, port: Port) -> Iterator[Hop]:
        """Whether the host answers a ping of ours, and one that looks as if the router had sent it."""
        length = len(self._target)
        own = next((address for address in port.addresses if len(address) == length), None)
        by = f" from {ip_address(own)}" if own is not None else ""
        why = ""
        for _ in range(_PINGS):
            if not (why := kernel.ping(self._target, own, _PING)):
                break
        if why:
            text = f"a ping{by} fails: {why}; the host is there, and may drop it itself"
            here = ip_address(own) if own is not None else "here"
            do = f"on the host: its firewall (ICMP echo), and its route to {here}"
            yield Hop("ping", State.FAILED, text, do)
            return
        yield Hop("ping", State.OK, f"the host answers a ping{by}")
        known, home = self._known(), self._home
        if (
            home is None
            or home.role is Role.UPSTREAM
            or home.mac is None
            or known is None
            or self._source is None
        ):
            what = "a global address of who asks" if self._source is None else "the host's place"
            yield Hop("answer", State.UNKNOWN, f"no ping can be made as from there: {what} is not known")
            return
        router = ip_address(self._source)
        host = (home.ifindex, home.mac, known.mac)
        passed = kernel.ping_as(self._source, self._target, host, port.ifindex, _PING)
        if passed.left:
            text = f"a ping as from {router} is answered, and the answer leaves by {port.name}"
            yield Hop("answer", State.OK, text)
        elif passed.answered:
            text = f"the host answers a ping as from {router}, and the answer does not leave by {port.name}"
            yield Hop("answer", State.FAILED, text, "portier doctor")
        else:
            via = ip_address(home.source) if home.source is not None and length == 16 else "the proxy"
            text = f"the host answers a ping from here, and none as from {router}"
            yield Hop(
                "answer", State.FAILED, text, f"on the host: its firewall, and its default route via {via}"
            )

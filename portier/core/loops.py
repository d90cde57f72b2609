"""Loop protection for mode `relay`: which ports take part, and since when (RFC 4389 sections 4.1.3.3 and 6).

A `Gate` is a port as loop protection sees it; the `Guard` has those of a group.  A downstream port waits
until two Router Advertisements with the P bit were sent on it; a port that hears one which should not be
there is held down.  Where no router advertises itself, forwarding starts without; a loop is told by multicast
packets that come back then (`Echoes`).

What must outlive a reload, and a port that goes and comes back, is what was heard on it: that is remembered
by interface index and link-layer address, and the state follows from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from portier.core import ndp, rewrite
from portier.core.engine import Service, Standing, mac_text, text
from portier.core.model import Event, EventKind, Group, LoopProtection, Port, Role
from portier.core.ndp import Message
from portier.core.outcome import Verdict

# RFC 4861 section 10: RTR_SOLICITATION_INTERVAL, MAX_RTR_SOLICITATIONS.
_SOLICITATION_INTERVAL: Final = 4.0
_SOLICITATIONS: Final = 3
# So long after the first solicitation a link without Router Advertisement has no router.
_NO_ROUTER: Final = _SOLICITATION_INTERVAL * _SOLICITATIONS
# RFC 4389 section 6; RFC 4861 section 10: MIN_DELAY_BETWEEN_RAS, MAX_RA_DELAY_TIME.
_SENT_BEFORE_FORWARDING: Final = 2
_REPEAT: Final = 3.0
_FIRST_DELAY: Final = 0.5
# Two proxies that sent their first one at the same moment hear each other's for no longer than this.
_TIE: Final = 1.0
# Routers whose advertisements are held for a port that waits.
_ROUTERS: Final = 8

# A loop is believed in when so many packets came back, no further apart than this.
_SIGHTINGS: Final = 3
_SIGHTING_GAP: Final = 10.0
# When it is the other proxy's turn to give way, it has so long, and so many: it may have seen fewer so far.
_PATIENCE: Final = 5.0
_MANY_SIGHTINGS: Final = 3 * _SIGHTINGS

# So long after a packet of our own that was to find out who brings packets back comes the next.
_TRIAL_GAP: Final = 1.0

_ECHOES: Final = 8192
# What comes back later than this was perhaps said again by another host.
_PROMPT: Final = 0.5


class Offence(NamedTuple):
    """Something heard on a port that closes it: when, from whom, and what it was in words."""

    at: float
    address: bytes
    mac: bytes
    what: str


@dataclass(slots=True)
class Heard:
    """What was heard on a port last: an advertisement with the P bit, any at all, a packet that came back."""

    proxied: Offence | None = None
    advertised: Offence | None = None
    looped: Offence | None = None

    def latest(self) -> float:
        """When the last of it was."""
        times = [heard.at for heard in (self.proxied, self.advertised, self.looped) if heard is not None]
        return max(times, default=-math.inf)


Memory = dict[tuple[int, bytes], Heard]
"""What was heard on ports, by interface index and link-layer address."""


class Gate:
    """A port as loop protection sees it.

    ``sent`` counts the P-bit advertisements sent on it, ``first`` is when the first one was, ``held`` are the
    advertisements to send, by router; ``due`` is when the gate needs attention; ``seen_first`` and
    ``seen_last`` are when packets of the proxy's own came back on it.
    """

    __slots__ = (
        "due",
        "first",
        "held",
        "ifindex",
        "mac",
        "name",
        "offence",
        "reason",
        "seen_first",
        "seen_last",
        "sent",
        "state",
        "tie",
        "upstream",
    )

    def __init__(self, port: Port) -> None:
        self.ifindex = port.ifindex
        self.name = port.name
        self.mac = port.mac or b""
        self.upstream = port.role is Role.UPSTREAM
        self.state = Service.WAITING
        self.reason = ""
        self.offence: Offence | None = None
        self.seen_first = self.seen_last = -math.inf
        self.restart()

    def restart(self) -> None:
        """Nothing was sent on this port yet, and nothing is to be."""
        self.due = math.inf
        self.sent = 0
        self.first = -math.inf
        self.tie = False
        self.held: dict[bytes, tuple[bytes, Message]] = {}

    @property
    def open(self) -> bool:
        """Whether the port takes part."""
        return self.state is Service.FORWARDING

    @property
    def held_down(self) -> bool:
        """Whether something was heard on the port that closed it."""
        return self.state is Service.HOLD_DOWN

    @property
    def why(self) -> str:
        """Why the port is in its state, in words."""
        if self.state is Service.WAITING:
            return f"{self.sent} of {_SENT_BEFORE_FORWARDING} Router Advertisements relayed"
        return self.reason


class Guard:
    """The gates of one group.

    `random` gives numbers from 0 to 1; `send` takes frames to be sent on a port, `say` those of the proxy
    itself, with the time, `tell` events, and `changed` is called when a port starts or ceases to
    take part.  `heard` is kept up to date, and may be given to the next guard of the group.
    """

    def __init__(
        self,
        random: Callable[[], float],
        send: Callable[[int, bytes], None],
        say: Callable[[int, bytes, float], None],
        tell: Callable[[Event], None],
        changed: Callable[[], None],
        heard: Memory,
    ) -> None:
        self.deadline = math.inf
        self.gates: dict[int, Gate] = {}
        self._random = random
        self._send = send
        self._say = say
        self._tell = tell
        self._changed = changed
        self._policy = LoopProtection.STRICT
        self._hold_down = 0.0
        self._group = ""
        self._alone = False
        self._uplink: Gate | None = None
        self._heard = heard
        # The search for a router: solicitations sent, when the next one is due, and when it ends.
        self._asked = 0
        self._ask_at = math.inf
        self._seek_until = math.inf
        # Packets that came back, when the last one did, and when one of our own was last sent to see who
        # brings them.
        self._sightings = 0
        self._seen = -math.inf
        self._trial = -math.inf

    # -- configuration -----------------------------------------------------------------------------

    def configure(self, group: Group, ports: Iterable[Port], now: float) -> None:
        """Take over the ports; those that stay what they were keep their state."""
        self._policy = group.loop_protection
        self._hold_down = group.timers.hold_down
        self._group = group.name
        self._alone = not group.upstream
        for key, heard in list(self._heard.items()):
            if now >= heard.latest() + self._hold_down:
                del self._heard[key]
        before = self.gates
        self.gates = {}
        for port in ports:
            gate = before.get(port.ifindex)
            if gate is None or gate.mac != port.mac or gate.upstream != (port.role is Role.UPSTREAM):
                gate = Gate(port)
            gate.name = port.name
            self.gates[port.ifindex] = gate
        uplink = next((gate for gate in self.gates.values() if gate.upstream), None)
        new_link = uplink is not self._uplink
        self._uplink = uplink
        for gate in self.gates.values():
            if new_link and gate.state is not Service.HOLD_DOWN:
                # Another link joins: whether there is a loop by way of it is yet to be seen.
                gate.restart()
                gate.state = Service.WAITING
            self._judge(gate, now)
        if new_link:
            self._stop_seeking()
        self._seek(now, fresh=new_link and uplink is not None)
        self._changed()

    def _judge(self, gate: Gate, now: float) -> None:
        """Let the state follow from what was heard (RFC 4389 section 4.1.3.3)."""
        offence = self._offence(gate, now)
        if offence is not None:
            if gate.offence is None or gate.state is not Service.HOLD_DOWN:
                self._close(gate, offence)
            gate.offence = offence
            gate.reason = offence.what
            gate.due = offence.at + self._hold_down
        elif gate.state is Service.HOLD_DOWN:
            gate.offence = None
            self._wait(gate, now)
        elif gate.state is Service.WAITING and (gate.upstream or self._policy is LoopProtection.OFF):
            self._open(gate, "")
        self._set_deadline()

    def _offence(self, gate: Gate, now: float) -> Offence | None:
        """The last thing heard on a port for which it is held down at `now`."""
        heard = self._heard.get((gate.ifindex, gate.mac))
        if heard is None or self._policy in {LoopProtection.OFF, LoopProtection.DROP}:
            return None
        found = [heard.looped]
        if not gate.upstream:
            found.append(heard.advertised)
        if not gate.upstream or self._policy is LoopProtection.STRICT:
            found.append(heard.proxied)
        recent = [offence for offence in found if offence is not None and now < offence.at + self._hold_down]
        return max(recent, key=lambda offence: offence.at, default=None)

    # -- states ------------------------------------------------------------------------------------

    def _open(self, gate: Gate, reason: str) -> None:
        gate.state = Service.FORWARDING
        gate.reason = reason
        gate.due = math.inf
        self._changed()

    def _close(self, gate: Gate, offence: Offence) -> None:
        gate.state = Service.HOLD_DOWN
        gate.restart()
        self._sightings = 0
        self._event(
            gate,
            EventKind.LOOP,
            offence.address,
            f"{gate.name} is held down for {self._hold_down:.0f} s: {offence.what}",
        )
        self._changed()

    def _wait(self, gate: Gate, now: float) -> None:
        """A port that was held down may serve again, from the start."""
        gate.restart()
        gate.state = Service.WAITING
        gate.reason = ""
        self._event(gate, EventKind.LOOP, b"", f"{gate.name} is no longer held down")
        if gate.upstream or self._policy is LoopProtection.OFF:
            self._open(gate, "")
        elif gate.mac:
            # A router there that advertises itself rarely is better heard now than later (RFC 8319).
            self._say(gate.ifindex, ndp.router_solicitation(gate.mac), now)
        self._changed()
        self._seek(now)

    def lift(self, ifindex: int, now: float) -> bool:
        """End a port's hold-down; False where there is none."""
        gate = self.gates.get(ifindex)
        if gate is None or gate.state is not Service.HOLD_DOWN:
            return False
        self._heard.pop((gate.ifindex, gate.mac), None)
        self._judge(gate, now)
        return True

    # -- the search for a router -------------------------------------------------------------------

    def _seek(self, now: float, *, fresh: bool = False) -> None:
        """See to it that ports that wait get what they wait for, or an end; and, where the link is `fresh`,
        that its routers are heard, without whom nothing leaves it."""
        waiting = [gate for gate in self.gates.values() if gate.state is Service.WAITING]
        if self._alone and self._uplink is None:
            for gate in waiting:
                self._open(gate, "the group has no upstream")
        elif not waiting and not fresh:
            self._stop_seeking()
        elif math.isinf(self._seek_until) and (
            fresh or any(gate.sent == 0 and not gate.held for gate in waiting)
        ):
            self._asked = 0
            self._seek_until = now + _NO_ROUTER
            self._ask_at = now
            self._ask(now)
        self._set_deadline()

    def _ask(self, now: float) -> None:
        """Solicit a router, from the unspecified address: then the answer goes to all (RFC 4861 section
        6.2.6), where one to the proxy alone would not be relayed."""
        self._asked += 1
        self._ask_at = now + _SOLICITATION_INTERVAL if self._asked < _SOLICITATIONS else math.inf
        uplink = self._uplink
        if uplink is not None and uplink.open and uplink.mac:
            self._say(uplink.ifindex, ndp.router_solicitation(uplink.mac), now)

    def _stop_seeking(self) -> None:
        self._seek_until = self._ask_at = math.inf

    # -- Router Advertisements ---------------------------------------------------------------------

    def admit(self, gate: Gate, frame: bytes, message: Message, now: float) -> Verdict | None:
        """Take note of a valid Router Advertisement that came in on a port; the verdict where it may not be
        relayed, because it closes the port or the port is closed already."""
        if self._policy is LoopProtection.OFF:
            return None
        proxied = rewrite.advertised(frame).proxied
        who = f"{text(message.source)} ({mac_text(message.ether_source)})"
        kind = "a Router Advertisement of another proxy" if proxied else "a Router Advertisement"
        heard = Offence(now, message.source, message.ether_source, f"{kind} by {who}")
        accepted = gate.upstream and (not proxied or self._policy is LoopProtection.NESTED)
        if not accepted and self._policy is LoopProtection.DROP:
            self._event(gate, EventKind.ROUTER, message.source, f"{heard.what} on {gate.name}: dropped")
            return Verdict.ROGUE_ROUTER
        if not accepted and proxied and self._tied(gate, message.ether_source, now):
            return Verdict.ROGUE_ROUTER
        # Remembered where it is welcome too: should the upstream become a downstream, this counts.
        noted = self._heard.setdefault((gate.ifindex, gate.mac), Heard())
        noted.advertised = heard
        if proxied:
            noted.proxied = heard
        if not accepted:
            self._judge(gate, now)
        return None if gate.open else Verdict.HOLD_DOWN

    def _tied(self, gate: Gate, mac: bytes, now: float) -> bool:
        """Whether two proxies sent their first advertisement at the same moment: the one with the lower
        link-layer address goes on, once, or both would be held down."""
        tied = (
            gate.state is Service.WAITING
            and gate.sent == 1
            and now < gate.first + _TIE
            and gate.mac < mac
            and not gate.tie
        )
        gate.tie = gate.tie or tied
        return tied

    def relay(self, origin: Gate, frame: bytes, message: Message, now: float) -> None:
        """Relay an admitted advertisement that is for all, or have it relayed when its time comes."""
        self._stop_seeking()
        for gate in self.gates.values():
            if gate is origin or not gate.mac or gate.state is Service.HOLD_DOWN:
                continue
            if gate.open and (gate.sent or gate.upstream or self._policy is LoopProtection.OFF):
                self._send(gate.ifindex, rewrite.relayed(frame, message, gate.mac))
                continue
            if gate.open:  # there was no router until now
                gate.state = Service.WAITING
                self._changed()
            if len(gate.held) < _ROUTERS or message.source in gate.held:
                gate.held[message.source] = (frame, message)
            if gate.sent:
                self._send_held(gate, now)
            elif math.isinf(gate.due):
                gate.due = now + self._random() * _FIRST_DELAY
        self._set_deadline()

    def _send_held(self, gate: Gate, now: float) -> None:
        for frame, message in gate.held.values():
            self._send(gate.ifindex, rewrite.relayed(frame, message, gate.mac))
        if not gate.sent:
            gate.first = now
        gate.sent += 1
        gate.due = now + _REPEAT
        if gate.sent >= _SENT_BEFORE_FORWARDING:
            gate.held = {}
            self._open(gate, "")

    # -- loops without Router Advertisements ---------------------------------------------------------

    def came_back(
        self, gate: Gate, origin: Gate | None, address: bytes, mac: bytes, now: float, *, own: bool
    ) -> bool:
        """A multicast packet that was relayed, or is the proxy's `own`, came back to `gate`, sent by `mac`.
        `origin` is the port by which it came in first, or was said.  Another proxy is beside this one, then,
        or two ports are on one link; a downstream port that keeps seeing this is held down.

        Who the other proxy is can only be told by a packet of our own.  Another's may have come by way of
        that proxy first: what came back is the host's own, then, and `mac` too.  True where a packet
        of our own is wanted.
        """
        twin = next((other for other in self.gates.values() if other.mac == mac), None)
        if twin is not None or not own:  # what is ours alone would be counted here and not by the other
            self._count(gate, address, mac, now)
        if self._policy in {LoopProtection.DROP, LoopProtection.OFF} or self._sightings < _SIGHTINGS:
            return False
        if not own:
            wanted = now >= self._trial + _TRIAL_GAP
            self._trial = now if wanted else self._trial
            return wanted
        if now > gate.seen_last + _SIGHTING_GAP:
            gate.seen_first = now
        gate.seen_last = now
        if twin is not None:
            victim = twin if gate.upstream else gate
        elif gate.upstream:
            # What it came in by may be cut, and only once the other had its chance on the downstream.
            patience = _PATIENCE if gate.mac > mac else 2 * _PATIENCE
            tried = now >= gate.seen_first + patience and self._sightings >= _MANY_SIGHTINGS
            if origin is None or not tried:
                return False
            victim = origin
        else:
            # Of two proxies the one with the higher link-layer address gives way, or both would.
            tried = now >= gate.seen_first + _PATIENCE and self._sightings >= _MANY_SIGHTINGS
            if gate.mac < mac and not tried:
                return False
            victim = gate
        heard = self._heard.setdefault((victim.ifindex, victim.mac), Heard())
        what = f"a loop: relayed packets come back on {gate.name} from {mac_text(mac)}"
        heard.looped = Offence(now, address, mac, what)
        self._judge(victim, now)
        return False

    def _count(self, gate: Gate, address: bytes, mac: bytes, now: float) -> None:
        if now > self._seen + _SIGHTING_GAP:
            self._sightings = 0
            for each in self.gates.values():
                each.seen_last = -math.inf
        self._seen = now
        self._sightings += 1
        if self._sightings == 1:
            self._event(
                gate,
                EventKind.LOOP,
                address,
                f"a packet of {text(address)} that was relayed came back on {gate.name} "
                f"from {mac_text(mac)}: another proxy, or a loop",
            )

    # -- time --------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Do what is due: solicit, send what was held, end hold-downs, start without a router."""
        if now >= self._ask_at:
            self._ask(now)
        for gate in self.gates.values():
            if now < gate.due:
                continue
            if gate.state is Service.HOLD_DOWN:
                self._judge(gate, now)
            elif gate.state is Service.WAITING:
                self._send_held(gate, now)
        if now >= self._seek_until:
            self._stop_seeking()
            for gate in self.gates.values():
                if gate.state is Service.WAITING and not gate.sent and not gate.held:
                    self._open(gate, "no router advertises itself")
        self._set_deadline()

    def _set_deadline(self) -> None:
        dues = [gate.due for gate in self.gates.values()]
        self.deadline = min(self._ask_at, self._seek_until, *dues)

    # -- words -------------------------------------------------------------------------------------

    def standings(self, now: float) -> list[Standing]:
        """Each port's part; for any thread."""
        found = []
        for gate in list(self.gates.values()):
            offence = gate.offence if gate.state is Service.HOLD_DOWN else None
            left = math.inf
            if offence is not None:
                left = max(0.0, offence.at + self._hold_down - now)
            elif gate.state is Service.WAITING:
                left = max(0.0, min(gate.due, self._seek_until) - now)
            found.append(
                Standing(
                    gate.ifindex,
                    gate.state,
                    gate.why,
                    offence.address if offence else None,
                    offence.mac if offence else None,
                    left,
                )
            )
        return found

    def _event(self, gate: Gate, kind: EventKind, address: bytes, words: str) -> None:
        who = text(address) if address else ""
        self._tell(Event(kind=kind, text=words, group=self._group, port=gate.name, address=who))


class Echo:
    """A multicast packet that was relayed: when, until when that is remembered, the port and the link-layer
    address it came from, and the ports that have it."""

    __slots__ = ("_at", "ifindex", "mac", "ports", "until")

    def __init__(self, at: float, until: float, ifindex: int, mac: bytes, ports: frozenset[int]) -> None:
        self._at = at
        self.until = until
        self.ifindex = ifindex
        self.mac = mac
        self.ports = ports

    def prompt(self, now: float) -> bool:
        """Whether what comes back at `now` does so as fast as a loop would bring it."""
        return now < self._at + _PROMPT


class Echoes:
    """The multicast packets relayed lately, by what identifies them: a bounded number, those seen last."""

    __slots__ = ("_packets",)

    def __init__(self) -> None:
        self._packets: dict[int, Echo] = {}

    def heard(
        self, packet: int, ifindex: int, mac: bytes, now: float, memory: float, *, once: bool
    ) -> Echo | None:
        """The packet's record where this is a copy that came back, or came twice, which is remembered for
        `memory` seconds more.  None where it is new, or, but where it counts `once`, of its very sender, who
        may repeat himself, or have moved: another proxy would have put its own link-layer address."""
        echo = self._packets.get(packet)
        if echo is None or now >= echo.until or (mac == echo.mac and not once):
            return None
        if ifindex in echo.ports or ifindex == echo.ifindex:
            echo.until = now + memory
            return echo
        return None

    def relayed(
        self, packet: int, ifindex: int, mac: bytes, ports: frozenset[int], now: float, memory: float
    ) -> None:
        """Remember a packet for `memory` seconds."""
        packets = self._packets
        packets.pop(packet, None)  # so that the oldest come first
        while packets:
            oldest = next(iter(packets))
            if packets[oldest].until > now and len(packets) < _ECHOES:
                break
            del packets[oldest]
        packets[packet] = Echo(now, now + memory, ifindex, mac, ports)

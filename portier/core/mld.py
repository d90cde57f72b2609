"""Multicast for switches that snoop MLD: memberships, and Multicast Router Discovery (RFC 4286).

By the one a switch passes on what is for a group that was joined.  By the other a router makes itself known:
where a switch hears Multicast Router Advertisements it passes all multicast on, solicitations for any address
of a whole prefix among it (RFC 4541 section 3).  No group needs to be joined for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from portier.core import ndp
from portier.core.engine import link_local
from portier.core.model import Bound, Multicast, Port

ALL_SNOOPERS: Final = bytes.fromhex("ff02000000000000000000000000006a")
ALL_SNOOPERS_MAC: Final = bytes.fromhex("33330000006a")
ADVERTISEMENT: Final = 151
TERMINATION: Final = 153

# RFC 4286 sections 3.1 and 3.2: seconds, and a count.
INTERVAL: Final = 20
JITTER: Final = 0.025 * INTERVAL
MAX_INITIAL_INTERVAL: Final = 2.0
MAX_INITIAL: Final = 3

_HOP_BY_HOP: Final = 0
# ICMPv6 follows; one option says that routers are to look at the message (RFC 2711), another fills up.
_ROUTER_ALERT: Final = bytes((58, 0, 5, 2, 0, 0, 1, 0))


class Joined(NamedTuple):
    """How many memberships of groups there are, how many were refused, and why the last one was."""

    members: int
    refused: int
    error: str


NOTHING_JOINED: Final = Joined(0, 0, "")

Sends = tuple[tuple[int, bytes], ...]


def advertisement(mac: bytes, source: bytes) -> bytes:
    """A Multicast Router Advertisement, with a virtio-net header in front.  Query interval and robustness
    variable are 0: no querier is here (RFC 4286 section 3.2)."""
    return _frame(mac, source, bytes((ADVERTISEMENT, INTERVAL, 0, 0, 0, 0, 0, 0)))


def termination(mac: bytes, source: bytes) -> bytes:
    """A Multicast Router Termination: no router is here any more (RFC 4286 section 5)."""
    return _frame(mac, source, bytes((TERMINATION, 0, 0, 0)))


def _frame(mac: bytes, source: bytes, message: bytes) -> bytes:
    length = len(_ROUTER_ALERT) + len(message)
    header = b"\x60\0\0\0" + length.to_bytes(2, "big") + bytes((_HOP_BY_HOP, 1)) + source + ALL_SNOOPERS
    total = int.from_bytes(source + ALL_SNOOPERS + message, "big") + 58 + len(message)
    checksum = (-total % 0xFFFF).to_bytes(2, "big")  # one's complement: 2**16 is 1 modulo 2**16 - 1
    ethernet = ALL_SNOOPERS_MAC + mac + b"\x86\xdd"
    return ndp.NO_OFFLOAD + ethernet + header + _ROUTER_ALERT + message[:2] + checksum + message[4:]


class _Spoken:
    """A port, what it speaks from, how many advertisements went out, and when the next one does."""

    def __init__(self, port: Port, due: float) -> None:
        self.port = port
        self.sent = 0
        self.due = due


class RouterBeacon:
    """Advertises on ports that have a link-local address: on all of a group that wants that, else on those
    on which it cannot join all that it should.

    `random` gives numbers from 0 to 1: RFC 4286 section 4.1 has routers that start together speak at
    different times.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._ports: dict[tuple[int, bytes], _Spoken] = {}
        self._everywhere = False
        self._candidates: tuple[Port, ...] = ()
        self._drawn: set[int] = set()
        self.deadline = math.inf

    def configure(self, bound: Bound, now: float) -> Sends:
        """Take over the ports of `bound`; gives the terminations for those that are no longer among them."""
        self._everywhere = bound.group.multicast is Multicast.ROUTER
        self._candidates = bound.ports
        return self._speak_where_wanted(now)

    def draw(self, ifindex: int, now: float, *, wanted: bool) -> Sends:
        """Advertise on one port too, whatever the group wants, or no longer; gives the termination."""
        (self._drawn.add if wanted else self._drawn.discard)(ifindex)
        return self._speak_where_wanted(now)

    @property
    def drawn(self) -> frozenset[int]:
        """The ports on which `draw` has it advertise."""
        return frozenset(self._drawn)

    def _speak_where_wanted(self, now: float) -> Sends:
        wanted = {
            (port.ifindex, port.mac): port
            for port in self._candidates
            if (self._everywhere or port.ifindex in self._drawn)
            and port.mac
            and port.source
            and link_local(port.source)
        }
        left = [spoken for key, spoken in self._ports.items() if key not in wanted]
        before, self._ports = self._ports, {}
        for key, port in wanted.items():
            spoken = before.get(key)
            if spoken is None:
                spoken = _Spoken(port, now + self._random() * MAX_INITIAL_INTERVAL)
            spoken.port = port
            self._ports[key] = spoken
        self._set_deadline()
        return _terminations(left)

    def tick(self, now: float) -> Sends:
        """What is due at the monotonic time `now`."""
        sends = []
        for spoken in self._ports.values():
            if now < spoken.due:
                continue
            spoken.sent += 1
            interval = INTERVAL + (2 * self._random() - 1) * JITTER
            if spoken.sent < MAX_INITIAL:
                interval = min(interval, MAX_INITIAL_INTERVAL)
            spoken.due = now + interval
            mac, source = _speaker(spoken.port)
            sends.append((spoken.port.ifindex, advertisement(mac, source)))
        self._set_deadline()
        return tuple(sends)

    def stop(self) -> Sends:
        """The terminations for all ports."""
        left = list(self._ports.values())
        self._ports = {}
        self.deadline = math.inf
        return _terminations(left)

    def _set_deadline(self) -> None:
        self.deadline = min((spoken.due for spoken in self._ports.values()), default=math.inf)


def _terminations(left: Iterable[_Spoken]) -> Sends:
    return tuple((spoken.port.ifindex, termination(*_speaker(spoken.port))) for spoken in left if spoken.sent)


def _speaker(port: Port) -> tuple[bytes, bytes]:
    assert port.mac is not None and port.source is not None  # noqa: S101, PT018 - configure saw to it
    return port.mac, port.source

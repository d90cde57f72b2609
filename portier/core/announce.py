"""Telling the other ports of a host that is new, or newly somewhere.

What neighbors make of the news differs.  A router may take note of a host that it has not heard of (RFC 9131:
O=0, to all routers); whoever has an entry for it corrects that for O=1 alone; gratuitous ARP corrects entries
and creates none; and there are routers that learn from nothing but a question for their own address.  So what
nobody can have known is told once, and what some know wrongly three times (RFC 4861 section 7.2.6).

A port is told of one address at a time, so that ten thousand hosts are no burst, and what has become untrue
meanwhile is not told.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Final

from portier.core.model import Announce
from portier.core.neighbors import Neighbor, RouteState
from portier.core.ports import Attached
from portier.core.timers import Timed

_TIMES: Final = 3  # MAX_NEIGHBOR_ADVERTISEMENT (RFC 4861 section 10)
_PACE: Final = 0.005  # seconds between two addresses on a port
_DEFEND_INTERVAL: Final = 10.0  # RFC 5227 section 1.1
_DEFENDED: Final = 1024  # addresses whose last defence is remembered

_REACHED: Final = frozenset({RouteState.NONE, RouteState.INSTALLED, RouteState.FOREIGN})


class Announcement(Timed):
    """That ``entry`` is reached by way of the port ``ifindex``, to be told ``left`` times more; a
    ``correction`` where neighbors may have another link-layer address for it.  ``paced`` says that its turn
    on the port has been given."""

    __slots__ = ("correction", "entry", "ifindex", "left", "paced")

    def __init__(self, entry: Neighbor, ifindex: int, *, correction: bool) -> None:
        super().__init__()
        self.entry = entry
        self.ifindex = ifindex
        self.correction = correction
        self.left = _TIMES if correction else 1
        self.paced = False


class Announcer:
    """What is still to be told, by port and address."""

    def __init__(self) -> None:
        self.waiting: dict[tuple[int, bytes], Announcement] = {}
        self._free: dict[int, float] = {}
        self._defended: dict[tuple[int, bytes], float] = {}

    def configure(self, ports: Collection[int]) -> None:
        """Forget the ports that are not among `ports`."""
        for key in [key for key in self.waiting if key[0] not in ports]:
            del self.waiting[key]
        self._free = {ifindex: when for ifindex, when in self._free.items() if ifindex in ports}

    def plan(self, entry: Neighbor, ifindex: int, *, correction: bool) -> Announcement | None:
        """What is to be told on the port `ifindex` of a host, from now on; None where that much is being
        told already."""
        key = (ifindex, entry.address)
        item = self.waiting.get(key)
        if item is not None and item.entry is entry and not correction:
            return None
        item = self.waiting[key] = Announcement(entry, ifindex, correction=correction)
        return item

    def due(self, item: Announcement, now: float, interval: float) -> tuple[bool, float]:
        """Whether `item`, which is due, is told now, and when it is due again, infinity for never."""
        key = (item.ifindex, item.entry.address)
        if self.waiting.get(key) is not item:
            return False, math.inf
        if item.entry.ifindex in {0, item.ifindex}:
            del self.waiting[key]  # the host is gone, or on this very port by now
            return False, math.inf
        free = self._free.get(item.ifindex, 0.0)
        if not item.paced:
            self._free[item.ifindex] = max(now, free) + _PACE
            if now < free:
                item.paced = True
                return False, free
        item.paced = False
        item.left -= 1
        if not item.left:
            del self.waiting[key]
        # Nobody is told of a host that cannot be reached yet.
        return item.entry.route_state in _REACHED, now + interval if item.left else math.inf

    def may_defend(self, ifindex: int, address: bytes, now: float) -> bool:
        """Whether an address may be defended on a port once more: two that did so without end would be a
        storm (RFC 5227 section 2.4)."""
        key = (ifindex, address)
        if now < self._defended.get(key, 0.0):
            return False
        self._defended.pop(key, None)  # so that the oldest come first
        if len(self._defended) >= _DEFENDED:
            del self._defended[next(iter(self._defended))]
        self._defended[key] = now + _DEFEND_INTERVAL
        return True


def frames(
    item: Announcement, port: Attached, next_hops: Iterable[bytes], flags: int, how: Announce
) -> list[bytes]:
    """What tells it on `port`: a frame; or one for every router there, of which `next_hops` are some, where
    it is told by asking and there is a router to ask."""
    address = item.entry.address
    voice = port.voice(address)
    if not voice.answers:
        return []
    if how is Announce.SOLICIT:
        routers = [
            router
            for router in {**port.routers, **dict.fromkeys(next_hops)}
            if len(router) == len(address) and router != address
        ]
        if routers:
            return [voice.introduction(address, router) for router in routers]
    return [voice.correction(address, flags) if item.correction else voice.news(address, flags)]

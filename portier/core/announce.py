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
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
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


class Announcement:
    """That ``entry`` is reached by way of a port, to be told ``left`` times more, the next time at ``due``; a
    ``correction`` where neighbors may have another link-layer address for it."""

    __slots__ = ("correction", "due", "entry", "left")

    def __init__(self, entry: Neighbor, *, correction: bool) -> None:
        self.entry = entry
        self.correction = correction
        self.left = _TIMES if correction else 1
        self.due = 0.0


class Turns(Timed):
    """What is to be told on the port ``ifindex``, by address: ``fresh`` what was not told yet, ``again`` what
    was, in the order in which it is due; and the time from which the port is ``free`` for the next."""

    __slots__ = ("again", "free", "fresh", "ifindex")

    def __init__(self, ifindex: int) -> None:
        super().__init__()
        self.ifindex = ifindex
        self.fresh: dict[bytes, Announcement] = {}
        self.again: dict[bytes, Announcement] = {}
        self.free = 0.0

    def __len__(self) -> int:
        return len(self.fresh) + len(self.again)

    def next_due(self) -> float:
        """When there is something to tell, infinity for never."""
        if self.fresh:
            return self.free
        first = next(iter(self.again.values()), None)
        return math.inf if first is None else max(self.free, first.due)

    def take(self, now: float) -> Announcement | None:
        """What is due at `now`, out of its queue."""
        first = next(iter(self.again.values()), None)
        queue = self.again if first is not None and first.due <= now else self.fresh
        return queue.pop(next(iter(queue))) if queue else None


class Announcer:
    """What is still to be told, by port."""

    def __init__(self) -> None:
        self.turns: dict[int, Turns] = {}
        self._defended: dict[tuple[int, bytes], float] = {}

    def __len__(self) -> int:
        return sum(map(len, self.turns.values()))

    def configure(self, ports: AbstractSet[int]) -> None:
        """Forget the ports that are not among `ports`."""
        for ifindex in self.turns.keys() - ports:
            turns = self.turns.pop(ifindex)
            turns.fresh.clear()
            turns.again.clear()

    def plan(self, entry: Neighbor, ifindex: int, *, correction: bool) -> Turns | None:
        """Have a port told of a host; gives the port's turns, which are due, or None where that much is
        being told already."""
        turns = self.turns.setdefault(ifindex, Turns(ifindex))
        address = entry.address
        if not correction and (address in turns.fresh or address in turns.again):
            return None
        turns.again.pop(address, None)
        turns.fresh[address] = Announcement(entry, correction=correction)
        return turns

    def forget(self, address: bytes) -> None:
        """The host is gone: there is nothing to tell of it."""
        for turns in self.turns.values():
            turns.fresh.pop(address, None)
            turns.again.pop(address, None)

    def due(self, turns: Turns, now: float, interval: float) -> Announcement | None:
        """What is told on a port now; what is told more than once is due again after `interval`."""
        while (item := turns.take(now)) is not None:
            if item.entry.ifindex == turns.ifindex:
                continue  # on this very port by now
            item.left -= 1
            if item.left:
                item.due = now + interval
                turns.again[item.entry.address] = item
            if item.entry.route_state in _REACHED:  # nobody is told of a host that cannot be reached yet
                turns.free = now + _PACE
                return item
        return None

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

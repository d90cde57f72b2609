"""The multicast groups in which targets are asked for, so that a switch that snoops MLD lets the questions
through (RFC 4861 section 7.2.1, RFC 4541 section 3).

A group is wanted on a port as long as any target is that may be asked for there; several targets have the
same group when their last 24 bits are the same.

Only so many are joined on a port: the kernel looks for the group of each multicast packet that comes in along
a list of all that the interface has joined, which at 10,000 groups leaves a tenth of the answers (measured).
Where more are wanted, all multicast is drawn, as a multicast router draws it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable
from typing import Final

from portier.core.outcome import DrawAll, Join, Leave

MOST: Final = 1000
_FEW: Final = MOST * 9 // 10  # so that a host that comes and goes does not switch it on and off

_Change = Join | Leave | DrawAll


class _OnPort:
    """The groups wanted on one port: those joined, and those for which there is no room, in order."""

    def __init__(self) -> None:
        self.joined: set[bytes] = set()
        self.waiting: OrderedDict[bytes, None] = OrderedDict()  # a dict finds its first slowly
        self.drawn = False  # whether all multicast is drawn


class Groups:
    """How many targets want which group on which port.  The methods return the effects that follow."""

    def __init__(self) -> None:
        self._wanted: Counter[tuple[int, bytes]] = Counter()
        self._targets: dict[bytes, frozenset[tuple[int, bytes]]] = {}
        self._always: frozenset[tuple[int, bytes]] = frozenset()
        self._ports: defaultdict[int, _OnPort] = defaultdict(_OnPort)

    def want(self, target: bytes, wanted: Iterable[tuple[int, bytes]]) -> list[_Change]:
        """Have no other groups (interface index, group) for one `target`."""
        new = frozenset(wanted)
        old = self._targets.get(target, frozenset())
        if new:
            self._targets[target] = new
        else:
            self._targets.pop(target, None)
        return self._change(old, new)

    def keep(self, wanted: Iterable[tuple[int, bytes]]) -> list[_Change]:
        """Have groups (interface index, group) whoever is there."""
        old, self._always = self._always, frozenset(wanted)
        return self._change(old, self._always)

    def _change(self, old: frozenset[tuple[int, bytes]], new: frozenset[tuple[int, bytes]]) -> list[_Change]:
        """Count, joins first: a group that goes over from one target to another is never left."""
        changes: list[_Change] = []
        for key in new - old:
            self._wanted[key] += 1
            if self._wanted[key] == 1:
                changes += self._enter(*key)
        for key in old - new:
            self._wanted[key] -= 1
            if not self._wanted[key]:
                del self._wanted[key]
                changes += self._quit(*key)
        return changes

    def _enter(self, ifindex: int, group: bytes) -> list[_Change]:
        """Join a group, or have it wait for room."""
        port = self._ports[ifindex]
        if len(port.joined) < MOST:
            port.joined.add(group)
            return [Join(ifindex, group)]
        port.waiting[group] = None
        if port.drawn:
            return []
        port.drawn = True
        return [DrawAll(ifindex, wanted=True)]

    def _quit(self, ifindex: int, group: bytes) -> list[_Change]:
        """Leave a group, and have the one that waits longest take its place."""
        port = self._ports[ifindex]
        changes: list[_Change] = []
        if group in port.joined:
            port.joined.discard(group)
            changes.append(Leave(ifindex, group))
            if port.waiting:
                group = next(iter(port.waiting))
                port.joined.add(group)
                changes.append(Join(ifindex, group))
        port.waiting.pop(group, None)
        if port.drawn and len(port.joined) <= _FEW:
            port.drawn = False
            changes.append(DrawAll(ifindex, wanted=False))
        if not port.joined:
            del self._ports[ifindex]
        return changes

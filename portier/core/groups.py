"""The multicast groups in which targets are asked for, so that a switch that snoops MLD lets the questions
through (RFC 4861 section 7.2.1, RFC 4541 section 3).

A group is wanted on a port as long as any target is that may be asked for there; several targets have the
same group when their last 24 bits are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from portier.core.outcome import Join, Leave


class Groups:
    """How many targets want which group on which port.  The methods return the effects that follow."""

    def __init__(self) -> None:
        self._wanted: Counter[tuple[int, bytes]] = Counter()
        self._targets: dict[bytes, frozenset[tuple[int, bytes]]] = {}
        self._always: frozenset[tuple[int, bytes]] = frozenset()

    def want(self, target: bytes, wanted: Iterable[tuple[int, bytes]]) -> list[Join | Leave]:
        """Have no other groups (interface index, group) for one `target`."""
        new = frozenset(wanted)
        old = self._targets.get(target, frozenset())
        if new:
            self._targets[target] = new
        else:
            self._targets.pop(target, None)
        return self._change(old, new)

    def keep(self, wanted: Iterable[tuple[int, bytes]]) -> list[Join | Leave]:
        """Have groups (interface index, group) whoever is there."""
        old, self._always = self._always, frozenset(wanted)
        return self._change(old, self._always)

    def _change(
        self, old: frozenset[tuple[int, bytes]], new: frozenset[tuple[int, bytes]]
    ) -> list[Join | Leave]:
        """Count, joins first: a group that goes over from one target to another is never left."""
        changes: list[Join | Leave] = []
        for key in new - old:
            self._wanted[key] += 1
            if self._wanted[key] == 1:
                changes.append(Join(*key))
        for key in old - new:
            self._wanted[key] -= 1
            if not self._wanted[key]:
                del self._wanted[key]
                changes.append(Leave(*key))
        return changes

"""What is known of hosts beyond the life of one process.

Nothing of it is believed: the engines ask each host first, by unicast.  Until that is done, routes that an
earlier process has left to them stay where they are, so that a daemon that was killed costs nobody a packet.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Final

from portier.core.engine import KnownHost
from portier.core.model import Bound

# How long routes wait for their hosts' answers: a few seconds for the ports to come and for three probes, and
# as long as it takes to ask them all.
_GRACE: Final = 10.0
_RATE: Final = 250


class Recollection:
    """The hosts that an earlier process knew.  For any thread.  `clock` is monotonic seconds."""

    def __init__(self, hosts: Iterable[KnownHost], clock: Callable[[], float]) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._places: dict[tuple[str, int, str, bytes], list[KnownHost]] = {}
        places = []
        for host in hosts:
            self._places.setdefault((host.group, host.ifindex, host.port, host.port_mac), []).append(host)
            places.append((host.address, host.ifindex))
        self._known = frozenset(places)
        #: When routes do not wait any more.
        self.until = clock() + _GRACE + len(places) / _RATE

    def take(self, bound: Bound) -> list[KnownHost]:
        """The hosts of a group's ports, each once; a port with another index, name or link-layer address
        than before is another."""
        with self._lock:
            return [
                host
                for port in bound.ports
                if port.mac is not None
                for host in self._places.pop((bound.group.name, port.ifindex, port.name, port.mac), ())
            ]

    def known(self) -> frozenset[tuple[bytes, int]]:
        """Addresses and interfaces of the hosts whose routes, where there are some, are still to stay."""
        return self._known if self._clock() < self.until else frozenset()

"""The table of known hosts, bounded and fair.

Decides who is kept when the table is full: each port and each link-layer address has a share, a full share
evicts only its own, and hosts that never answered us go first (RFC 6583 section 7.1, RFC 6620 section 4.1).
What is known of a host stands in `Neighbor`; what follows from it is the engine's business.
"""

from __future__ import annotations

import enum
from typing import Generic, Protocol, TypeVar

from portier.core.model import HostRoute, Limits
from portier.core.timers import Timed


class RouteState(enum.Enum):
    """Whether the kernel sends a host's traffic to its port."""

    NONE = "-"  # not wanted: lives upstream, or routes are off
    MISSING = "missing"  # wanted, not there yet
    INSTALLED = "yes"
    FOREIGN = "foreign"  # somebody else's route with the same destination, table and metric
    FAILED = "failed"  # the kernel refused


class Claim:
    """Another place that says it has a host's address, while the host is asked whether it still does.
    ``dad_until`` is 0, or the end of the DAD probe that the claim is made of: such a one is answered."""

    __slots__ = ("dad_until", "ifindex", "mac")

    def __init__(self, ifindex: int, mac: bytes, dad_until: float) -> None:
        self.ifindex = ifindex
        self.mac = mac
        self.dad_until = dad_until


class Neighbor(Timed):
    """One known host: an address on a port.

    Times are monotonic seconds.  ``ifindex`` is 0 once the entry is gone, so that whoever still holds it
    can tell.  ``reachable`` is until when its last solicited advertisement counts; ``heard`` when it last
    said anything; ``due`` when it next needs attention; ``probes`` how many unanswered unicast probes are
    out; ``ready`` until when it is answered for without a second look, with ``flags``;
    ``override`` the O flag of its last advertisement, None when it never sent one: a proxy's O=0
    gives way to the host itself (RFC 4861 section 7.2.8).  ``settled`` grows by RetransTimer a move; until
    ``verify_until`` an answer from one of the ``asked`` interfaces may still be to what found it.
    """

    __slots__ = (
        "address",
        "asked",
        "claim",
        "confirmed",
        "flags",
        "heard",
        "ifindex",
        "learned",
        "mac",
        "override",
        "probes",
        "reachable",
        "ready",
        "route",
        "route_state",
        "router",
        "settled",
        "verify_until",
    )

    def __init__(self, address: bytes, ifindex: int, mac: bytes, now: float) -> None:
        super().__init__()
        self.address = address
        self.ifindex = ifindex
        self.mac = mac
        self.learned = now
        self.heard = now
        self.reachable = 0.0
        self.confirmed = False
        self.ready = 0.0
        self.flags = 0
        self.probes = 0
        self.router = False
        self.override: bool | None = None
        self.claim: Claim | None = None
        self.route: HostRoute | None = None
        self.route_state = RouteState.NONE
        self.settled = 0.0
        self.verify_until = 0.0
        self.asked: frozenset[int] = frozenset()


class Held(Protocol):
    """What the shares need to know of an entry: an address on a port.  ``confirmed`` says that it ever
    answered us."""

    address: bytes
    ifindex: int
    mac: bytes
    confirmed: bool


EntryT = TypeVar("EntryT", bound=Held)


class Share(Generic[EntryT]):
    """The entries of one port, oldest first, those that ever answered us apart."""

    __slots__ = ("confirmed", "unconfirmed")

    def __init__(self) -> None:
        self.confirmed: dict[bytes, EntryT] = {}
        self.unconfirmed: dict[bytes, EntryT] = {}

    def __len__(self) -> int:
        return len(self.confirmed) + len(self.unconfirmed)

    def oldest(self) -> EntryT:
        """Whom to evict: the one that was confirmed or learned the longest ago."""
        entries = self.unconfirmed or self.confirmed
        return next(iter(entries.values()))


def _kept(entry: Held) -> bool:
    return entry.confirmed


class Shares(Generic[EntryT]):
    """The entries by port and by link-layer address, and who gives way when there are too many."""

    def __init__(self) -> None:
        self._ports: dict[int, Share[EntryT]] = {}
        self._hosts: dict[tuple[int, bytes], dict[bytes, EntryT]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def make_room(
        self, ifindex: int, mac: bytes, limits: Limits, moving: EntryT | None = None
    ) -> list[EntryT]:
        """Who must go before one more entry for this port and link-layer address fits, or before `moving`
        gets there.  They are still there: the caller removes them."""
        host = self._hosts.get((ifindex, mac), {})
        if len(host) >= limits.per_host and (moving is None or moving.address not in host):
            return [min(host.values(), key=_kept)]
        share = self._ports.get(ifindex)
        if (
            share is not None
            and len(share) >= limits.per_port
            and (moving is None or moving.ifindex != ifindex)
        ):
            return [share.oldest()]
        if self._count >= limits.neighbors and moving is None:
            return [self._largest().oldest()]
        return []

    def excess(self, limits: Limits) -> EntryT | None:
        """Somebody who is too many by `limits`, which may be new."""
        if self._count > limits.neighbors:
            return self._largest().oldest()
        for share in self._ports.values():
            if len(share) > limits.per_port:
                return share.oldest()
        for host in self._hosts.values():
            if len(host) > limits.per_host:
                return min(host.values(), key=_kept)
        return None

    def _largest(self) -> Share[EntryT]:
        # The largest share pays, so that a flood on one port never empties another's.
        return max(self._ports.values(), key=len)

    def of_host(self, ifindex: int, mac: bytes) -> list[EntryT]:
        """The entries of one link-layer address on a port."""
        return list(self._hosts.get((ifindex, mac), {}).values())

    def place(self, entry: EntryT, ifindex: int, mac: bytes) -> None:
        """The host is on another port or has another link-layer address now."""
        self.leave(entry)
        entry.ifindex = ifindex
        entry.mac = mac
        self.enter(entry)

    def confirm(self, entry: EntryT) -> None:
        """The host answered us: it is among the last to be evicted now."""
        share = self._ports[entry.ifindex]
        share.unconfirmed.pop(entry.address, None)
        share.confirmed.pop(entry.address, None)
        share.confirmed[entry.address] = entry
        entry.confirmed = True

    def enter(self, entry: EntryT) -> None:
        """Count an entry that is new on its port."""
        share = self._ports.get(entry.ifindex)
        if share is None:
            share = self._ports[entry.ifindex] = Share()
        (share.confirmed if entry.confirmed else share.unconfirmed)[entry.address] = entry
        self._hosts.setdefault((entry.ifindex, entry.mac), {})[entry.address] = entry
        self._count += 1

    def leave(self, entry: EntryT) -> None:
        """Count an entry no more."""
        share = self._ports[entry.ifindex]
        share.confirmed.pop(entry.address, None)
        share.unconfirmed.pop(entry.address, None)
        if not len(share):
            del self._ports[entry.ifindex]
        key = (entry.ifindex, entry.mac)
        host = self._hosts[key]
        del host[entry.address]
        if not host:
            del self._hosts[key]
        self._count -= 1


class NeighborTable(Shares[Neighbor]):
    """Known hosts by address (packed), with the shares of ports and link-layer addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.by_address: dict[bytes, Neighbor] = {}

    def add(self, entry: Neighbor) -> None:
        """Put an entry in; its address must not be in the table."""
        self.by_address[entry.address] = entry
        self.enter(entry)

    def remove(self, entry: Neighbor) -> None:
        """Take an entry out."""
        del self.by_address[entry.address]
        self.leave(entry)
        entry.ifindex = 0

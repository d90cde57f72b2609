"""What the engines have in common: what they may ask, how they explain themselves, how they keep to rates."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Iterable
from ipaddress import IPv6Network, ip_address
from typing import Any, Final, NamedTuple, Protocol

from portier.core.outcome import Verdict

_SOURCES: Final = 4096  # whose rates are remembered, an engine


class Say(Protocol):
    """Told the steps of a decision, as a template and its values."""

    def __call__(self, template: str, /, *values: object) -> None:
        """Take one step."""


class KernelOracle(Protocol):
    """What an engine may ask the kernel while it decides."""

    def route(self, address: bytes, table: int) -> int:
        """The interface by which the best route for `address` leaves, the default route not counted; 0
        where there is none."""

    def host_route(self, address: bytes, table: int) -> int:
        """The interface by which the best route for `address` leaves, where that is a route to it alone, by a
        gateway; else 0."""

    def neighbor(self, address: bytes, ports: Iterable[int]) -> int:
        """The one of `ports` on which the kernel's neighbor table holds `address` in a valid state, or 0."""


class NeighborInfo(NamedTuple):
    """A known host, for people and programs.  ``age`` is seconds since it was last heard."""

    address: bytes
    port: str
    mac: bytes
    state: str
    age: float
    route: str


class Service(enum.StrEnum):
    """How far a port takes part in mode relay (RFC 4389 sections 4.1.3.3 and 6)."""

    FORWARDING = "forwarding"
    WAITING = "waiting for RAs"  # of which two must go out by the port; until then nothing else does
    HOLD_DOWN = "hold-down"  # a Router Advertisement that should not be there was heard


class Standing(NamedTuple):
    """A port's part in mode relay, for people and programs.  ``reason`` is in words, the offender among them;
    ``offender`` the source (packed) and ``mac`` the link-layer address of what put it into hold-down;
    ``left`` the seconds until time alone changes the state, infinite where it does not."""

    ifindex: int
    service: Service
    reason: str
    offender: bytes | None
    mac: bytes | None
    left: float


class RouterInfo(NamedTuple):
    """A router whose advertisements are relayed, for people, programs and the reconciler.  ``lifetime`` is
    how many seconds more it is a default router; ``managed`` and ``other`` say that it promises DHCPv6;
    ``on_link`` are the prefixes that it says are on-link, as long as that is valid; ``name_servers`` the
    addresses (packed) of those it names."""

    address: bytes
    port: str
    mac: bytes
    lifetime: float
    managed: bool
    other: bool
    on_link: frozenset[IPv6Network]
    name_servers: tuple[bytes, ...] = ()


class KnownHost(NamedTuple):
    """A host as it is remembered from one process to the next: where it was, by everything that tells whether
    that port is still the same.  ``hearsay`` says that it told nobody but the kernel."""

    address: bytes
    mac: bytes
    ifindex: int
    port_mac: bytes
    port: str
    group: str
    hearsay: bool = False


class Explanation(NamedTuple):
    """How a solicitation would be decided: the last step is the one that did."""

    verdict: Verdict
    steps: tuple[str, ...]


class Bucket:
    """Tokens at a rate, a second's worth at most."""

    __slots__ = ("_at", "_rate", "_tokens")

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._tokens = rate
        self._at = now

    def take(self, now: float, share: float = 0.0) -> bool:
        """Take one token, if there is one beyond the `share` that is kept for others: of so few that none is,
        the last."""
        tokens = min(self._rate, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if tokens < max(1.0, min(1 + share * self._rate, self._rate)):
            self._tokens = tokens
            return False
        self._tokens = tokens - 1
        return True


class Rates:
    """The token buckets of the sources of one engine: a bounded number, those heard last."""

    __slots__ = ("_buckets",)

    def __init__(self) -> None:
        self._buckets: dict[tuple[int, bytes], Bucket] = {}

    def clear(self) -> None:
        """Forget everybody: the rate is another."""
        self._buckets.clear()

    def take(self, ifindex: int, source: bytes, rate: float, now: float) -> bool:
        """Take one token of what came from link-layer address `source` on a port."""
        key = (ifindex, source)
        bucket = self._buckets.pop(key, None)
        if bucket is None:
            if len(self._buckets) >= _SOURCES:
                del self._buckets[next(iter(self._buckets))]
            bucket = Bucket(rate, now)
        self._buckets[key] = bucket
        return bucket.take(now)

    def exceeded(self, ifindex: int, source: bytes, rate: float, port: Bucket, now: float) -> Verdict | None:
        """Take one token of a source, as `take` does, and one of its port; the verdict when there is none."""
        if not self.take(ifindex, source, rate, now):
            return Verdict.SOURCE_LIMIT
        if not port.take(now):
            return Verdict.PORT_LIMIT
        return None


def text(address: bytes) -> str:
    """An address (packed) as people write it."""
    return str(ip_address(address))


def mac_text(mac: bytes) -> str:
    """A link-layer address as people write it."""
    return mac.hex(":")


def listed(values: tuple[object, ...]) -> str:
    """Values with commas between them."""
    return ", ".join(str(value) for value in values)


class Lazy(NamedTuple):
    """A value that is put into words only if somebody listens."""

    words: Callable[[Any], str]
    value: Any

    def __format__(self, spec: str) -> str:
        return self.words(self.value)


def link_local(address: bytes) -> bool:
    """Whether an address (packed) is link-local unicast (RFC 4291 section 2.5.6, RFC 3927)."""
    if len(address) == 4:
        return address[:2] == b"\xa9\xfe"
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80


def silent(_template: str, *_values: object) -> None:
    """Tell nobody."""


def gives_way(origins: Iterable[int], ifindex: int) -> int:
    """Of the ports on whose behalf something is waited for, an entry in `origins` each, the one that
    gives way to `ifindex`: the one that waits for most, or 0 where `ifindex` itself does, or will."""
    shares = Counter(origins)
    largest, most = shares.most_common(1)[0]
    return largest if most > shares[ifindex] + 1 else 0

"""The host routes an engine wants, and the effects by which the kernel gets them."""

from __future__ import annotations

from typing import Final, Protocol

from portier.core.engine import Bucket
from portier.core.model import HostRoute
from portier.core.neighbors import RouteState
from portier.core.outcome import AddRoute, MoveRoute, RemoveRoute, RouteResult

_SETTLED: Final = frozenset({RouteState.INSTALLED, RouteState.FOREIGN})


class Routed(Protocol):
    """Something whose traffic the kernel should send by a host route, or None."""

    route: HostRoute | None
    route_state: RouteState


class HostRoutes:
    """Wanted host routes, changed at a bounded rate.  ``effects`` are still to be carried out."""

    __slots__ = ("_bucket", "_wanted", "effects")

    def __init__(self) -> None:
        self._wanted: dict[HostRoute, None] = {}
        self._bucket = Bucket(0, 0)
        self.effects: list[AddRoute | MoveRoute | RemoveRoute] = []

    def limit(self, rate: float, now: float) -> None:
        """Change so many routes a second from now on."""
        self._bucket = Bucket(rate, now)

    def wanted(self) -> frozenset[HostRoute]:
        """The routes that should be in the kernel; for any thread."""
        return frozenset(self._wanted.copy())

    def count(self) -> int:
        """How many those are."""
        return len(self._wanted)

    def want(self, host: Routed, new: HostRoute | None, now: float, share: float = 0.0) -> None:
        """Give a host another route, or none, if that is within the rate; `share` of it is left to others."""
        old = host.route
        if old == new:
            return
        had = old is not None and host.route_state is RouteState.INSTALLED
        host.route = new
        if old is not None:
            self._wanted.pop(old, None)
        host.route_state = RouteState.NONE if new is None else RouteState.MISSING
        if new is None or not self._bucket.take(now, share):
            if old is not None and had:
                self.effects.append(RemoveRoute(old))
            return
        self._wanted[new] = None
        self.effects.append(MoveRoute(old, new) if old is not None and had else AddRoute(new))

    def replace(self, host: Routed, new: HostRoute | None) -> None:
        """Give a host another route, or none, whatever the rate: what the user wants has changed.  The old
        one stays until the new one is there."""
        old = host.route
        if old == new:
            return
        if new is not None:
            self._wanted[new] = None
            self.effects.append(AddRoute(new))
        self.drop(host)
        host.route = new
        host.route_state = RouteState.NONE if new is None else RouteState.MISSING

    def drop(self, host: Routed) -> None:
        """The host is gone, and so is its route, unless that is somebody else's."""
        if host.route is not None:
            self._wanted.pop(host.route, None)
            if host.route_state is not RouteState.FOREIGN:
                self.effects.append(RemoveRoute(host.route))
            host.route = None

    def in_place(self, host: Routed, now: float, *, again: bool = False) -> bool:
        """Whether the kernel has, or is being given, the route of a host; `again` where there is reason to
        doubt that it is still there."""
        if host.route is None or (host.route_state in _SETTLED and not again):
            return True
        if not self._bucket.take(now):
            return False
        self._wanted[host.route] = None
        self.effects.append(AddRoute(host.route))
        return True

    def settle(self, host: Routed, route: HostRoute, result: RouteResult) -> bool:
        """Hear how a route effect ended; says whether that is news worth telling."""
        before = host.route_state
        if result is RouteResult.FAILED:
            host.route_state = RouteState.FAILED
            self._wanted.pop(route, None)
        elif result is RouteResult.FOREIGN:
            host.route_state = RouteState.FOREIGN
            self._wanted.pop(route, None)
        else:
            host.route_state = RouteState.INSTALLED
        return host.route_state is not before and host.route_state is not RouteState.INSTALLED

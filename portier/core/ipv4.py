"""What the kernel's own settings for IPv4 do to a group's ports beside what Portier does.

Both have a value for all interfaces too: of ``rp_filter`` the larger counts, of ``proxy_arp`` either.
Portier leaves them as they are, for the user may have reasons, and says what comes of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Final

from portier.core.model import Bound, Link, Mode, Notice, Port, Role, Snapshot

_STRICT: Final = 1  # rp_filter; 2 is loose


def warnings(
    bound: Bound, versions: Collection[int], links: Mapping[int, Link], snapshot: Snapshot
) -> Iterator[Notice]:
    """What keeps IPv4 rules from being the whole truth; ``versions`` are those of IP that the rules name."""
    if bound.group.mode is not Mode.ROUTE or 4 not in versions:
        return
    for port in bound.ports:
        link = links[port.ifindex]
        if max(link.rp_filter or 0, snapshot.rp_filter) == _STRICT and (
            who := _silenced(bound, port, snapshot)
        ):
            yield Notice(
                "rp-filter",
                f"rp_filter is strict on {port.name}, so the kernel drops what comes there from {who}",
                _remedy(port.name, "rp_filter", 2),
            )
        if link.proxy_arp or snapshot.proxy_arp:
            where = port.name if link.proxy_arp else "all"
            yield Notice(
                "proxy-arp",
                f"proxy_arp is on for {port.name}: the kernel answers there for all that it routes by other "
                "interfaces, whatever the rules say",
                _remedy(where, "proxy_arp", 0),
            )


def _remedy(name: str, key: str, value: int) -> str:
    separator = "/" if "." in name else "."
    return f"sysctl -w {separator.join(('net', 'ipv4', 'conf', name, key))}={value}"


def _silenced(bound: Bound, port: Port, snapshot: Snapshot) -> str:
    """Whose packets the kernel would not send back by the port that they come in by; "" for nobody's."""
    if port.role is Role.DOWNSTREAM:
        # A learned host has a route, and its first question is what it is learned from.
        return (
            "hosts that it routes elsewhere, as `routes: false` leaves them"
            if bound.group.routes is None
            else ""
        )
    default = any(
        not route.prefix_length and len(route.destination) == 4 and route.ifindex == port.ifindex
        for route in snapshot.routes
    )
    return "" if default else "askers beyond its subnets, since no default route leaves by it"

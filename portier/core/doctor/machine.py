"""Checks of the kernel's settings, and of what else on the machine changes them."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Final

from portier.core.doctor.facts import CannotTellError, Facts, Setup, known
from portier.core.doctor.finding import Check, Finding, problem, warning
from portier.core.model import Bound, Link, Mode, Port, Role, Sysctls
from portier.core.plan import PROTOCOL

_RA: Final = 9  # rtm_protocol of what Router Advertisements make
_NETWORKD: Final = "/etc/systemd/networkd.conf.d/portier.conf"


def sysctl_paths(setup: Setup) -> tuple[str, ...]:
    """The sysctls that checks go by and no snapshot shows."""
    names = [port.name for of in setup.reports for port in of.ports]
    return (
        "net/ipv6/conf/all/proxy_ndp",
        *(f"net/ipv6/conf/{name}/{key}" for name in names for key in ("disable_ipv6", "proxy_ndp")),
    )


def _routing(facts: Facts, version: int) -> Iterator[tuple[Bound, Port, Link]]:
    """The ports between which the kernel has to forward packets of one version of IP."""
    links = {link.ifindex: link for link in known(facts.snapshot).links}
    for bound in known(facts.setup).bounds.values():
        versions = {rule.version for rule in bound.group.rules}
        if bound.group.mode is Mode.ROUTE and version in versions:
            for port in bound.ports:
                yield bound, port, links[port.ifindex]


def _forwarding(facts: Facts) -> Iterator[Finding]:
    """Linux ip6_forward goes by the switch of all interfaces, or force_forwarding of the one that a packet
    comes in by; IPv4 by that interface's own switch."""
    snapshot = known(facts.snapshot)
    if known(facts.daemon) is None and known(facts.config).sysctls is Sysctls.MANAGE:
        raise CannotTellError("no daemon runs, which would turn forwarding on")
    for version in (6, 4):
        for _, port, link in _routing(facts, version):
            if version == 4:
                on, key = link.forwarding4, f"net/ipv4/conf/{port.name}/forwarding"
            elif snapshot.force_forwarding:
                on = snapshot.forwarding or link.force_forwarding
                key = f"net/ipv6/conf/{port.name}/force_forwarding"
            else:
                on, key = snapshot.forwarding, "net/ipv6/conf/all/forwarding"
            if not on:
                name = key if "." in key else key.replace("/", ".")
                yield problem(
                    port.name,
                    f"the kernel does not forward IPv{version} packets that come in there",
                    f"{name} = 0",
                    f"sysctl -w {name}=1",
                )


def _accept_ra(facts: Facts) -> Iterator[Finding]:
    """A router takes no RAs unless accept_ra is 2, so what it got from them runs out."""
    snapshot = known(facts.snapshot)
    for _, port, link in _routing(facts, 6):
        if port.role is not Role.UPSTREAM or not link.forwarding or link.accept_ra != 1:
            continue
        defaults = [
            route
            for route in snapshot.routes
            if route.ifindex == port.ifindex and len(route.destination) == 16 and not route.prefix_length
        ]
        if any(route.protocol != _RA for route in defaults):
            continue
        name = f"net.ipv6.conf.{port.name}.accept_ra"
        name = name.replace(".", "/") if "." in port.name else name
        report = problem if defaults else warning
        yield report(
            port.name,
            "Router Advertisements are ignored there because the interface forwards, so this machine "
            + ("loses its IPv6 default route" if defaults else "has no IPv6 default route"),
            f"accept_ra = 1 and forwarding = {link.forwarding}",
            f"sysctl -w {name}=2",
        )


def _proxy_entries(facts: Facts) -> Iterator[Finding]:
    """Proxy entries that Portier did not make, on its ports."""
    snapshot, setup = known(facts.snapshot), known(facts.setup)
    names = {port.ifindex: port.name for bound in setup.bounds.values() for port in bound.ports}
    for address, ifindex, protocol in sorted(snapshot.proxies):
        if ifindex not in names or protocol == PROTOCOL:
            continue
        name, said = names[ifindex], ip_address(address)
        switches = (f"net/ipv6/conf/{name}/proxy_ndp", "net/ipv6/conf/all/proxy_ndp")
        if len(address) == 16 and not any(facts.sysctls.get(path) == "1" for path in switches):
            continue  # it rests
        yield warning(
            name,
            f"the kernel answers there for {said}, whatever the rules say",
            f"somebody made a proxy entry (ip neigh show proxy dev {name})",
            f"ip neigh del proxy {said} dev {name}",
        )


def _networkd(facts: Facts) -> Iterator[Finding]:
    networkd = known(facts.networkd)
    if networkd is None:
        return
    bounds = known(facts.setup).bounds.values()
    managed = [
        port.name for bound in bounds for port in bound.ports if port.ifindex not in networkd.unmanaged
    ]
    keys = []
    if networkd.routes and managed:
        keys.append("ManageForeignRoutes")
    if networkd.rules and bounds:
        keys.append("ManageForeignRoutingPolicyRules")
    if keys:
        lines = "".join(f"{key}=no\\n" for key in keys)
        yield warning(
            "systemd-networkd",
            "it removes the routes and rules of others whenever it configures a link; Portier puts its own "
            "back, but packets are lost meanwhile",
            " and ".join(f"{key}= is on" for key in keys)
            + (f", and it manages {' '.join(managed)}" if managed else ""),
            f"mkdir -p /etc/systemd/networkd.conf.d && printf '[Network]\\n{lines}' > {_NETWORKD} && "
            "systemctl restart systemd-networkd",
        )


CHECKS: Final = (
    Check("forwarding", "the kernel forwards between the ports", _forwarding),
    Check("accept-ra", "an upstream that lives on Router Advertisements accepts them", _accept_ra),
    Check("proxy-entries", "nobody else has proxy entries on the ports", _proxy_entries),
    Check("networkd", "systemd-networkd leaves foreign routes and rules alone", _networkd),
)

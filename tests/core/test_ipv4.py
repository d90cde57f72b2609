"""What the kernel's own settings for IPv4 do beside Portier's rules."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address

import pytest

from portier.core import plan
from portier.core.model import Config, Group, KernelRoute, Mode, Rule
from portier.core.plan import Memory
from tests.fakes import FakeKernel

BOTH = (Rule(prefix=IPv4Network("192.0.2.0/24")), Rule(prefix=IPv6Network("2001:db8:7::/64")))


@pytest.fixture
def kernel() -> FakeKernel:
    """An uplink with a default route, and a guest's port."""
    made = FakeKernel()
    made.add_link("eth0")
    made.add_address("eth0", "192.0.2.1/24")
    made.add_link("tap-3")
    gateway = ip_address("192.0.2.254").packed
    made.routes = [KernelRoute(bytes(4), 0, made.index("eth0"), gateway, 254, 0, 3)]
    return made


def warnings(kernel: FakeKernel, **more: object) -> list[str]:
    """What is said of a group with an upstream and a downstream."""
    group = Group(name="guests", upstream=("eth0",), downstream=("tap-3",), **{"rules": BOTH, **more})  # type: ignore[arg-type]
    _, report, _ = plan.desired(Config(groups=(group,)), kernel.snapshot(), Memory(), now=0.0)
    return [text for text in report.groups[0].warnings if "rp_filter" in text or "proxy_arp" in text]


def test_a_strict_filter_harms_nobody_whose_way_back_is_the_way_in(kernel: FakeKernel) -> None:
    """Askers on and beyond the upstream's subnet, and hosts behind, which have their host routes."""
    kernel.rp_filter = 1
    assert not warnings(kernel)


def test_a_strict_filter_silences_askers_beyond_the_subnets_of_an_uplink_without_default_route(
    kernel: FakeKernel,
) -> None:
    """The larger of the interface's value and that of all counts: loose for either is loose."""
    kernel.routes = []
    kernel.set_sysctl("net/ipv4/conf/eth0/rp_filter", "1")
    (warning,) = warnings(kernel)
    assert warning == (
        "rp_filter is strict on eth0, so the kernel drops what comes there from askers beyond its subnets, "
        "since no default route leaves by it: sysctl -w net.ipv4.conf.eth0.rp_filter=2"
    )
    kernel.rp_filter = 2
    assert not warnings(kernel)


def test_a_strict_filter_silences_hosts_without_host_routes(kernel: FakeKernel) -> None:
    """With `routes: false` the kernel routes them to the upstream."""
    kernel.rp_filter = 1
    (warning,) = warnings(kernel, routes=None)
    assert warning.startswith("rp_filter is strict on tap-3, so the kernel drops what comes there from hosts")


def test_proxy_arp_of_somebody_else_is_told(kernel: FakeKernel) -> None:
    """Of a port, or of all interfaces."""
    kernel.set_sysctl("net/ipv4/conf/tap-3/proxy_arp", "1")
    (warning,) = warnings(kernel)
    assert warning == (
        "proxy_arp is on for tap-3: the kernel answers there for all that it routes by other interfaces, "
        "whatever the rules say: sysctl -w net.ipv4.conf.tap-3.proxy_arp=0"
    )
    kernel.set_sysctl("net/ipv4/conf/tap-3/proxy_arp", "0")
    kernel.proxy_arp = 1
    assert [text.rpartition(": ")[2] for text in warnings(kernel)] == [
        "sysctl -w net.ipv4.conf.all.proxy_arp=0"
    ] * 2


def test_only_ipv4_in_mode_route_is_concerned(kernel: FakeKernel) -> None:
    """Nothing of it matters to IPv6, or where IPv4 is not proxied."""
    kernel.proxy_arp = kernel.rp_filter = 1
    kernel.routes = []
    assert not warnings(kernel, rules=BOTH[1:])
    assert not warnings(kernel, rules=BOTH[1:], mode=Mode.RELAY)


def test_a_setting_that_changes_is_noticed(kernel: FakeKernel) -> None:
    """Though nothing else has changed since the last look."""
    config = Config(groups=(Group(name="guests", upstream=("eth0",), downstream=("tap-3",), rules=BOTH),))
    snapshot = kernel.snapshot()
    _, report, memory = plan.desired(config, snapshot, Memory(), now=0.0)
    kernel.proxy_arp = 1
    later = kernel.snapshot()
    same = {name: getattr(snapshot, name) for name in ("links", "addresses", "routes")}
    _, report, _ = plan.desired(config, replace(later, **same), memory, now=0.0)
    assert any("proxy_arp" in text for text in report.groups[0].warnings)

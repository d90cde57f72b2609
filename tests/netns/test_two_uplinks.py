"""Two uplinks as the example `two-uplinks.yaml` has them."""

from __future__ import annotations

from tests.netns.lab import ROOT, Host, Lab
from tests.netns.scenes import echo_requests

EXAMPLE = ROOT / "examples" / "two-uplinks.yaml"
WORLD = "2001:db8:ffff::1"  # a host that both routers lead to
ADDRESSES = {"blue": "2001:db8:a::10", "red": "2001:db8:b::10"}


def test_each_guest_uses_its_own_uplink(lab: Lab) -> None:
    """With the example's configuration alone each guest is found by its router, and what it sends leaves by
    its own uplink, whoever it is for."""
    p = lab.host("p")
    routers: dict[str, Host] = {}
    guests: dict[str, Host] = {}
    for group, net, uplink in (("blue", "2001:db8:a::", "eth0"), ("red", "2001:db8:b::", "eth1")):
        router = routers[group] = lab.host(f"router-{group}")
        lab.link(router, "eth0", p, uplink)
        router.add("eth0", "fe80::1/64")
        router.add("eth0", f"{net}1/64")
        router.add("lo", f"{WORLD}/128")
        p.add(uplink, f"{net}2/64")
        guest = guests[group] = lab.host(f"guest-{group}")
        lab.link(guest, "eth0", p, f"{group}-web")
        guest.add("eth0", f"{ADDRESSES[group]}/64")
        p.ip(f"-6 route add default via fe80::1 dev {uplink} metric {1024 if group == 'blue' else 2048}")
        guest.ip(f"-6 route add default via {p.link_local(f'{group}-web')} dev eth0")
    portier = lab.portier(EXAMPLE.read_text(), on=p)
    portier.wait_ports("eth0", "blue-web", group="blue")
    portier.wait_ports("eth1", "red-web", group="red")
    captures = {group: router.capture("eth0") for group, router in routers.items()}
    for group, address in ADDRESSES.items():
        ping = routers[group].ping(address)
        assert ping, ping.output
        ping = guests[group].ping(WORLD)
        assert ping, ping.output
    hosts = {route["dst"]: route["dev"] for route in p.routes("proto 135")}
    assert {address: hosts[address] for address in ADDRESSES.values()} == {
        ADDRESSES["blue"]: "blue-web",
        ADDRESSES["red"]: "red-web",
    }
    for group, other in (("blue", "red"), ("red", "blue")):
        assert echo_requests(captures[group]) == [ADDRESSES[group]], "its own guest's, and nobody else's"
        assert not captures[group].nd(135, ADDRESSES[other]), "solicitations do not cross"

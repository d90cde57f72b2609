"""The example of floating addresses: two compute hosts on one provider link, and an address that moves.

A namespace stands for the one that each compute host has for floating addresses, with Portier in it, and one
behind it for a router namespace, which has the floating address itself; a bridge is the provider's link.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

import pytest
from scapy.layers.l2 import ARP, Ether

from tests.netns.lab import ROOT, Host, Lab, wait_for
from tests.netns.scenes import OVERRIDE, advertise

EXAMPLE = ROOT / "examples" / "floating-addresses.yaml"
FLOATING = {4: "203.0.113.21", 6: "2001:db8:7::21"}
ROUTER = {4: "203.0.113.1", 6: "2001:db8:7::1"}


@dataclass
class Compute:
    """A compute host's namespace for floating addresses, and the router namespace behind it."""

    fip: Host
    inner: Host

    def take(self) -> None:
        """Have the floating address: by routes, as the agent makes them."""
        for version, via in ((4, "169.254.31.29"), (6, self.inner.link_local("rfp"))):
            length = 32 if version == 4 else 128
            self.fip.ip(f"-{version} route add {FLOATING[version]}/{length} via {via} dev fpr-1")

    def release(self) -> None:
        """Have it no more."""
        for version, length in ((4, 32), (6, 128)):
            self.fip.ip(f"-{version} route delete {FLOATING[version]}/{length} dev fpr-1")


def provider(lab: Lab) -> tuple[Host, list[Compute]]:
    """The provider's router, and two compute hosts on its link, with Portier on both."""
    switch, router = lab.host("switch"), lab.host("router")
    lab.bridge(switch, "br0")

    def plug(host: Host, interface: str, number: int) -> None:
        lab.link(host, interface, switch, f"port{number}")
        lab.plug(switch, "br0", f"port{number}")
        host.ip(f"address add 203.0.113.{number}/24 dev {interface}")
        host.add(interface, f"2001:db8:7::{number}/64")

    plug(router, "eth0", 1)
    computes = []
    for number in (2, 3):
        fip, inner = lab.host(f"fip{number}"), lab.host(f"inner{number}")
        plug(fip, "fg0", number)
        lab.link(inner, "rfp", fip, "fpr-1")
        fip.ip("address add 169.254.31.28/31 dev fpr-1")
        inner.ip("address add 169.254.31.29/31 dev rfp")
        inner.ip(f"address add {FLOATING[4]}/32 dev lo")
        inner.add("lo", f"{FLOATING[6]}/128")
        inner.ip(f"route add default via 169.254.31.28 src {FLOATING[4]}")
        inner.ip(f"-6 route add default via {fip.link_local('fpr-1')} dev rfp src {FLOATING[6]}")
        daemon = lab.portier(EXAMPLE.read_text(), on=fip, name=f"portier{number}")
        daemon.wait_ports("fg0", "fpr-1")
        computes.append(Compute(fip, inner))
    return router, computes


def entry(router: Host, version: int) -> str:
    """The link-layer address that the router has for the floating address, "" for none."""
    entries = router.ip_json(f"-{version} neigh show {FLOATING[version]} dev eth0")
    return next((str(found["lladdr"]) for found in entries if "lladdr" in found), "")


def ping(host: Host, version: int, target: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Ping over one family, a tenth of a second apart."""
    return host.run(["ping", f"-{version}", "-n", "-i", "0.1", "-W", "2", *options, target], check=False)


@pytest.mark.parametrize("version", [4, 6])
def test_answered_where_the_route_is(lab: Lab, version: int) -> None:
    """Only the host that has the route answers on the provider's link, with its own link-layer address; both
    directions work, and nobody answers for an address without a route."""
    router, (first, second) = provider(lab)
    first.take()
    assert ping(router, version, FLOATING[version], "-c", "2").returncode == 0
    assert entry(router, version) == first.fip.mac("fg0")
    assert ping(first.inner, version, ROUTER[version], "-c", "2", "-I", FLOATING[version]).returncode == 0
    other = {4: "203.0.113.22", 6: "2001:db8:7::22"}[version]
    assert ping(router, version, other, "-c", "1").returncode != 0
    assert not second.fip.ip_json(f"-{version} neigh show proxy")


@pytest.mark.parametrize("told", [False, True], ids=["untold", "told"])
@pytest.mark.parametrize("version", [4, 6])
def test_an_address_moves_while_it_is_pinged(lab: Lab, version: int, *, told: bool) -> None:
    """The routes go from one host to the other: at most a second of pings is lost, and a router that is told
    has the new host's link-layer address then."""
    router, (first, second) = provider(lab)
    first.take()
    assert ping(router, version, FLOATING[version], "-c", "2").returncode == 0
    command = ["ping", f"-{version}", "-n", "-i", "0.1", "-c", "60", "-W", "1", FLOATING[version]]
    pinging = router.popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    router.run(["sleep", "1"])
    first.release()
    second.take()
    if told:
        if version == 4:
            # As iputils' arping -A makes it, which is not here beside the other program of that name.
            mac = second.fip.mac("fg0")
            address = {"psrc": FLOATING[4], "pdst": FLOATING[4], "hwsrc": mac, "hwdst": mac}
            second.fip.inject("fg0", Ether(src=mac, dst="ff:ff:ff:ff:ff:ff") / ARP(op=2, **address))
        else:
            second.fip.inject("fg0", advertise(second.fip, FLOATING[6], interface="fg0", flags=OVERRIDE))
        wait_for(lambda: entry(router, version) == second.fip.mac("fg0"), 3, "the new host")
    output, _ = pinging.communicate(timeout=60)
    received = {int(number) for number in re.findall(r"icmp_seq=(\d+) ttl=", output)}
    lost = 60 - len(received)
    assert lost <= 10, output
    assert max(received) >= 58, output

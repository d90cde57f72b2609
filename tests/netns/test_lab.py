"""The lab itself, proven with the kernel's own means before any daemon is trusted to it."""

from __future__ import annotations

from scapy.layers.inet6 import ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import Ether

from tests.netns.lab import (
    Lab,
    checksum_is_right,
    eui64,
    multicast_mac,
    options_of,
    solicited_node,
    wait_for,
)


def test_link_carries_ping(lab: Lab) -> None:
    """Two hosts on one cable reach each other, by link-local and by global addresses."""
    a, b = lab.host("a"), lab.host("b")
    lab.link(a, "eth0", b, "eth0", mac="02:00:00:00:00:0a")
    a.add("eth0", "2001:db8::a/64")
    b.add("eth0", "2001:db8::b/64")
    assert a.mac("eth0") == "02:00:00:00:00:0a"
    assert a.link_local("eth0") == eui64("02:00:00:00:00:0a")
    ping = a.ping("2001:db8::b", count=2)
    assert ping, ping.output
    assert ping.first <= ping.elapsed
    assert not a.ping("2001:db8::c", timeout=0.1)


def test_kernel_proxy_answers_and_capture_shows_it(lab: Lab) -> None:
    """Inject, capture and the frame helpers agree with the kernel's proxy on what a good answer is."""
    u, p, h = lab.host("u"), lab.host("p", forwarding=True), lab.host("h")
    lab.link(u, "eth0", p, "up0")
    lab.link(p, "down0", h, "eth0")
    target = "2001:db8::100"
    h.add("eth0", f"{target}/64")
    p.sysctl("net/ipv6/conf/up0/proxy_ndp", 1)
    p.sysctl("net/ipv6/neigh/up0/proxy_delay", 0)
    p.ip(f"route add {target}/128 dev down0", f"neigh add proxy {target} dev up0")
    captured = u.capture("eth0")
    mac, group = u.mac("eth0"), solicited_node(target)
    u.inject(
        "eth0",
        Ether(src=mac, dst=multicast_mac(group))
        / IPv6(src=u.link_local("eth0"), dst=group, hlim=255)
        / ICMPv6ND_NS(tgt=target)
        / ICMPv6NDOptSrcLLAddr(lladdr=mac),
    )
    asked = captured.wait_solicitation(target, outgoing=True)
    answered = captured.wait_advertisement(target, outgoing=False)
    assert asked.time < answered.time
    assert checksum_is_right(asked.raw)
    assert checksum_is_right(answered.raw)
    assert not checksum_is_right(answered.raw[:56] + b"\0\0" + answered.raw[58:])
    assert options_of(answered.raw) == [(2, bytes.fromhex(p.mac("up0").replace(":", "")))]
    assert answered.source == p.link_local("up0")


def test_dad_fails_on_a_taken_address(lab: Lab) -> None:
    """A newcomer that uses real DAD sees that its address is taken; one that is free it gets."""
    a, b = lab.host("a"), lab.host("b")
    lab.link(a, "eth0", b, "eth0")
    a.add("eth0", "2001:db8::1/64")
    b.use_dad("eth0")
    b.add("eth0", "2001:db8::1/64", dad=True)
    b.add("eth0", "2001:db8::2/64", dad=True)
    wait_for(lambda: b.address_state("eth0", "2001:db8::1") == "dadfailed", 5, "dadfailed")
    wait_for(lambda: b.address_state("eth0", "2001:db8::2") == "valid", 5, "valid")
    assert b.address_state("eth0", "2001:db8::3") == "absent"


def test_bridge_joins_links(lab: Lab) -> None:
    """Three hosts on a bridge in a fourth namespace share one link."""
    switch, a, b = lab.host("switch"), lab.host("a"), lab.host("b")
    lab.bridge(switch, "br0")
    for host, port in ((a, "p1"), (b, "p2")):
        lab.link(host, "eth0", switch, port)
        lab.plug(switch, "br0", port)
    a.add("eth0", "2001:db8::a/64")
    b.add("eth0", "2001:db8::b/64")
    assert a.ping("2001:db8::b")

"""The prefix of the upstream changes while the daemon runs: `upstream` follows."""

from __future__ import annotations

import pytest
from scapy.layers.inet6 import ICMPv6ND_RA, ICMPv6NDOptPrefixInfo, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import Ether

from tests.netns.lab import Lab, wait_for
from tests.netns.scenes import Scene, config, solicit, vps

OLD, NEW = "2001:db8:7::", "2001:db8:8::"
GRACE = "timers: {prefix_grace: 2s}"


def live(scene: Scene) -> dict[str, float | None]:
    """The prefixes that `upstream` stands for now, with the grace they have left."""
    return {entry["prefix"]: entry["grace_left"] for entry in scene.portier.group()["live"]}


def both(scene: Scene) -> None:
    """Give everybody addresses of both prefixes."""
    scene.guests[1].add("eth0", f"{NEW}11/64")
    scene.u.add("eth0", f"{NEW}a/64")


@pytest.fixture
def scene(lab: Lab) -> Scene:
    """The usual scene, with the live prefix as its only rule."""
    scene = vps(lab)
    scene.start(config("[upstream]", extra=GRACE))
    both(scene)
    assert live(scene) == {f"{OLD}/64": None}
    assert scene.u.ping(f"{OLD}11")
    assert not scene.u.ping(f"{NEW}11", timeout=0.3)
    return scene


def test_prefix_by_address(scene: Scene) -> None:
    """A new address with its prefix arrives; the old is deprecated, removed, and kept for the grace time."""
    p = scene.p
    p.add("eth0", f"{NEW}2/64")
    wait_for(lambda: f"{NEW}/64" in live(scene), 5, "the new prefix")
    assert scene.u.ping(f"{NEW}11")
    p.ip(f"addr change {OLD}2/64 dev eth0 valid_lft 1000 preferred_lft 0")
    scene.u.ip("neigh flush all")
    assert scene.u.ping(f"{OLD}11"), "deprecated is not gone"
    # A route with a lifetime outlives its address, so that it takes both to be gone.
    p.ip(f"addr del {OLD}2/64 dev eth0")
    p.ip(f"-6 route del {OLD}/64 dev eth0")
    wait_for(lambda: live(scene).get(f"{OLD}/64") is not None, 2, "in its grace time")
    wait_for(lambda: set(live(scene)) == {f"{NEW}/64"}, 6, "only the new prefix")
    scene.u.inject("eth0", solicit(scene.u, f"{OLD}11"))
    wait_for(lambda: scene.portier.count("no-rule") > 0, 5, "no rule any more")
    wait_for(lambda: f"{OLD}11" not in scene.p.host_routes(), 5, "no route any more")
    assert scene.u.ping(f"{NEW}11")


def test_prefix_by_route(scene: Scene) -> None:
    """An on-link route without address counts as well (`noprefixroute`, and networkd's way)."""
    scene.p.ip(f"-6 route add {NEW}/64 dev eth0")
    wait_for(lambda: f"{NEW}/64" in live(scene), 5, "the new prefix")
    assert scene.u.ping(f"{NEW}11") or scene.u.ping(f"{NEW}11")
    scene.p.ip(f"-6 route del {NEW}/64 dev eth0")
    wait_for(lambda: set(live(scene)) == {f"{OLD}/64"}, 6, "the old one alone")


def test_prefix_by_router_advertisement(scene: Scene) -> None:
    """A router announces a new prefix and deprecates the old: the kernel takes it, and `upstream` follows."""
    u = scene.u
    mac = u.mac("eth0")
    u.inject(
        "eth0",
        Ether(src=mac, dst="33:33:00:00:00:01")
        / IPv6(src=u.link_local("eth0"), dst="ff02::1", hlim=255)
        / ICMPv6ND_RA(routerlifetime=1800)
        / ICMPv6NDOptPrefixInfo(prefixlen=64, prefix=OLD, validlifetime=7200, preferredlifetime=0)
        / ICMPv6NDOptPrefixInfo(prefixlen=64, prefix=NEW, validlifetime=7200, preferredlifetime=3600)
        / ICMPv6NDOptSrcLLAddr(lladdr=mac),
    )
    wait_for(lambda: f"{NEW}/64" in live(scene), 5, "the new prefix")
    scene.u.ip("neigh flush all")
    assert scene.u.ping(f"{NEW}11")
    assert scene.p.routes("default"), "the default route of the advertisement is there"


def test_prefix_comes_back_within_its_grace(scene: Scene) -> None:
    """A prefix that returns before its grace is over loses nothing: hosts and routes stay."""
    scene.p.ip(f"addr del {OLD}2/64 dev eth0")
    wait_for(lambda: live(scene).get(f"{OLD}/64") is not None, 2, "in its grace time")
    assert f"{OLD}11" in scene.p.host_routes()
    scene.p.add("eth0", f"{OLD}2/64")
    wait_for(lambda: live(scene) == {f"{OLD}/64": None}, 2, "live again")
    assert f"{OLD}11" in scene.p.host_routes()

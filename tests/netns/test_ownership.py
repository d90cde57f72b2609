"""What Portier makes goes with it; what others made is never touched; what it changed is given back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.netns.lab import Host, Lab, wait_for
from tests.netns.scenes import NET, PROXY, UPSTREAM, Scene, advertise, config, guest, vps

# Counters and clocks, which nobody restores.
VOLATILE = ("route/gc", "stable_secret", "random", "fib_notify", "dst_entries", "neigh/default/gc")


def kernel_state(host: Host) -> dict[str, Any]:
    """All that Portier could have changed in a namespace: routes, rules, entries, sysctls, flags."""
    sysctls = {path: value for path, value in host.sysctls().items() if not any(v in path for v in VOLATILE)}
    routes = [
        {key: value for key, value in route.items() if key not in ("expires", "cache")}
        for route in host.routes()
    ]
    return {
        "routes": sorted(json.dumps(route, sort_keys=True) for route in routes),
        "rules": sorted(json.dumps(rule, sort_keys=True) for rule in host.rules()),
        "proxies": sorted(json.dumps(entry, sort_keys=True) for entry in host.ip_json("neigh show proxy")),
        "links": {
            link["ifname"]: [link["flags"], link.get("allmulti", 0), link.get("promiscuity", 0)]
            for link in host.ip_json("-details link show")
        },
        "sysctls": sysctls,
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Say what differs, rather than that something does."""
    for part, value in before.items():
        if part == "sysctls":
            changed = {path: (value.get(path), after[part].get(path))
                       for path in value.keys() | after[part].keys()
                       if value.get(path) != after[part].get(path)}  # fmt: skip
            assert not changed
        else:
            assert after[part] == value, part


def not_anycast(routes: list[str]) -> list[str]:
    """The routes of a kernel state without those of type anycast."""
    return [route for route in routes if json.loads(route).get("type") != "anycast"]


def in_use(scene: Scene) -> None:
    """Let the daemon learn all there is."""
    for source, target in ((scene.u, guest(1)), (scene.u, guest(2)), (scene.guests[1], UPSTREAM)):
        ping = source.ping(target)
        assert ping, ping.output
    assert scene.p.host_routes() == {guest(1): "tap1", guest(2): "tap2"}


def test_the_kernel_is_changed_while_it_runs(lab: Lab) -> None:
    """The other tests would pass without a daemon: so show first that there is something to give back."""
    scene = vps(lab)
    before = kernel_state(scene.p)
    scene.start(config())
    in_use(scene)
    during = kernel_state(scene.p)
    assert during["rules"] != before["rules"]
    assert during["sysctls"] != before["sysctls"]
    rules = [rule for rule in scene.p.rules() if str(rule.get("protocol")) == "135"]
    assert {rule["iif"] for rule in rules} == {"eth0", "tap1", "tap2"}


def test_sigterm_leaves_the_kernel_as_it_was(lab: Lab) -> None:
    """After a clean stop: routes, rules, sysctls and flags of before, and no socket left in the directory."""
    scene = vps(lab)
    before = kernel_state(scene.p)
    portier = scene.start(config())
    in_use(scene)
    assert portier.stop() == 0
    assert_same(before, kernel_state(scene.p))
    assert not (portier.runtime / "control.sock").exists()


@pytest.mark.parametrize("forwarding", [0, 1])
def test_interfaces_get_their_own_forwarding_back(lab: Lab, forwarding: int) -> None:
    """Interfaces whose own values differ from each other and from the global switch have them after."""
    scene = vps(lab)
    p = scene.p
    p.sysctl("net/ipv6/conf/all/forwarding", forwarding)
    p.sysctl("net/ipv6/conf/eth0/forwarding", 1 - forwarding)
    p.sysctl("net/ipv6/conf/tap2/forwarding", 1 - forwarding)
    p.sysctl("net/ipv6/conf/eth0/accept_ra", 1)
    p.sysctl("net/ipv6/conf/tap1/accept_ra", 2)
    lab.link(lab.host("x"), "eth0", p, "other0")
    before = kernel_state(p)
    portier = scene.start(config())
    in_use(scene)
    assert (
        p.sysctl("net/ipv6/conf/other0/accept_ra")
        == before["sysctls"]["/proc/sys/net/ipv6/conf/other0/accept_ra"]
    )
    assert portier.stop() == 0
    assert_same(before, kernel_state(p))


def number4(scene: Scene) -> None:
    """Give everybody an IPv4 address of one subnet."""
    for host, number in ((scene.u, 10), (scene.p, 2), (scene.guests[1], 51), (scene.guests[2], 52)):
        host.add("eth0", f"192.0.2.{number}/24")


@pytest.mark.parametrize("forwarding", [0, 1])
def test_interfaces_get_their_own_ipv4_forwarding_back(lab: Lab, forwarding: int) -> None:
    """Each port of a group with IPv4 rules forwards by its own switch; the global one, what it would
    overwrite and the interfaces of others are never touched."""
    scene = vps(lab)
    p = scene.p
    number4(scene)
    lab.link(lab.host("x"), "eth0", p, "other0")
    p.sysctl("net/ipv4/ip_forward", forwarding)
    p.sysctl("net/ipv4/conf/eth0/forwarding", 1 - forwarding)
    p.sysctl("net/ipv4/conf/other0/forwarding", 1 - forwarding)
    before = kernel_state(p)
    portier = scene.start(config("[192.0.2.0/24]"))
    for number in (51, 52):
        ping = scene.u.ping(f"192.0.2.{number}")
        assert ping, ping.output
    during = kernel_state(p)["sysctls"]
    changed = {path for path in during if during[path] != before["sysctls"].get(path)}
    off = ("eth0",) if forwarding else ("tap1", "tap2")
    assert changed == {f"/proc/sys/net/ipv4/conf/{port}/forwarding" for port in off}
    assert portier.stop() == 0
    assert_same(before, kernel_state(p))


def test_group_edited_out_gives_its_sysctls_back(lab: Lab) -> None:
    """What is no longer needed is restored while the daemon runs on."""
    scene = vps(lab)
    before = kernel_state(scene.p)
    portier = scene.start(config())
    in_use(scene)
    portier.write("version: 1\ngroups: {}\n")
    wait_for(
        lambda: not scene.p.host_routes() and kernel_state(scene.p)["rules"] == before["rules"], 5, "gone"
    )
    wait_for(lambda: kernel_state(scene.p)["sysctls"] == before["sysctls"], 5, "sysctls restored")
    assert_same(before, kernel_state(scene.p))


def test_sysctl_changed_by_somebody_else_is_left(lab: Lab) -> None:
    """A sysctl that is not as Portier set it any more belongs to whoever set it since."""
    scene = vps(lab)
    before = kernel_state(scene.p)["sysctls"]
    portier = scene.start(config())
    in_use(scene)
    during = kernel_state(scene.p)["sysctls"]
    changed = {path for path in during if during[path] != before.get(path)}
    path = next(path for path in sorted(changed) if "tap1" in path)
    short = path.removeprefix("/proc/sys/")
    # While it is stopped hard nobody can set it back again.
    portier.kill9()
    scene.p.sysctl(short, before[path])
    scene.p.sysctl(short, during[path])
    other = next(path for path in sorted(changed) if "tap2" in path)
    scene.p.sysctl(other.removeprefix("/proc/sys/"), before[other])
    done = portier.cli("cleanup")
    assert done.returncode == 0, done.stderr
    assert kernel_state(scene.p)["sysctls"] == before


@pytest.mark.parametrize("config_text", [config(), "version: 1\ngroups: {}\n"], ids=["same", "empty"])
def test_next_start_after_kill(lab: Lab, config_text: str) -> None:
    """After a kill -9 the next start adopts or removes what was left; its end leaves nothing."""
    scene = vps(lab)
    before = kernel_state(scene.p)
    portier = scene.start(config())
    in_use(scene)
    portier.kill9()
    assert scene.p.host_routes(), "a kill leaves things behind"
    scene.guests[2].ip(f"addr del {guest(2)}/64 dev eth0")
    portier.config.write_text(config_text)
    portier.start()
    if "lan" in config_text:
        portier.wait_ports("eth0", "tap1", "tap2")
        wait_for(lambda: scene.u.ping(guest(1), timeout=1), 5, "works again")
        wait_for(lambda: guest(2) not in scene.p.host_routes(), 10, "the stale route goes")
    else:
        wait_for(lambda: not scene.p.host_routes(), 10, "the stale routes go")
    assert portier.stop() == 0
    assert_same(before, kernel_state(scene.p))


def test_cleanup_alone_after_kill(lab: Lab) -> None:
    """`portier cleanup` does it too, and refuses while a daemon runs."""
    scene = vps(lab)
    before = kernel_state(scene.p)
    portier = scene.start(config())
    in_use(scene)
    refused = portier.cli("cleanup")
    assert refused.returncode not in (0, 64)
    assert "Traceback" not in refused.stderr
    assert scene.p.host_routes() == {guest(1): "tap1", guest(2): "tap2"}
    portier.kill9()
    for _ in range(2):
        done = portier.cli("cleanup")
        assert done.returncode == 0, done.stderr
        assert_same(before, kernel_state(scene.p))


def test_links_gone_between_kill_and_cleanup(lab: Lab) -> None:
    """Interfaces that vanished meanwhile, or came back with another index, are no trouble."""
    scene = vps(lab)
    portier = scene.start(config())
    in_use(scene)
    portier.kill9()
    scene.guests[1].ip("link del eth0")
    scene.p.ip("link del tap2")
    scene.add_guest(2)
    scene.p.ip(f"-6 route add {guest(2)}/128 dev tap2 proto 135 metric 4389")
    before = kernel_state(scene.p)
    done = portier.cli("cleanup")
    assert done.returncode == 0, done.stderr
    after = kernel_state(scene.p)
    # Those to the subnet-router anycast address are the kernel's, which has them while it forwards.
    assert not_anycast(after["routes"]) == not_anycast(before["routes"]), (
        "the same route on a new link is somebody else's"
    )
    assert not [rule for rule in scene.p.rules() if str(rule.get("protocol")) == "135"]


FOREIGN = [
    f"route add {guest(1)}/128 dev tap1 metric 4389 proto static",
    f"route add {guest(2)}/128 dev tap2 metric 4389 proto 135",
    f"route add {NET}77/128 dev tap1 metric 4389 proto 135",
    f"route add {NET}78/128 dev tap1 metric 17 proto 135",
    f"route add {NET}79/128 dev tap1 metric 4389 proto 135 table 100",
    "rule add iif tap1 from fe80::/10 blackhole priority 30000 protocol 135",
    "rule add iif tap1 to 2001:db8:99::/64 table 100 priority 30001 protocol 135",
    f"neigh add proxy {guest(1)} dev eth0",
    f"neigh add proxy {NET}77 dev eth0 protocol 135",
]


@pytest.mark.parametrize("end", ["stop", "kill and start", "kill and cleanup"])
def test_what_others_made_survives(lab: Lab, end: str) -> None:
    """Foreign routes, rules and entries for the same addresses, with the same metric and even with our
    protocol number, survive start, use, reloads, stop, kill and cleanup."""
    scene = vps(lab)
    p = scene.p
    for command in FOREIGN:
        p.ip(f"-6 {command}")
    before = kernel_state(p)
    portier = scene.start(config())
    for target in (guest(1), guest(2)):
        ping = scene.u.ping(target)
        assert ping, ping.output
    neighbors = portier.neighbors()
    assert neighbors[guest(1)]["route"] == "foreign", neighbors
    assert neighbors[guest(2)]["route"] == "foreign", neighbors
    portier.write(config(f'["{NET}/64", "2001:db8:9::/64"]'))
    wait_for(lambda: portier.group()["rules"] == 2, 5, "reloaded")
    if end == "stop":
        assert portier.stop() == 0
    else:
        portier.kill9()
        if end == "kill and start":
            portier.start()
            portier.wait_ports("eth0", "tap1", "tap2")
            assert portier.stop() == 0
        else:
            assert portier.cli("cleanup").returncode == 0
    assert_same(before, kernel_state(p))


@pytest.mark.parametrize("protocol", ["static", "135"])
def test_what_others_made_survives_a_move(lab: Lab, protocol: str) -> None:
    """A host goes to another port, and its address has somebody else's route by the old one, with the same
    metric and maybe the same protocol number: Portier knows where the host is, and leaves the route."""
    scene = vps(lab)
    scene.p.ip(f"-6 route add {guest(1)}/128 dev tap1 metric 4389 proto {protocol}")
    before = kernel_state(scene.p)
    portier = scene.start(config())
    ping = scene.u.ping(guest(1))
    assert ping, ping.output
    assert portier.neighbors()[guest(1)]["route"] == "foreign"
    scene.guests[1].ip(f"addr del {guest(1)}/64 dev eth0")
    scene.guests[2].add("eth0", f"{guest(1)}/64")
    scene.guests[2].inject("eth0", advertise(scene.guests[2], guest(1)))
    wait_for(lambda: portier.neighbors()[guest(1)]["port"] == "tap2", 10, "moved")
    during = kernel_state(scene.p)["routes"]
    foreign = next(route for route in before["routes"] if json.loads(route)["dst"] == guest(1))
    assert foreign in during
    assert portier.stop() == 0
    assert_same(before, kernel_state(scene.p))


def test_check_only_writes_no_sysctl(lab: Lab) -> None:
    """With `sysctls: check` none is written, and what is missing is reported."""
    scene = vps(lab)
    before = kernel_state(scene.p)["sysctls"]
    portier = scene.start(config(head="sysctls: check"))
    assert kernel_state(scene.p)["sysctls"] == before
    shown = json.dumps(portier.status())
    assert "forwarding" in shown
    scene.p.sysctl("net/ipv6/conf/all/forwarding", 1)
    ping = scene.u.ping(guest(1))
    assert ping, ping.output


def test_table_and_metric_of_the_configuration(lab: Lab) -> None:
    """Host routes go where the configuration says, with its number, and from there again."""
    scene = vps(lab)
    scene.p.ip(f"-6 rule add to {NET}/64 lookup 100 priority 1000")
    before = kernel_state(scene.p)
    portier = scene.start(config(extra="routes: {table: 100, metric: 77, protocol: 222}"))
    ping = scene.u.ping(guest(1))
    assert ping, ping.output
    routes = scene.p.ip_json("-6 route show table 100")
    assert [(route["dst"], route["metric"], route["protocol"]) for route in routes] == [(guest(1), 77, "222")]
    assert portier.stop() == 0
    assert_same(before, kernel_state(scene.p))


def test_own_address_is_never_learned(lab: Lab) -> None:
    """No host route for what belongs to the proxy or the next hop, whatever is asked."""
    scene = vps(lab)
    scene.start(config())
    for target in (PROXY, UPSTREAM):
        scene.guests[1].ping(target, timeout=1)
    assert scene.p.host_routes().keys() <= {guest(1)}

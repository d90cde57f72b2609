"""`portier doctor` finds each cause of silence when it is provoked on real kernels, and is silent on a setup
that is in order.  Those of packet filters, bridges and other daemons are in test_doctor_firewall.py.

What follows from the configuration and the machine is provoked where no daemon runs, one cause after the
other on one proxy, for doctor looks for those alone too; the rest on one that runs.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet6 import (
    ICMPv6ND_RA,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptRDNSS,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import Ether

from portier.core.doctor import machine, ports, process, told, traffic, ways
from tests.netns.lab import Host, Keeper, Lab, wait_for
from tests.netns.scenes import (
    NET,
    OVERRIDE,
    PROXY,
    SOLICITED,
    UPSTREAM,
    Scene,
    advertise,
    config,
    guest,
    solicit,
    vps,
)
from tests.netns.test_relay import relay, rogue

NET4 = "192.0.2"
OTHER = "2001:db8:8::"
PATIENCE = 10.0
Finding = dict[str, str]


def examined(host: Host, where: list[str], *, before: str = "") -> dict[str, Any]:
    """What doctor says; ``before`` is Python that its process runs first."""
    program = f"{before}\nimport sys, portier.cli\nsys.exit(portier.cli.main())"
    done = host.run([sys.executable, "-c", program, "doctor", "--json", *where], check=False, timeout=60)
    assert done.stdout, done.stderr
    diagnosis: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (3 if diagnosis["findings"] else 0)
    return diagnosis


# -- where no daemon runs ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cause:
    """A configuration, what is done on the proxy and taken back after, the check that finds it, and words of
    its finding (or evidence) and remedy."""

    check: str
    config: str
    done: tuple[str, ...] = ()
    undone: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    remedy: str = ""


PLAIN = config()
GROUP4 = f"[{NET4}.16/28]"
# Commands are `ip`'s, or NAME=VALUE for a sysctl.
ADDRESS4 = f"addr add {NET4}.2/24 dev eth0"
NO_ADDRESS4 = f"addr del {NET4}.2/24 dev eth0"

CAUSES = {
    "daemon": Cause("daemon", PLAIN, words=("no daemon runs",), remedy="systemctl start portier"),
    "config": Cause(
        "config", "version: 1\ngroups: {lan: {upstrem: eth0}}\n", words=("upstrem",), remedy="portier check"
    ),
    "upstream": Cause(
        "upstream", config(upstream="eth7"), words=("no usable upstream", "eth7: no such interface")
    ),
    "port-missing": Cause("ports", config(downstream="[tap1, tap7]"), words=("tap7", "no such interface")),
    "port-down": Cause(
        "ports",
        config(downstream="[tap1, tap2]"),
        ("link set tap2 down",),
        ("link set tap2 up",),
        ("waits for it", "down"),
        "ip link set tap2 up",
    ),
    "port-mute": Cause(
        "ports",
        PLAIN,
        ("-6 addr flush dev tap2",),
        ("net/ipv6/conf/tap2/disable_ipv6=1", "net/ipv6/conf/tap2/disable_ipv6=0"),
        ("tap2", "waits for it", "no usable address"),
        "ip addr add fe80::1/64 dev tap2",
    ),
    "port-enslaved": Cause(
        "ports",
        config(downstream="[tap1, tap2]"),
        ("link add br9 type bridge", "link set tap2 master br9"),
        ("link del br9",),
        ("tap2 is refused", "enslaved to br9"),
    ),
    "port-conflict": Cause(
        "ports",
        PLAIN + config(name="other", upstream="", downstream='"tap2*"').partition("groups:\n")[2],
        words=("tap2", "group lan has it"),
        remedy="one group",
    ),
    "downstream": Cause("downstream", config(downstream="nope0"), words=("no port behind", "nope0")),
    "ipv6-off": Cause(
        "ipv6-off",
        config(downstream="[tap1, tap2]"),
        ("net/ipv6/conf/tap2/disable_ipv6=1",),
        ("net/ipv6/conf/tap2/disable_ipv6=0",),
        ("tap2", "IPv6 is off"),
        "sysctl -w net.ipv6.conf.tap2.disable_ipv6=0",
    ),
    "ipv4-address": Cause("ipv4-address", config(GROUP4), words=("no IPv4 address to ask from",)),
    "forwarding": Cause(
        "forwarding",
        config(head="sysctls: check"),
        words=("does not forward IPv6", "tap1"),
        remedy="forwarding=1",
    ),
    "forwarding4": Cause(
        "forwarding",
        config(GROUP4, head="sysctls: check"),
        (ADDRESS4,),
        (NO_ADDRESS4,),
        ("does not forward IPv4",),
        "sysctl -w net.ipv4.conf.eth0.forwarding=1",
    ),
    "accept-ra": Cause(
        "accept-ra",
        PLAIN,
        (
            "-6 route del default",
            "net/ipv6/conf/all/forwarding=1",
            f"-6 route add default via {UPSTREAM} dev eth0 proto ra",
        ),
        ("net/ipv6/conf/all/forwarding=0", f"-6 route replace default via {UPSTREAM} dev eth0"),
        ("Router Advertisements are ignored", "loses its IPv6 default route"),
        "sysctl -w net.ipv6.conf.eth0.accept_ra=2",
    ),
    "proxy-entries": Cause(
        "proxy-entries",
        PLAIN,
        ("net/ipv6/conf/eth0/proxy_ndp=1", f"neigh add proxy {NET}99 dev eth0"),
        (f"neigh del proxy {NET}99 dev eth0", "net/ipv6/conf/eth0/proxy_ndp=0"),
        (f"the kernel answers there for {NET}99",),
        f"ip neigh del proxy {NET}99 dev eth0",
    ),
    "dead-end-host": Cause(
        "dead-end",
        PLAIN,
        (f"-6 route add blackhole {guest(1)}",),
        (f"-6 route del blackhole {guest(1)}",),
        (f"what comes for {guest(1)} ends in a route of type blackhole",),
        f"ip -6 route del blackhole {guest(1)}/128",
    ),
    "dead-end-prefix": Cause(
        "dead-end",
        config(f"[{{allow: {OTHER}/64, answer: routed}}]"),
        ("-6 route add unreachable 2001:db8:8::/48",),
        ("-6 route del unreachable 2001:db8:8::/48",),
        (f"what comes for {OTHER}/64 ends in a route of type unreachable",),
        "ip -6 route del unreachable 2001:db8:8::/48",
    ),
    "routed-nowhere": Cause(
        "routed-nowhere",
        config(f"[{{allow: {OTHER}/64, answer: routed}}]"),
        words=("none of them leaves by a port behind",),
        remedy=f"ip -6 route add {OTHER}/64 dev tap1",
    ),
    "always-hole": Cause(
        "always-hole",
        config(f"[{{allow: {OTHER}/64, answer: always}}]"),
        words=("goes back where it came from",),
        remedy=f"ip -6 route add {OTHER}/64 dev tap1",
    ),
    "always-overlap": Cause(
        "always-overlap",
        config(f"[{{allow: {NET}/64, answer: always}}]"),
        words=("overlaps", "on-link on eth0"),
    ),
    "routed-elsewhere": Cause(
        "routed-elsewhere",
        PLAIN,
        (
            "link add docker0 type bridge",
            "link set docker0 up",
            "-6 addr add 2001:db8:7:0:d::1/80 dev docker0",
        ),
        ("link del docker0",),
        ("2001:db8:7:0:d::/80 is allowed", "docker0, which is no port"),
        "add docker0 to `downstream`",
    ),
    "upstream-prefix": Cause(
        "upstream-prefix", config("[upstream-ipv4]"), words=("eth0 has no on-link prefix",)
    ),
    "kernel-answers": Cause(
        "kernel-answers",
        config(f'[{{allow: "{NET}50", answer: kernel}}]', extra="routes: false"),
        words=("needs a route of yours",),
    ),
    "routes-off": Cause("routes-off", config(extra="routes: false"), words=("the kernel sends there",)),
    "routing-table": Cause(
        "routing-table",
        config(extra="routes: {table: 100}"),
        words=("leads to table 100",),
        remedy="ip -6 rule add lookup 100",
    ),
    "group-tables": Cause(
        "group-tables",
        config(extra="scope: group"),
        ("-6 rule add pref 32765 lookup local", "-6 rule del pref 0"),
        ("-6 rule add pref 0 lookup local", "-6 rule del pref 32765"),
        ("have no effect",),
    ),
    "rp-filter": Cause(
        "rp-filter",
        config(GROUP4),
        (ADDRESS4, "net/ipv4/conf/eth0/rp_filter=1"),
        (NO_ADDRESS4, "net/ipv4/conf/eth0/rp_filter=0"),
        ("rp_filter is strict on eth0",),
        "sysctl -w net.ipv4.conf.eth0.rp_filter=2",
    ),
    "proxy-arp": Cause(
        "proxy-arp",
        config(GROUP4),
        (ADDRESS4, "net/ipv4/conf/eth0/proxy_arp=1"),
        (NO_ADDRESS4, "net/ipv4/conf/eth0/proxy_arp=0"),
        ("proxy_arp is on for eth0",),
        "sysctl -w net.ipv4.conf.eth0.proxy_arp=0",
    ),
}


@pytest.fixture(scope="module")
def bare(shared_lab: Lab) -> Scene:
    """The common VPS, where no daemon runs."""
    return vps(shared_lab)


def do(host: Host, commands: tuple[str, ...]) -> None:
    for command in commands:
        path, is_sysctl, value = command.partition("=")
        if is_sysctl:
            host.sysctl(path, value)
        else:
            host.ip(command)


def alone(scene: Scene, text: str) -> list[str]:
    """The options by which doctor judges by a configuration that no daemon has."""
    file = scene.lab.directory / "alone.yaml"
    file.write_text(text)
    return ["-c", str(file), "--runtime-dir", str(scene.lab.directory / "nobody")]


def matching(diagnosis: dict[str, Any], check: str, words: tuple[str, ...], remedy: str) -> list[Finding]:
    """The findings of a check that have all words, and the remedy."""
    return [
        finding
        for finding in diagnosis["findings"]
        if finding["check"] == check
        and remedy in finding["remedy"]
        and all(word in " ".join(finding.values()) for word in words)
    ]


@pytest.mark.parametrize("name", CAUSES)
def test_a_cause_is_found_without_a_daemon(bare: Scene, name: str) -> None:
    """Each is found with a remedy, and is not once it is put right."""
    cause = CAUSES[name]
    where = alone(bare, cause.config)
    do(bare.p, cause.done)
    try:
        found = examined(bare.p, where)
        assert matching(found, cause.check, cause.words, cause.remedy), found["findings"]
        assert all(finding["remedy"] for finding in found["findings"]), "what to do is never left open"
    finally:
        do(bare.p, cause.undone)
        for number in (1, 2):
            bare.p.link_local(f"tap{number}")


def test_a_setup_in_order_wants_nothing_but_a_daemon(bare: Scene) -> None:
    """What the causes above are provoked on is in order itself, and says what it could not look at."""
    found = examined(bare.p, alone(bare, PLAIN))
    assert [finding["check"] for finding in found["findings"]] == ["daemon"]
    assert {unmade["check"] for unmade in found["unmade"]} >= {"host-route", "nobody-asks", "forwarding"}


def test_an_address_that_another_node_has(bare: Scene) -> None:
    """Duplicate address detection has failed for an address of the proxy's."""
    p = bare.p
    p.use_dad("eth0")
    p.ip(f"addr add {UPSTREAM}/64 dev eth0")
    try:
        wait_for(lambda: p.address_state("eth0", UPSTREAM) == "dadfailed", PATIENCE, "refused")
        found = examined(p, alone(bare, PLAIN))
        remedy = f"ip addr del {UPSTREAM}/64 dev eth0"
        assert matching(found, "duplicate-address", ("another node has the address",), remedy)
    finally:
        p.ip(f"addr del {UPSTREAM}/64 dev eth0")
        p.sysctl("net/ipv6/conf/eth0/accept_dad", 0)


def test_networkd_that_removes_what_others_made(bare: Scene, tmp_path: Path) -> None:
    """A process of its name, in the proxy's network namespace, stands in for systemd-networkd."""
    program = tmp_path / "systemd-networkd"
    program.symlink_to("/bin/sleep")
    process = bare.p.popen([str(program), "60"])
    try:
        words = ("ManageForeignRoutingPolicyRules= is on",)
        wait_for(
            lambda: matching(
                examined(bare.p, alone(bare, PLAIN)), "networkd", words, "ManageForeignRoutingPolicyRules=no"
            ),
            PATIENCE,
            "found",
        )
    finally:
        process.kill()
        process.wait()


def test_fewer_neighbors_than_the_limit(tmp_path: Path) -> None:
    """The kernel shows `gc_thresh3` in the first network namespace only, so doctor looks there; where the
    tests run in another, nothing is found."""
    shown = Path("/proc/sys/net/ipv6/neigh/default/gc_thresh3").exists()
    file = tmp_path / "portier.yaml"
    file.write_text(config(extra="limits: {neighbors: 900000}"))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "portier",
            "doctor",
            "--json",
            "-c",
            str(file),
            "--runtime-dir",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    words = ("limits.neighbors is 900000",)
    found = matching(json.loads(done.stdout), "kernel-neighbors", words, "gc_thresh3=1800000")
    assert bool(found) == shown


# -- on a daemon that runs ---------------------------------------------------------------------------------

WITH_IPV4 = f"[{NET}/64, {NET4}.0/24]"
# The main thread, whose status is the process's, gives its rights away when told to.
GIVES_UP_RIGHTS = """
import ctypes, signal
def give_up(*_):
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)())
signal.signal(signal.SIGUSR2, give_up)
"""
CRASHES = f"""
import ipaddress
from portier.core.route import RouteEngine
magic, receive = ipaddress.IPv6Address("{NET}dead").packed, RouteEngine.receive
def patched(self, ifindex, frame, now):
    if magic in frame:
        raise ZeroDivisionError("the test wants it so")
    return receive(self, ifindex, frame, now)
RouteEngine.receive = patched
"""


def served(lab: Lab, text: str = "", crashing: str = "") -> Scene:
    """The common VPS with both families and a daemon."""
    scene = vps(lab)
    scene.u.add("eth0", f"{NET4}.1/24")
    scene.p.add("eth0", f"{NET4}.2/24")
    scene.p.ip(f"route add default via {NET4}.1 dev eth0")
    for number, host in scene.guests.items():
        host.add("eth0", f"{NET4}.{16 + number}/24")
    scene.daemon = lab.portier(text or config(WITH_IPV4), on=scene.p, crashing=crashing)
    scene.daemon.wait_ports("eth0", "tap1", "tap2")
    return scene


@pytest.fixture(scope="module")
def healthy(shared_lab2: Lab) -> Scene:
    """A daemon that serves both families, with both guests known."""
    scene = served(shared_lab2)
    for number in (1, 2):
        assert scene.u.ping(guest(number), count=3)
        assert scene.u.ping(f"{NET4}.{16 + number}", count=3)
    return scene


@pytest.fixture(scope="module")
def shared_lab2(keeper: Keeper, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The lab of `healthy`."""
    lab = Lab(keeper, tmp_path_factory.mktemp("healthy"))
    yield lab
    problems = lab.close()
    if problems:
        pytest.fail("; ".join(problems))


def ask(scene: Scene, **how: str) -> dict[str, Any]:
    """What doctor says of the daemon."""
    portier = scene.portier
    return examined(scene.p, ["-c", str(portier.config), "--runtime-dir", str(portier.runtime)], **how)


def wait_found(scene: Scene, check: str, *words: str, remedy: str = "", before: str = "") -> Finding:
    """Wait until doctor finds it."""
    said: list[dict[str, Any]] = []

    def found() -> list[Finding]:
        said[:] = [ask(scene, before=before)]
        return matching(said[0], check, words, remedy)

    try:
        (first, *_) = wait_for(found, PATIENCE, f"{check} found")
    except AssertionError:
        raise AssertionError(f"{check} {words} is not among {said[0]['findings']}") from None
    assert first["remedy"], "what to do is never left open"
    return first  # type: ignore[no-any-return]


def silent(scene: Scene) -> bool:
    return not ask(scene)["findings"]


def test_routes_are_in_order(healthy: Scene) -> None:
    """Nothing is found, and nothing is left out, where both families are routed and every host is known."""
    found = ask(healthy)
    assert found["findings"] == []
    assert found["unmade"] == []


def test_the_file_is_the_daemons_where_none_is_named(healthy: Scene) -> None:
    """Without ``-c`` it is the configuration of the daemon that is asked."""
    directory = str(healthy.portier.runtime)
    done = healthy.p.run([sys.executable, "-m", "portier", "doctor", "--runtime-dir", directory], check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_relay_in_order(lab: Lab) -> None:
    """Nothing is found in mode relay, until a router behind holds a port down."""
    scene = vps(lab)
    scene.daemon = lab.portier(relay("loop_protection: strict"), on=scene.p)
    scene.daemon.wait_ports("eth0", "tap1", "tap2")
    assert ask(scene)["findings"] == []

    scene.guests[1].inject("eth0", rogue(scene.guests[1]))
    wait_found(scene, "hold-down", "tap1 is in hold-down", remedy="portier lift tap1")


def test_a_daemon_with_another_runtime_dir(healthy: Scene, tmp_path: Path) -> None:
    """Doctor knows that one runs, though it does not answer where it is asked."""
    found = examined(healthy.p, ["-c", str(healthy.portier.config), "--runtime-dir", str(tmp_path)])
    words = ("a daemon runs in this network namespace", f"process {healthy.portier.pid}")
    assert matching(found, "daemon", words, "--runtime-dir")


def test_other_settings_in_order(lab: Lab) -> None:
    """Nothing is found where a group has a routing table of its own and the kernel answers for a guest."""
    rules = f'[{NET}/64, {{allow: "{guest(1)}", answer: kernel, downstream: tap1}}]'
    scene = served(lab, config(rules, extra="scope: group\nisolate: true"))
    for number in (1, 2):
        assert scene.u.ping(guest(number), count=3)
    assert ask(scene)["findings"] == []


def test_a_host_that_the_kernel_looks_for_upstream(healthy: Scene) -> None:
    """A route of somebody's leads to a host behind another way, or just as well as Portier's own."""
    p = healthy.p
    p.ip(f"-6 route add {guest(1)} via {UPSTREAM} dev eth0 metric 32 proto bird")
    finding = wait_found(healthy, "host-route", f"packets for {guest(1)} go out of eth0, and not to tap1")
    assert "metric 32" in finding["evidence"]
    p.run(["sh", "-ec", finding["remedy"]])
    wait_for(lambda: silent(healthy), PATIENCE, "the remedy suffices")
    p.ip(f"-6 route add default via {UPSTREAM} dev eth0 table 77")
    p.ip("-6 rule add pref 99 iif eth0 lookup 77")
    try:
        wait_found(healthy, "host-route", f"packets for {guest(1)} go out of eth0, and not to tap1")
    finally:
        p.ip("-6 rule del pref 99")
        p.ip("-6 route flush table 77")
    p.ip(f"route add blackhole {NET4}.17 metric 10")
    try:
        wait_found(healthy, "host-route", f"packets for {NET4}.17 go nowhere")
    finally:
        p.ip(f"route del blackhole {NET4}.17 metric 10")
    wait_for(lambda: silent(healthy), PATIENCE, "in order again")


def test_what_a_router_asks_for_and_no_rule_allows(lab: Lab) -> None:
    """Its target, who asked and the line that is missing; what somebody else answers for is not told."""
    scene = served(lab)
    scene.u.ip("-6 route add 2001:db8:7:1::/64 dev eth0")
    scene.u.ping("2001:db8:7:1::5", count=1, timeout=1)
    wait_found(
        scene,
        "refused-targets",
        "asks for 2001:db8:7:1::5 again and again, and no rule allows it",
        scene.u.mac("eth0"),
        remedy="add `2001:db8:7:1::/64` to the prefixes of group lan",
    )


def test_nobody_asks(lab: Lab) -> None:
    """A provider that routes the prefix never asks; the time that doctor gives it is none here."""
    scene = served(lab)
    now = "import portier.core.doctor.traffic as traffic; traffic.PATIENCE = 0.0"
    wait_found(scene, "nobody-asks", "nobody has asked there for any IPv6 or IPv4 address", before=now)
    scene.u.inject("eth0", solicit(scene.u, guest(1)))
    wait_found(scene, "nobody-asks", "nobody has asked there for any IPv4 address", before=now)


def test_a_second_proxy_on_the_link(lab: Lab) -> None:
    """Another node answers upstream for what guests have, and claims the proxy's own address."""
    scene = served(lab)
    other = lab.new_mac()
    captured = scene.u.capture("eth0")
    scene.guests[1].inject("eth0", advertise(scene.guests[1], f"{NET}77"))
    question = captured.wait_solicitation(f"{NET}77", PATIENCE)
    asker = str(ipaddress.IPv6Address(question.raw[22:38]))
    answer = advertise(
        scene.u, f"{NET}77", mac=other, flags=SOLICITED | OVERRIDE, to=asker, to_mac=scene.p.mac("eth0")
    )
    scene.u.inject("eth0", answer)
    wait_found(scene, "rival", f"{other} answers there for {NET}77", remedy="stop the other proxy")

    scene.u.inject("eth0", advertise(scene.u, PROXY, mac=other))
    wait_found(scene, "rival", f"this machine's own address {PROXY}", other)


@pytest.mark.skipif(shutil.which("ndppd") is None, reason="ndppd is not installed")
def test_ndppd_on_the_same_link(lab: Lab) -> None:
    """Another daemon that answers for the whole prefix, on another machine."""
    scene = served(lab)
    file = lab.directory / "ndppd.conf"
    file.write_text(f"proxy eth0 {{ rule {NET}/64 {{ static }} }}\n")
    scene.u.popen(["ndppd", "-c", str(file)])

    numbers = itertools.count(1)

    def found() -> list[Finding]:
        newcomer = f"{NET}5:{next(numbers):x}"
        scene.guests[1].inject("eth0", solicit(scene.guests[1], f"{NET}99", source=newcomer))
        words = (f"{scene.u.mac('eth0')} answers there for {NET}5:",)
        return matching(ask(scene), "rival", words, "stop the other proxy")

    wait_for(found, PATIENCE, "found")


def test_what_is_dropped(lab: Lab) -> None:
    """Limits, frames that nobody took in time, and invalid ones; a full table."""
    scene = served(
        lab, config(extra="limits: {neighbors: 1, per_source: 1}\ntimers: {retransmit: 100ms, retries: 1}")
    )
    for number in range(20):
        scene.u.inject("eth0", solicit(scene.u, f"{NET}1:{number:x}"))
    wait_found(scene, "limits", "`limits.per_source` of group lan", "source-limit")
    scene.u.inject("eth0", solicit(scene.u, guest(1), hlim=64))
    wait_found(scene, "invalid", "1 bad-hop-limit")

    os.kill(scene.portier.pid, signal.SIGSTOP)
    try:
        frame = bytes(solicit(scene.u, guest(1)))
        for _ in range(20000):
            scene.u.inject("eth0", frame)
    finally:
        os.kill(scene.portier.pid, signal.SIGCONT)
    wait_found(scene, "frames-lost", "faster than they are judged")

    scene.guests[2].ping(PROXY)
    wait_found(scene, "table-full", "limits.neighbors is 1", remedy="limits.neighbors")


def test_what_keeps_the_daemon_from_its_work(lab: Lab) -> None:
    """Sysctls that are left to the user, metrics that cannot be served, a configuration that was edited, or
    broken, a worker that crashes, and rights that are gone."""
    scene = vps(lab)
    listen = "import socket, time; s = socket.create_server(('127.0.0.1', 9846)); time.sleep(99)"
    scene.p.popen([sys.executable, "-c", listen])
    wait_for(lambda: ":2676 " in scene.p.run(["cat", "/proc/net/tcp"]).stdout, PATIENCE, "the port is taken")
    head = 'watch: false\nsysctls: check\nmetrics: {listen: "127.0.0.1:9846"}'
    scene.daemon = portier = lab.portier(config(head=head), on=scene.p, crashing=GIVES_UP_RIGHTS + CRASHES)
    portier.wait_ports("eth0", "tap1", "tap2")
    wait_found(scene, "metrics", "not served on 127.0.0.1:9846")
    wait_found(scene, "sysctls", "leaves this to you", remedy="sysctl -w net.ipv6.conf.")
    wait_found(scene, "forwarding", "does not forward IPv6")

    portier.write(config(head=head, extra="isolate: true"))
    wait_found(scene, "config-applied", "was changed since", remedy="portier reload")
    portier.write("version: 1\ngroups: {lan: {upstrem: eth0}}\n")
    wait_found(scene, "config", "the daemon goes on", "upstrem")

    scene.u.inject("eth0", solicit(scene.u, f"{NET}dead"))
    wait_found(scene, "worker", "the test wants it so")
    os.kill(portier.pid, signal.SIGUSR2)
    wait_found(scene, "capabilities", "lacks CAP_NET_ADMIN and CAP_NET_RAW")


def test_what_the_kernel_refuses_the_daemon(lab: Lab) -> None:
    """A policy rule of somebody's stands where Portier's should be, and a link takes no multicast groups."""
    scene = vps(lab)
    scene.p.ip("-6 rule add iif tap2 from fe80::/10 to 2001:db8::/32 blackhole priority 1135 protocol 135")
    scene.daemon = lab.portier(config(), on=scene.p)
    scene.daemon.wait_ports("eth0", "tap1", "tap2")
    wait_found(scene, "steps", "rule iif tap2", "somebody else's rule is in the way")


def test_what_routers_promise_and_a_guest_does_not_get(lab: Lab) -> None:
    """Relayed Router Advertisements that promise DHCPv6, name a prefix that no rule allows, and a name server
    that guests do not reach."""
    scene = vps(lab)
    scene.daemon = lab.portier(config(extra="router_advertisements: relay"), on=scene.p)
    scene.daemon.wait_ports("eth0", "tap1", "tap2")
    mac = scene.u.mac("eth0")
    advertisement = (
        Ether(src=mac, dst="33:33:00:00:00:01")
        / IPv6(src=scene.u.link_local("eth0"), dst="ff02::1", hlim=255)
        / ICMPv6ND_RA(M=1, O=0, routerlifetime=600)
        / ICMPv6NDOptSrcLLAddr(lladdr=mac)
        / ICMPv6NDOptPrefixInfo(
            prefix=OTHER, prefixlen=64, L=1, A=1, validlifetime=600, preferredlifetime=600
        )
        / ICMPv6NDOptRDNSS(dns=["fe80::53"], lifetime=600)
    )
    scene.u.inject("eth0", advertisement)
    wait_found(scene, "dhcpv6", "promises DHCPv6 (flag M)", remedy="mode: relay")
    wait_found(scene, "router-prefix", f"{OTHER}/64", "no rule allows it")
    wait_found(scene, "router-dns", "fe80::53")


PROVOKED_ABOVE = frozenset(
    {
        *(cause.check for cause in CAUSES.values()),
        *(
            "duplicate-address",
            "networkd",
            "kernel-neighbors",
            "host-route",
            "refused-targets",
            "nobody-asks",
        ),
        *("rival", "limits", "invalid", "frames-lost", "table-full", "metrics", "sysctls", "config-applied"),
        *("worker", "capabilities", "steps", "hold-down", "dhcpv6", "router-prefix", "router-dns"),
    }
)


def test_every_check_is_provoked() -> None:
    """None of the checks of this part is without a test above but one: the kernel refuses to join groups on
    links whose MTU is too small for IPv6, and those are no ports; tests/system/test_multicast.py has it."""
    parts = (process, ports, machine, ways, traffic, told)
    names = {check.name for part in parts for check in part.CHECKS}
    assert names - PROVOKED_ABOVE == {"multicast-groups"}
    assert names >= PROVOKED_ABOVE

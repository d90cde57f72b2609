"""`portier doctor` finds what the packet filter, a bridge or another daemon takes from the proxy, made with
the real tools, and says nothing about a firewall as people have it."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from portier.core.doctor import around as around_checks
from portier.core.doctor import filters
from tests.netns.lab import Lab, wait_for
from tests.netns.scenes import NET, Scene, config, vps

MISSING = [
    tool for tool in ("nft", "ip6tables", "ip6tables-legacy", "arptables") if shutil.which(tool) is None
]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

USUAL = """
table inet filter {
    chain input {
        type filter hook input priority filter; policy drop;
        ct state vmap { established : accept, related : accept, invalid : drop }
        iifname "lo" accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } accept
        icmpv6 type echo-request limit rate 10/second accept
        tcp dport { 22, 80 } ct state new accept
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname "eth0" oifname "tap*" ip6 daddr 2001:db8:7::/64 accept
        iifname { "tap1", "tap2" } jump guests
        ip protocol icmp accept
        iifname "eth0" ip daddr 192.0.2.0/24 accept
    }
    chain guests {
        udp dport 5353 drop
        oifname "eth0" accept
        log prefix "guests: "
    }
}
"""
# Of ip6tables: FORWARD as Docker makes it.
DOCKER = (
    "ip6tables -P FORWARD DROP",
    "ip6tables -N DOCKER-USER",
    "ip6tables -A FORWARD -j DOCKER-USER",
    "ip6tables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "ip6tables -A FORWARD -i docker0 ! -o docker0 -j ACCEPT",
)
# Of firewalld, as it stands where no zone lets anything through.
FIREWALLD = """
table inet firewalld {
    chain filter_PREROUTING {
        type filter hook prerouting priority filter + 10; policy accept;
        icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
        meta nfproto ipv6 fib saddr . mark oif missing drop
    }
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        ip6 daddr { ::/96, 2002::/24 } reject with icmpv6 addr-unreachable
        jump filter_FORWARD_ZONES
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD_ZONES {
        iifname "eth0" goto filter_FWD_public
        goto filter_FWD_public
    }
    chain filter_FWD_public {
        jump filter_FWD_public_allow
    }
    chain filter_FWD_public_allow {
    }
}
"""
# Of ip6tables: the parts of ufw's that a packet between hosts meets.
UFW = (
    "ip6tables -P FORWARD DROP",
    "ip6tables -N ufw6-before-input",
    "ip6tables -N ufw6-before-forward",
    "ip6tables -A INPUT -j ufw6-before-input",
    "ip6tables -A FORWARD -j ufw6-before-forward",
    "ip6tables -A ufw6-before-input -m rt --rt-type 0 -j DROP",
    "ip6tables -A ufw6-before-input -p icmpv6 --icmpv6-type 135 -m hl --hl-eq 255 -j ACCEPT",
    "ip6tables -A ufw6-before-input -p icmpv6 --icmpv6-type 136 -m hl --hl-eq 255 -j ACCEPT",
    "ip6tables -A ufw6-before-input -p icmpv6 --icmpv6-type 134 -m hl --hl-eq 255 -j ACCEPT",
    "ip6tables -P INPUT DROP",
    "ip6tables -A ufw6-before-forward -m rt --rt-type 0 -j DROP",
    "ip6tables -A ufw6-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "ip6tables -A ufw6-before-forward -p icmpv6 --icmpv6-type echo-request -j ACCEPT",
)


@dataclass(frozen=True)
class Case:
    """What is done (a ruleset for nft, or commands), the check that finds it, and words of finding, evidence
    and remedy.  ``severity`` is that of the finding."""

    done: str | tuple[str, ...]
    check: str
    finding: str
    evidence: str
    remedy: str
    severity: str = "problem"


CASES = {
    "nd dropped on input": Case(
        "table ip6 f { chain i { type filter hook input priority 0; "
        "icmpv6 type nd-neighbor-advert drop; }; }",
        "firewall-nd",
        "neighbor advertisements coming in are dropped",
        "chain i: icmpv6 type nd-neighbor-advert drop # handle",
        "nft insert rule ip6 f i icmpv6 type nd-neighbor-advert accept",
    ),
    "advertisements dropped on egress": Case(
        'table netdev f { chain e { type filter hook egress device "eth0" priority 0; '
        "meta l4proto icmpv6 icmpv6 type 136 drop; }; }",
        "firewall-nd",
        "neighbor advertisements going out are dropped",
        "nft table netdev f, chain e",
        "nft insert rule netdev f e",
    ),
    "nd dropped on ingress, for one port": Case(
        'table netdev f { chain i { type filter hook ingress device "tap2" priority 0; '
        "icmpv6 type 133-137 drop; }; }",
        "firewall-nd",
        "neighbor solicitations coming in and neighbor advertisements coming in are dropped",
        "icmpv6 type",
        "nft insert rule netdev f i icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept",
    ),
    "arp dropped": Case(
        ("arptables -A INPUT -i eth0 --opcode Request -j DROP",),
        "firewall-arp",
        "ARP requests coming in are dropped",
        "nft table arp filter, chain INPUT",
        "nft insert rule arp filter INPUT arp operation request accept",
    ),
    "nothing forwarded": Case(
        "table inet f { chain c { type filter hook forward priority 0; policy drop; "
        'ct state established accept; tcp dport 22 iifname "wlan0" accept; }; }',
        "firewall-forward",
        "packets between them are dropped",
        "policy drop",
        'nft insert rule inet f c iifname { "eth0", "tap1", "tap2" }',
    ),
    "nothing forwarded, Docker": Case(
        DOCKER,
        "firewall-forward",
        "IPv6 packets between them are dropped",
        "ip6tables table filter, chain FORWARD: policy drop",
        "ip6tables -I DOCKER-USER -i eth0 -o tap1 -j ACCEPT",
    ),
    "nothing forwarded, legacy": Case(
        ("ip6tables-legacy -A FORWARD -i eth0 -j DROP", "ip6tables-legacy -A FORWARD -o eth0 -j REJECT"),
        "firewall-forward",
        "IPv6 packets between them are dropped",
        "-A FORWARD -i eth0 -j DROP",
        "ip6tables-legacy -I FORWARD -i eth0 -o tap1 -j ACCEPT",
    ),
    "nothing forwarded, firewalld": Case(
        FIREWALLD,
        "firewall-forward",
        "IPv6 packets between them are dropped",
        "chain filter_FORWARD: reject",
        'nft insert rule inet firewalld filter_FORWARD iifname { "eth0", "tap1", "tap2" }',
    ),
    "nothing forwarded but pings, ufw": Case(
        UFW,
        "firewall-forward",
        "IPv6 connections between them are dropped, whoever opens them, though pings pass",
        "chain FORWARD: policy drop",
        "ip6tables -I FORWARD -i eth0 -o tap1 -j ACCEPT",
    ),
    "answers dropped": Case(
        "table inet f { chain c { type filter hook forward priority 0; ct state established drop; }; }",
        "firewall-forward",
        "connections that are there are dropped",
        "ct state established drop",
        "nft insert rule inet f c",
    ),
    "reverse path, nft": Case(
        "table inet f { chain c { type filter hook prerouting priority raw; "
        "fib saddr . iif oif missing drop; }; }",
        "firewall-reverse-path",
        "no route by their own port",
        "fib saddr . iif oif",
        'nft insert rule inet f c iifname { "tap1", "tap2" } accept',
        "warning",
    ),
    "reverse path, ip6tables": Case(
        ("ip6tables -t raw -A PREROUTING -m rpfilter --invert -j DROP",),
        "firewall-reverse-path",
        "no route by their own port",
        "-m rpfilter --invert -j DROP",
        "ip6tables -t raw -I PREROUTING -i tap1 -j ACCEPT",
        "warning",
    ),
    "reverse path, NixOS": Case(
        (
            "ip6tables -t mangle -N rpfilter",
            "ip6tables -t mangle -A rpfilter -m rpfilter --validmark -j RETURN",
            "ip6tables -t mangle -A rpfilter -j DROP",
            "ip6tables -t mangle -A PREROUTING -j rpfilter",
        ),
        "firewall-reverse-path",
        "no route by their own port",
        "-A rpfilter -j DROP",
        "ip6tables -t mangle -I PREROUTING -i tap1 -j ACCEPT",
        "warning",
    ),
    "hosts may only open": Case(
        "table inet f { chain c { type filter hook forward priority 0; policy drop; "
        'ct state established accept; iifname "tap*" accept; }; }',
        "firewall-forward",
        "nobody outside opens",
        "policy drop",
        "nft insert rule inet f c",
        "note",
    ),
    "what cannot be judged": Case(
        "table inet f { set s { type ipv6_addr; flags dynamic,timeout; timeout 1m; }; "
        "chain c { type filter hook forward priority 0; policy drop; ip6 saddr @s accept; "
        "meta mark 7 accept; }; }",
        "firewall-forward",
        "depends on more",
        "ip6 saddr @s accept",
        "",
        "note",
    ),
}


@pytest.fixture(scope="module")
def scene(shared_lab: Lab) -> Scene:
    """A proxy for both families, with two hosts behind."""
    scene = vps(shared_lab)
    scene.p.add("eth0", "192.0.2.2/24")
    scene.start(config(f'["{NET}/64", 192.0.2.16/28]'))
    return scene


def diagnose(scene: Scene) -> dict[str, Any]:
    """What `portier doctor --json` says."""
    done = scene.portier.cli("doctor", "--json")
    assert "Traceback" not in done.stderr, done.stderr
    diagnosis: dict[str, Any] = json.loads(done.stdout)
    worse = [finding for finding in diagnosis["findings"] if finding["severity"] != "note"]
    assert done.returncode == (3 if worse else 0), done.stdout
    return diagnosis


def of_filters(diagnosis: dict[str, Any]) -> list[dict[str, str]]:
    """What the checks of packet filters found."""
    unmade = [each for each in diagnosis["unmade"] if each["check"].startswith("firewall")]
    assert not unmade
    return [each for each in diagnosis["findings"] if each["check"].startswith("firewall")]


def clear(scene: Scene) -> None:
    """Remove all rules again."""
    scene.p.run(["nft", "flush", "ruleset"])
    for command in ("-F", "-X"):
        scene.p.run(["ip6tables-legacy", command])


def apply(scene: Scene, done: str | tuple[str, ...]) -> None:
    """Make rules."""
    if isinstance(done, str):
        scene.p.run(["nft", "-f", "-"], stdin=done)
    else:
        for command in done:
            scene.p.run(command.split())


@pytest.mark.parametrize("name", CASES)
def test_a_filter_is_found(scene: Scene, name: str) -> None:
    """The rule that drops is named, with the command that lets the packets pass; that done, it is silent."""
    case = CASES[name]
    try:
        apply(scene, case.done)
        everything = of_filters(diagnose(scene))
        found = [each for each in everything if each["check"] == case.check]
        assert found, name
        finding = found[0]
        assert not [each for each in everything if "depends on more" in each["finding"]] or not case.remedy
        assert finding["severity"] == case.severity
        assert case.finding in finding["finding"]
        assert case.evidence in finding["evidence"]
        assert case.remedy in finding["remedy"]
        if case.severity == "note":
            return
        for each in everything:
            if each["severity"] != "note":
                scene.p.run(["sh", "-ec", each["remedy"]])
        assert not [each for each in of_filters(diagnose(scene)) if each["severity"] != "note"]
    finally:
        clear(scene)


def test_a_usual_firewall_is_no_finding(scene: Scene) -> None:
    """Accept what is established, accept ICMPv6, drop the rest, forward for the ports: nothing to say."""
    try:
        apply(scene, USUAL)
        assert not of_filters(diagnose(scene))
    finally:
        clear(scene)


def test_no_firewall_is_no_finding(scene: Scene) -> None:
    """Without any rule nothing is said."""
    assert not of_filters(diagnose(scene))


# -- bridges and other proxies ----------------------------------------------------------------------


@pytest.fixture
def bridged(lab: Lab) -> Scene:
    """A proxy whose upstream is one end of a cable into a bridge of its own, and whose downstream is a
    bridge."""
    scene = Scene(lab, lab.host("u"), lab.host("p"))
    lab.bridge(scene.p, "br0", snooping=True)
    lab.bridge(scene.p, "tap1", snooping=True)
    lab.link(scene.u, "eth0", scene.p, "uplink")
    lab.link(scene.p, "eth0", scene.p, "eth0b")
    for port in ("uplink", "eth0b"):
        lab.plug(scene.p, "br0", port)
    guest_host = lab.host("h1")
    lab.link(guest_host, "eth0", scene.p, "vm1")
    lab.plug(scene.p, "tap1", "vm1")
    guest_host.add("eth0", f"{NET}11/64")
    scene.u.add("eth0", f"{NET}a/64")
    scene.p.add("eth0", f"{NET}2/64")
    scene.start(config(f'["{NET}/64", 192.0.2.16/28]'), wait=False)
    scene.portier.wait_ready()
    scene.portier.wait_ports("eth0", "tap1")
    assert scene.u.ping(f"{NET}11")
    return scene


def around(diagnosis: dict[str, Any]) -> list[dict[str, str]]:
    """What was found of bridges and of other proxies."""
    checks = {"other-proxy", "bridge-multicast", "firewall-bridge"}
    assert not [each for each in diagnosis["unmade"] if each["check"] in checks]
    return [each for each in diagnosis["findings"] if each["check"] in checks]


def test_bridges(bridged: Scene) -> None:
    """What a bridge keeps from a port is found, and what is done about it suffices; a bridge as people have
    it is no finding, snooping or not."""
    assert not around(diagnose(bridged))
    for command, check, words in (
        ("bridge link set dev eth0b mcast_flood off", "bridge-multicast", "not known yet from it"),
        ("bridge link set dev vm1 neigh_suppress on", "bridge-multicast", "answers ARP"),
        (
            "nft 'table bridge f { chain i { type filter hook input priority 0; ether type arp drop; }; }'",
            "firewall-bridge",
            "are dropped: Portier does not hear them",
        ),
        (
            "nft 'table bridge g { chain o { type filter hook output priority 0; icmpv6 type 135 drop; }; }'",
            "firewall-bridge",
            "neighbor solicitations going out are dropped",
        ),
    ):
        bridged.p.run(["sh", "-ec", command])
        (finding,) = around(diagnose(bridged))
        assert finding["check"] == check
        assert words in finding["finding"]
        bridged.p.run(["sh", "-ec", finding["remedy"]])
        assert not around(diagnose(bridged)), "the remedy suffices"


def test_other_proxies(scene: Scene, tmp_path: Path) -> None:
    """Another proxy on a port is named with its process; one elsewhere is none of our business."""
    assert not around(diagnose(scene))
    ndppd = tmp_path / "ndppd.conf"
    ndppd.write_text("proxy eth0 { rule 2001:db8:7::/64 { static } }\n")
    npd6 = tmp_path / "npd6.conf"
    npd6.write_text("prefix=2001:db8:7:0:\ninterface=tap1\n")
    for program, args, port in (
        ("ndppd", ["-c", str(ndppd)], "eth0"),
        ("npd6", ["-c", str(npd6), "-l", str(tmp_path / "log"), "-f"], "tap1"),
        ("parprouted", ["-d", "eth0", "tap2"], "eth0, tap2"),
    ):
        process = scene.p.popen([program, *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            (finding,) = wait_for(lambda: around(diagnose(scene)), 15, f"{program} found")
            assert finding["subject"] == port
            assert finding["finding"].startswith(f"{program} is a proxy too")
            assert f"kill {process.pid}" in finding["remedy"]
        finally:
            process.kill()
            process.wait(5)
        wait_for(lambda: not around(diagnose(scene)), 15, f"{program} gone")
    elsewhere = scene.u.popen(["ndppd", "-c", str(ndppd)], stderr=subprocess.DEVNULL)
    try:
        assert not around(diagnose(scene))
    finally:
        elsewhere.kill()
        elsewhere.wait(5)


def test_every_check_is_provoked() -> None:
    """None of the checks of this part is without a test above."""
    names = {check.name for part in (filters, around_checks) for check in part.CHECKS}
    provoked = {case.check for case in CASES.values()}
    assert names == provoked | {"other-proxy", "bridge-multicast", "firewall-bridge"}

"""The checks of `portier doctor`, by facts made by hand; those of packet filters are in test_firewall.py."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

import portier
from portier.core import plan
from portier.core.doctor import CHECKS, machine, ports, process, told, traffic, ways
from portier.core.doctor.facts import (
    Barrier,
    Daemon,
    Dispute,
    Facts,
    Host,
    Networkd,
    Refusal,
    Setup,
    Told,
    Unknown,
    Work,
    known,
)
from portier.core.doctor.finding import Check, Finding, Severity, examine, problem, warning
from portier.core.model import (
    Answer,
    Config,
    Group,
    KernelRoute,
    Link,
    LinkAddress,
    Live,
    Mode,
    ProxyEntry,
    Role,
    Rule,
    Snapshot,
    Sysctls,
)

ETH0, TAP1, TAP2, DOCKER0 = 2, 3, 4, 5
LAN, LAN4 = IPv6Network("2001:db8:7::/64"), IPv4Network("192.0.2.0/24")
RULES = (Rule(prefix=LAN), Rule(prefix=LAN4))
MAIN, STATIC = 254, 4


def link(ifindex: int, name: str, **changes: Any) -> Link:
    """A link as it is while a daemon serves it."""
    made = Link(
        ifindex=ifindex,
        name=name,
        mac=bytes((2, 0, 0, 0, 0, ifindex)),
        mtu=1500,
        up=True,
        carrier=True,
        master=0,
        kind="veth",
        loopback=False,
        forwarding=0,
        accept_ra=1,
        force_forwarding=1,
        forwarding4=1,
        rp_filter=0,
        proxy_arp=0,
    )
    return made._replace(**changes)


def address(ifindex: int, text: str, **changes: Any) -> LinkAddress:
    value, _, length = text.partition("/")
    made = LinkAddress(ifindex, ip_address(value).packed, int(length or 64), False, False, False)
    return made._replace(**changes)


def route(prefix: str, ifindex: int, gateway: str = "", **changes: Any) -> KernelRoute:
    network = ip_network(prefix)
    hop = ip_address(gateway).packed if gateway else None
    made = KernelRoute(network.network_address.packed, network.prefixlen, ifindex, hop, MAIN, 1024, STATIC)
    return made._replace(**changes)


def host(address: str, way: str, state: str = "yes") -> Host:
    return Host(address, "lan", "tap1", state, way, f"ip route get {address}")


LINKS = (link(ETH0, "eth0"), link(TAP1, "tap1"), link(TAP2, "tap2"), link(DOCKER0, "docker0"))
ROUTES = (
    route(str(LAN), ETH0),
    route("::/0", ETH0, "2001:db8:7::a"),
    route(str(LAN4), ETH0),
    route("0.0.0.0/0", ETH0, "192.0.2.1"),
)
SNAPSHOT = Snapshot(
    links=LINKS,
    addresses=(
        address(ETH0, "fe80::2"),
        address(ETH0, "2001:db8:7::2"),
        address(ETH0, "192.0.2.2/24"),
        address(TAP1, "fe80::3"),
        address(TAP2, "fe80::4"),
    ),
    routes=ROUTES,
    force_forwarding=True,
    lookups=frozenset({(6, MAIN), (4, MAIN)}),
)
WORK = Work(
    counters={"eth0": {"answered": 7, "no-rule": 3}, "tap1": {"bad-checksum": 1}},
    asked={"eth0": (4, 6), "tap1": (), "tap2": ()},
    refused=(),
    contested=(),
    drops={"eth0": 0},
)
DAEMON = Daemon(pid=7, uptime=3600.0, file="/etc/portier.yaml", work={"lan": WORK})


def facts(
    group: dict[str, Any] | None = None,
    snapshot: Snapshot = SNAPSHOT,
    work: Work = WORK,
    sysctls_are: Sysctls = Sysctls.MANAGE,
    **changes: Any,
) -> Facts:
    """What is so where everything is in order, but for the changes."""
    settings: dict[str, Any] = {
        "name": "lan",
        "upstream": ("eth0",),
        "downstream": ("tap1", "tap2"),
        "rules": RULES,
    }
    config = Config(groups=(Group(**(settings | (group or {}))),), sysctls=sysctls_are)
    state, report, _ = plan.desired(config, snapshot, plan.Memory(), now=0.0)
    usual = Facts(
        config_file="/etc/portier.yaml",
        daemon=DAEMON._replace(work={"lan": work}),
        told=(),
        lacking=(),
        hosts=(host("2001:db8:7::5", "tap1"),),
        barriers=(),
        networkd=None,
        config=config,
        snapshot=snapshot,
        setup=Setup(report.groups, state.workers),
    )
    return replace(usual, **changes)


def found(facts: Facts, check: str) -> list[Finding]:
    """What one check finds."""
    (only,) = [each for each in CHECKS if each.name == check]
    return list(examine(facts, [only]).findings)


MINE = tuple(check for part in (process, ports, machine, ways, traffic, told) for check in part.CHECKS)


def test_in_order() -> None:
    """Nothing is found where nothing is wrong, and no check lacks a fact."""
    diagnosis = examine(facts(), MINE)
    assert diagnosis.findings == ()
    assert diagnosis.unmade == ()
    assert len(diagnosis.passed) == len(MINE)


def test_relay_in_order() -> None:
    """The kernel routes nothing in mode relay, so its settings and routes are nobody's business."""
    work = WORK._replace(asked={}, counters={})
    links = tuple(each._replace(force_forwarding=0, forwarding4=0) for each in LINKS)
    relay = facts({"mode": Mode.RELAY, "rules": ()}, replace(SNAPSHOT, links=links), work, hosts=())
    assert examine(relay, MINE).findings == ()


def test_names_are_distinct() -> None:
    """A name means one check."""
    names = [check.name for check in CHECKS]
    assert len(names) == len(set(names))


def test_every_notice_has_its_check() -> None:
    """What the daemon tells under the name of a check is passed on by one of that name."""
    names = {check.name for check in CHECKS}
    root = Path(portier.__file__).parent
    said = {
        call.args[0].value
        for file in root.rglob("*.py")
        for call in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == "Notice"
        and isinstance(call.args[0], ast.Constant)
    }
    assert len(said) > 20
    assert said <= names


# -- the run of all ------------------------------------------------------------------------------------


def test_problems_come_before_warnings() -> None:
    """What keeps hosts from being reached is said first."""
    checks = (
        Check("mild", "", lambda _: [warning("a", "x")]),
        Check("bad", "", lambda _: [problem("b", "y")]),
        Check("good", "", lambda _: []),
    )
    diagnosis = examine(Facts(), checks)
    assert [(each.check, each.severity) for each in diagnosis.findings] == [
        ("bad", Severity.PROBLEM),
        ("mild", Severity.WARNING),
    ]
    assert diagnosis.passed == ("good",)


def test_a_check_without_its_facts_says_why() -> None:
    """What could not be looked at is neither found nor passed; what was found before that stays."""

    def find(facts: Facts) -> Iterator[Finding]:
        yield warning("a", "x")
        known(facts.config)

    diagnosis = examine(Facts(config=Unknown("not root")), [Check("half", "", find)])
    assert [each.subject for each in diagnosis.findings] == ["a"]
    assert diagnosis.passed == ()
    assert diagnosis.unmade == (("half", "not root"),)


def test_nothing_passes_that_was_not_looked_at() -> None:
    """Without facts no check passes but the one that takes no problems for a good configuration."""
    assert examine(Facts(), MINE).passed == ("config",)


# -- each check ----------------------------------------------------------------------------------------


def with_work(**changes: Any) -> Facts:
    return facts(work=WORK._replace(**changes))


def with_routes(*routes: KernelRoute, **group: Any) -> Facts:
    return facts(group, replace(SNAPSHOT, routes=(*ROUTES, *routes)))


def with_links(**changes: dict[str, Any]) -> Facts:
    links = tuple(each._replace(**changes.get(each.name, {})) for each in LINKS)
    return facts(snapshot=replace(SNAPSHOT, links=links))


def router(target: str, *, again: int = 2, verdict: str = "no-rule", port: str = "eth0") -> Facts:
    refusal = Refusal(target, port, "fe80::1:1", "02:00:00:00:00:01", verdict, again)
    return with_work(refused=(refusal,))


def rivals(*disputes: tuple[str, str, str, str, str]) -> Facts:
    return with_work(contested=tuple(Dispute(*each) for each in disputes))


A, B = "02:00:00:00:00:aa", "02:00:00:00:00:bb"
GUEST = "2001:db8:7::5"
OTHER = IPv6Network("2001:db8:8::/64")

FOUND = {
    "no daemon": (facts(daemon=None), "daemon", "no daemon runs", "systemctl start"),
    "mute": (
        facts(daemon=Unknown("x"), mute="the daemon (process 7) does not answer: x"),
        "daemon",
        "process 7",
        "--runtime-dir",
    ),
    "refused": (
        facts(problems=("x:1:2: groups: wrong",)),
        "config",
        "goes on with the last good one",
        "check",
    ),
    "unreadable": (
        facts(daemon=None, unreadable=("/etc/portier.d",)),
        "config",
        "user portier, who cannot read",
        "chgrp portier /etc/portier.d && chmod g+rX /etc/portier.d",
    ),
    "refused by the service alone": (
        facts(daemon=DAEMON._replace(refused=("/etc/portier.yaml: cannot be read by user portier",))),
        "config",
        "goes on with the last good one",
        "check",
    ),
    "edited": (
        facts(daemon=DAEMON._replace(differs=True)),
        "config-applied",
        "was changed",
        "portier reload",
    ),
    "rights": (facts(lacking=("CAP_NET_RAW",)), "capabilities", "lacks CAP_NET_RAW", "systemctl"),
    "crashed": (with_work(restarts=2, error="ZeroDivisionError: x"), "worker", "crashed", "journalctl"),
    "conflict": (
        facts(
            setup=Setup(
                (
                    known(facts().setup)
                    .reports[0]
                    ._replace(
                        ports=(plan.PortReport("tap1", Role.DOWNSTREAM, "conflict", "group a has it"),)
                    ),
                ),
                {},
            )
        ),
        "ports",
        "group a has it",
        "one group",
    ),
    "no carrier": (with_links(tap1={"carrier": False}), "ports", "waits for it", "ethtool tap1"),
    "no port matches": (facts({"downstream": ("vm*",)}), "downstream", "no port behind", "ip -br link"),
    "all down": (
        with_links(tap1={"up": False}, tap2={"up": False}),
        "downstream",
        "no port behind",
        "ip -br link",
    ),
    "IPv6 off": (
        facts(sysctls={"net/ipv6/conf/tap1/disable_ipv6": "1"}),
        "ipv6-off",
        "IPv6 is off",
        "sysctl -w net.ipv6.conf.tap1.disable_ipv6=0",
    ),
    "DAD failed": (
        facts(
            snapshot=replace(
                SNAPSHOT, addresses=(*SNAPSHOT.addresses, address(ETH0, "2001:db8:7::9", failed=True))
            )
        ),
        "duplicate-address",
        "2001:db8:7::9",
        "ip addr del 2001:db8:7::9/64 dev eth0",
    ),
    "frames lost": (with_work(drops={"eth0": 5}), "frames-lost", "frames are lost", "watch"),
    "not forwarding": (
        with_links(tap1={"force_forwarding": 0}),
        "forwarding",
        "IPv6",
        "sysctl -w net.ipv6.conf.tap1.force_forwarding=1",
    ),
    "not forwarding, older kernels": (
        facts(snapshot=replace(SNAPSHOT, force_forwarding=False)),
        "forwarding",
        "IPv6",
        "sysctl -w net.ipv6.conf.all.forwarding=1",
    ),
    "not forwarding IPv4": (
        with_links(eth0={"forwarding4": 0}),
        "forwarding",
        "IPv4",
        "sysctl -w net.ipv4.conf.eth0.forwarding=1",
    ),
    "RAs ignored": (
        facts(
            snapshot=replace(
                SNAPSHOT,
                links=(link(ETH0, "eth0", forwarding=1), *LINKS[1:]),
                routes=(ROUTES[0], route("::/0", ETH0, "fe80::1", protocol=9), *ROUTES[2:]),
            )
        ),
        "accept-ra",
        "loses its IPv6 default route",
        "sysctl -w net.ipv6.conf.eth0.accept_ra=2",
    ),
    "a proxy entry": (
        facts(
            snapshot=replace(SNAPSHOT, proxies=frozenset({ProxyEntry(ip_address(GUEST).packed, ETH0, 0)})),
            sysctls={"net/ipv6/conf/all/proxy_ndp": "1"},
        ),
        "proxy-entries",
        f"answers there for {GUEST}",
        f"ip neigh del proxy {GUEST} dev eth0",
    ),
    "networkd": (
        facts(networkd=Networkd(routes=True, rules=True, unmanaged=frozenset())),
        "networkd",
        "removes the routes and rules",
        "ManageForeignRoutes=no\\nManageForeignRoutingPolicyRules=no",
    ),
    "back out of the upstream": (
        facts(hosts=(host(GUEST, "eth0"),)),
        "host-route",
        "out of eth0",
        "match",
    ),
    "nowhere": (
        facts(hosts=(host("192.0.2.5", ""),)),
        "host-route",
        "nowhere",
        "match",
    ),
    "a routing daemon's host route": (
        facts(
            hosts=(
                host(GUEST, "docker0")._replace(
                    best=route(f"{GUEST}/128", DOCKER0, "fe80::1", metric=32, protocol=12)
                ),
            )
        ),
        "host-route",
        "metric 32",
        f"ip -6 route del {GUEST} dev docker0 metric 32 table main",
    ),
    "somebody's route": (
        facts(hosts=(host(GUEST, "tap1", "foreign"),)),
        "host-route",
        "somebody else",
        "route del",
    ),
    "a host's blackhole": (
        facts(barriers=(Barrier(IPv6Network(f"{GUEST}/128"), "blackhole", MAIN),)),
        "dead-end",
        f"{GUEST} ends in",
        f"ip -6 route del blackhole {GUEST}/128 table main",
    ),
    "unreachable, and no host routes": (
        facts({"routes": None}, barriers=(Barrier(LAN4, "unreachable", MAIN),)),
        "dead-end",
        "192.0.2.0/24 ends in",
        "ip route del unreachable 192.0.2.0/24 table main",
    ),
    "routed, and no route": (
        facts({"rules": (Rule(prefix=OTHER, answer=Answer.ROUTED),)}),
        "routed-nowhere",
        "none of them leaves",
        f"ip -6 route add {OTHER} dev tap1",
    ),
    "always, and no route": (
        facts({"rules": (Rule(prefix=OTHER, answer=Answer.ALWAYS),)}),
        "always-hole",
        "goes back where it came from",
        f"ip -6 route add {OTHER} dev tap1",
    ),
    "a part elsewhere": (
        with_routes(route("2001:db8:7:0:d::/80", DOCKER0)),
        "routed-elsewhere",
        "docker0",
        "add docker0",
    ),
    "the router asks in vain": (
        router("2001:db8:7:1::5"),
        "refused-targets",
        "no rule allows it",
        "`2001:db8:7:1::/64`",
    ),
    "a guest asks in vain": (
        router("192.0.2.77", port="tap1"),
        "refused-targets",
        "on tap1 asks for 192.0.2.77",
        "192.0.2.77/32",
    ),
    "an asker refused": (
        router(GUEST, verdict="asker-refused"),
        "refused-targets",
        "do not include it",
        "add fe80::1:1",
    ),
    "nobody asks": (with_work(asked={"eth0": (4,)}), "nobody-asks", "IPv6", "ping a host"),
    "the proxy's own address": (
        rivals(("2001:db8:7::2", "eth0", "", "eth0", A)),
        "rival",
        "this machine's own address",
        A,
    ),
    "another proxy has it": (
        rivals((GUEST, "eth0", A, "tap1", B), ("2001:db8:7::6", "eth0", A, "tap1", B)),
        "rival",
        f"{A} answers there for {GUEST}, 2001:db8:7::6",
        "stop the other proxy",
    ),
    "another proxy wants it": (rivals((GUEST, "tap1", B, "eth0", A)), "rival", f"{A} answers there", "stop"),
    "two guests": (
        rivals((GUEST, "tap1", A, "tap2", B)),
        "rival",
        f"two hosts have {GUEST}",
        "another address",
    ),
    "limits": (
        with_work(counters={"tap1": {"source-limit": 4}}),
        "limits",
        "`limits.per_source`",
        "watch --packets",
    ),
    "invalid": (with_work(counters={"eth0": {"bad-hop-limit": 4}}), "invalid", "invalid", "watch --packets"),
}


@pytest.mark.parametrize("name", FOUND)
def test_found(name: str) -> None:
    """Each check finds what it is for, says what was seen, and has a remedy."""
    given, check, words, remedy = FOUND[name]
    findings = found(given, check)
    assert findings
    assert all(finding.evidence and finding.remedy for finding in findings)
    assert any(words in finding.finding or words in finding.evidence for finding in findings), findings
    assert any(remedy in finding.remedy for finding in findings), findings


RESTS = {
    "daemon and a bad file that it did not read": (facts(), "config"),
    "a glob that matches nothing beside one that does": (facts({"downstream": ("tap*", "vm*")}), "ports"),
    "a link that a glob matches and whose address is being looked into": (
        facts(
            {"downstream": ("tap*",)},
            snapshot=replace(
                SNAPSHOT,
                addresses=(*SNAPSHOT.addresses[:-1], address(TAP2, "fe80::4", tentative=True)),
            ),
        ),
        "ports",
    ),
    "an upstream candidate that is not needed": (facts({"upstream": ("eth0", "wwan0")}), "ports"),
    "IPv6 off, and no rule for it": (
        facts({"rules": (Rule(prefix=LAN4),)}, sysctls={"net/ipv6/conf/tap1/disable_ipv6": "1"}),
        "ipv6-off",
    ),
    "DAD failed on a link that is no port": (
        facts(
            snapshot=replace(
                SNAPSHOT, addresses=(*SNAPSHOT.addresses, address(DOCKER0, "2001:db8:7::9", failed=True))
            )
        ),
        "duplicate-address",
    ),
    "the switch of all forwards": (
        facts(
            snapshot=replace(
                SNAPSHOT, forwarding=1, links=tuple(each._replace(force_forwarding=0) for each in LINKS)
            )
        ),
        "forwarding",
    ),
    "a static default route": (with_links(eth0={"forwarding": 1}), "accept-ra"),
    "accept_ra is 2": (with_links(eth0={"forwarding": 1, "accept_ra": 2}), "accept-ra"),
    "an entry of the kernel that rests": (
        facts(snapshot=replace(SNAPSHOT, proxies=frozenset({ProxyEntry(ip_address(GUEST).packed, ETH0, 0)}))),
        "proxy-entries",
    ),
    "Portier's own entry": (
        facts(
            snapshot=replace(SNAPSHOT, proxies=frozenset({ProxyEntry(ip_address(GUEST).packed, ETH0, 135)})),
            sysctls={"net/ipv6/conf/all/proxy_ndp": "1"},
        ),
        "proxy-entries",
    ),
    "networkd that keeps off": (
        facts(networkd=Networkd(routes=False, rules=False, unmanaged=frozenset())),
        "networkd",
    ),
    "networkd that manages none of the ports": (
        facts(networkd=Networkd(routes=True, rules=False, unmanaged=frozenset({ETH0, TAP1, TAP2}))),
        "networkd",
    ),
    "unreachable behind host routes": (facts(barriers=(Barrier(LAN, "unreachable", MAIN),)), "dead-end"),
    "unreachable behind a route": (
        facts(
            {"rules": (Rule(prefix=OTHER, answer=Answer.ROUTED),)},
            replace(SNAPSHOT, routes=(*ROUTES, route(str(OTHER), TAP1))),
            barriers=(Barrier(IPv6Network("2001:db8:8::/48"), "unreachable", MAIN),),
        ),
        "dead-end",
    ),
    "the kernel's own last route": (
        facts({"routes": None}, barriers=(Barrier(IPv6Network("::/0"), "unreachable", MAIN),)),
        "dead-end",
    ),
    "a blackhole in a table that nothing here uses": (
        facts(barriers=(Barrier(IPv6Network(f"{GUEST}/128"), "blackhole", 99),)),
        "dead-end",
    ),
    "routed, and a part has a route": (
        with_routes(route("2001:db8:8:0:1::/80", TAP1), rules=(Rule(prefix=OTHER, answer=Answer.ROUTED),)),
        "routed-nowhere",
    ),
    "always, and routed behind": (
        with_routes(route("2001:db8:8::/56", TAP2), rules=(Rule(prefix=OTHER, answer=Answer.ALWAYS),)),
        "always-hole",
    ),
    "always, and on-link upstream, which is told": (
        facts({"rules": (Rule(prefix=LAN, answer=Answer.ALWAYS),)}),
        "always-hole",
    ),
    "a part elsewhere that is denied": (
        with_routes(
            route("2001:db8:7:0:d::/80", DOCKER0),
            rules=(*RULES, Rule(prefix=IPv6Network("2001:db8:7:0:d::/80"), allow=False)),
        ),
        "routed-elsewhere",
    ),
    "the upstream's own prefix, where its name is misspelt": (
        facts({"upstream": ("eht0",)}),
        "routed-elsewhere",
    ),
    "a default route elsewhere": (with_routes(route("::/0", DOCKER0, "fe80::1")), "routed-elsewhere"),
    "a router that asked once": (router("2001:db8:7:1::5", again=1), "refused-targets"),
    "a router that asks for another customer's": (router("2001:db8:99::5"), "refused-targets"),
    "a router that asks for what is denied": (router(GUEST, verdict="denied"), "refused-targets"),
    "too soon to say that nobody asks": (
        facts(daemon=DAEMON._replace(uptime=60.0, work={"lan": WORK._replace(asked={})})),
        "nobody-asks",
    ),
    "nobody asks where there is no upstream": (
        facts({"upstream": ()}, work=WORK._replace(asked={})),
        "nobody-asks",
    ),
    "what a guest sends is invalid": (with_work(counters={"tap1": {"bad-code": 4}}), "invalid"),
}


@pytest.mark.parametrize("name", RESTS)
def test_not_found(name: str) -> None:
    """What looks like a cause and is none is left alone."""
    assert found(*RESTS[name]) == []


def test_many_hosts_are_one_finding() -> None:
    """A thousand hosts behind one wrong route are one line, with a few of their names."""
    hosts = tuple(host(f"2001:db8:7::{n:x}", "eth0") for n in range(1, 1001))
    (finding,) = found(facts(hosts=hosts), "host-route")
    assert (
        "2001:db8:7::1, 2001:db8:7::2, 2001:db8:7::3 and 997 more go out of eth0, and not to tap1"
        in finding.finding
    )


def test_many_routes_elsewhere_are_one_finding() -> None:
    """A thousand routes by an interface that is no port are one line."""
    routes = (route(f"2001:db8:7::f:{n:x}/128", DOCKER0) for n in range(1, 1001))
    (finding,) = found(with_routes(*routes), "routed-elsewhere")
    assert "2001:db8:7::f:3/128 and 997 more are allowed" in finding.finding


def test_forwarding_waits_for_the_daemon() -> None:
    """Where no daemon runs that turns it on, nothing can be said; with `sysctls: check` it can."""
    given = facts(snapshot=replace(SNAPSHOT, force_forwarding=False), daemon=None)
    (only,) = [check for check in CHECKS if check.name == "forwarding"]
    assert examine(given, [only]).unmade == (
        ("forwarding", "no daemon runs, which would turn forwarding on"),
    )
    checked = facts(
        snapshot=replace(SNAPSHOT, force_forwarding=False), daemon=None, sysctls_are=Sysctls.CHECK
    )
    assert found(checked, "forwarding")


@pytest.mark.parametrize("check", [check.name for check in told.CHECKS])
def test_what_the_daemon_tells_is_passed_on(check: str) -> None:
    """With its group, how bad it is, and its command; where it names none there is another remedy, and what
    others tell is left to their checks."""
    for bad in (True, False):
        mine = Told(check, bad, "lan", "it is so", "do that")
        (finding,) = found(facts(told=(mine, Told("another", True, "lan", "not this", ""))), check)
        mild = Severity.NOTE if check == "kernel-neighbors" else Severity.WARNING
        severity = Severity.PROBLEM if bad else mild
        evidence = "`portier status` says so too"
        assert finding == (check, severity, "group lan", "it is so", evidence, "do that")


def test_neighbors_that_the_kernel_keeps_matter_where_there_are_hosts() -> None:
    """Fewer than `limits.neighbors` is how machines come, and a warning only where hosts fill them."""
    mine = Told("kernel-neighbors", False, "lan", "too few", "sysctl")
    for hosts, severity in ((499, Severity.NOTE), (500, Severity.WARNING)):
        known = tuple(host(f"2001:db8:7::{n:x}", "tap1") for n in range(hosts))
        (finding,) = found(facts(told=(mine,), hosts=known), "kernel-neighbors")
        assert finding.severity is severity


def test_live_prefixes_are_judged_too() -> None:
    """`upstream` stands for prefixes, and those are what routes must lead to."""
    given = with_routes(route("2001:db8:7:0:d::/80", DOCKER0), rules=(Rule(prefix=Live.UPSTREAM),))
    assert found(given, "routed-elsewhere")

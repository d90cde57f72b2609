"""What should be, and the steps there: golden cases, and what they do not show."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

from portier.config import load
from portier.core import plan
from portier.core.model import (
    Answer,
    Bound,
    Config,
    Group,
    HostRoute,
    Live,
    Mode,
    PolicyRule,
    Port,
    ProxyEntry,
    Recorded,
    Role,
    Rule,
    Snapshot,
    State,
    Sysctls,
    Timers,
)
from portier.core.plan import Memory, Report
from portier.core.steps import StartWorker, Step, StopWorker, UpdateWorker
from portier.core.sysctls import FORWARDING
from portier.runtime.reconcile import Reconciler, Settings
from tests.fakes import FakeClock, FakeKernel, FakeRecord, FakeWorkers

GOLDEN = Path(__file__).parent.parent / "golden" / "plan"


# -- golden cases ------------------------------------------------------------------------------------------


class World:
    """The world of a golden case, and a reconciler in it."""

    def __init__(self, case: Path, first: dict[str, Any]) -> None:
        settings = first.get("kernel", {})
        self.case = case
        self.kernel = FakeKernel(FakeRecord(), force_forwarding=settings.get("force_forwarding", True))
        self.kernel.forwarding = self.kernel.forwarding_default = settings.get("forwarding", 0)
        self.workers = FakeWorkers(self.kernel)
        self.clock = FakeClock(0.0)
        self.reconciler = Reconciler(
            open_kernel=lambda: self.kernel,
            record=self.kernel.record,
            workers=self.workers,
            load=lambda: load(case / "config.yaml"),
            digest=str,
            emit=lambda _event: None,
            clock=self.clock,
        )
        self.reconciler.take(load(case / "config.yaml"))

    def change(self, document: dict[str, Any]) -> None:
        """Let happen what a document says."""
        self.clock.now = float(document.get("at", self.clock.now))
        for name, changes in document.get("links", {}).items():
            self._link(name, changes)
        ours = document.get("ours", {})
        for text in ours.get("routes", ()):
            route = self._host_route(text)
            self.kernel.record.note_route(route)
            self.kernel.host_routes.append(route)
        for name in ours.get("rules", ()):
            for rule in (_rule(name, source="fe80::/10"), _rule(name, destination="fe80::/10")):
                self.kernel.record.note_rule(rule)
                self.kernel.rules.add(rule)
        for text in ours.get("proxies", ()):
            entry = self._proxy(text)
            self.kernel.record.note_proxy(entry)
            self.kernel.proxies.add(entry)
        for path, (found, made) in ours.get("sysctls", {}).items():
            self.kernel.record.note_sysctl(path, found, made)
        self.kernel.proxies |= {
            self._proxy(text)._replace(protocol=0) for text in document.get("proxies", ())
        }
        self.kernel.proxies -= {self._proxy(text) for text in document.get("flushed", ())}
        self.kernel.host_routes += [self._host_route(text) for text in document.get("foreign", ())]
        for text in document.get("learned", ()):
            self.workers.learn(text.split()[0], self.kernel.index(text.split()[2]))
        for text in document.get("forgotten", ()):
            self.workers.hosts.discard(self._host_route(text))
        for text in document.get("lost", ()):
            self.kernel.host_routes.remove(self._host_route(text))
        for path, value in document.get("sysctls", {}).items():
            self.kernel.set_sysctl(path, value)
        if "config" in document:
            config = load(self.case / document["config"]).config
            self.reconciler.settings = Settings(config)

    def _link(self, name: str, changes: dict[str, Any] | None) -> None:
        kernel = self.kernel
        if changes is None:
            kernel.remove_link(name)
            return
        changes = dict(changes)
        addresses, routes, without = (changes.pop(key, ()) for key in ("addresses", "routes", "without"))
        if changes.get("mac") == "none":
            changes["mac"] = None
        if not any(link.name == name for link in kernel.links.values()):
            forwarding = changes.pop("forwarding", None)
            kernel.add_link(name, **changes)
            if forwarding is not None:
                kernel.change_link(name, forwarding=forwarding)
        elif changes:
            kernel.change_link(name, **changes)
            name = changes.get("name", name)
        for text in addresses:
            kernel.add_address(name, text.split()[0], tentative=text.endswith("tentative"))
        for text in routes:
            destination, *rest = text.split()
            kernel.add_foreign_route(
                "::/0" if destination == "default" else destination, name, via=rest[1] if rest else None
            )
        for text in without:
            kernel.remove_address(name, text)

    def _proxy(self, text: str) -> ProxyEntry:
        address, _, name = text.split()
        return ProxyEntry(ip_address(address).packed, self.kernel.index(name), 135)

    def _host_route(self, text: str) -> HostRoute:
        address, _, name = text.split()
        return HostRoute(ip_address(address).packed, self.kernel.index(name), 254, 4389, 135)


def _rule(name: str, source: str = "", destination: str = "") -> PolicyRule:
    return PolicyRule(plan.RULE_PRIORITY, name, source, destination, plan.PROTOCOL)


def play(case: Path) -> Iterator[str]:
    """The steps of a case, document by document."""
    documents = list(yaml.safe_load_all((case / "snapshot.yaml").read_text()))
    world = World(case, documents[0])
    for number, document in enumerate(documents):
        world.change(document)
        done = world.reconciler.clear() if document.get("stop") else world.reconciler.round()
        yield f"# {number + 1}: {document['what']}"
        yield from map(str, done.steps)
        yield from (f"! {error}" for error in done.errors)
        for of in world.reconciler.report.groups:
            yield from (f"? {line}" for line in (*of.problems, *of.warnings))
        yield from (f"? {line}" for line in world.reconciler.report.missing)
        yield from (f"? {line}" for line in world.reconciler.report.left)
        yield ""
        again = world.reconciler.clear() if document.get("stop") else world.reconciler.round()
        assert not again.steps, "a second round finds nothing to do"
    if documents[-1].get("stop"):
        assert world.kernel.record.empty(), "nothing stays on record after a stop"
        assert not world.workers.bounds


@pytest.mark.parametrize("case", sorted(p for p in GOLDEN.iterdir() if p.is_dir()), ids=lambda p: p.name)
def test_golden(case: Path) -> None:
    """Each case gives the steps that stand in its steps.txt, in that order."""
    got = "\n".join(play(case)).strip() + "\n"
    expected = case / "steps.txt"
    if os.environ.get("PORTIER_GOLDEN") == "write":
        expected.write_text(got)
    assert got == expected.read_text()


# -- what the golden cases do not show ---------------------------------------------------------------------


def group(name: str = "guests", *, downstream: tuple[str, ...] = ("tap-*",), **more: Any) -> Group:
    return Group(name=name, upstream=more.pop("upstream", ("eth0",)), downstream=downstream, **more)


def desired(
    config: Config | None, kernel: FakeKernel, memory: Memory | None = None, **more: Any
) -> tuple[State, Report, Memory]:
    return plan.desired(config, kernel.snapshot(), memory or Memory(), **{"now": 0.0, **more})


@pytest.fixture
def kernel() -> FakeKernel:
    made = FakeKernel()
    made.add_link("eth0")
    made.add_address("eth0", "2001:db8:7::1/64")
    made.add_link("tap-3")
    return made


def reasons(report: Report) -> dict[str, tuple[str, str]]:
    return {port.name: (port.state, port.reason) for of in report.groups for port in of.ports}


def test_unchanged_world_gives_the_same_objects(kernel: FakeKernel) -> None:
    """A round in which nothing changed costs no worker anything: its Bound is the very same object, even
    when the configuration was read again and is another object of the same value."""
    config = Config(groups=(group(),))
    want, _, memory = desired(config, kernel)
    again, _, memory = desired(Config(groups=(group(),)), kernel, memory, now=5.0)
    assert again.workers["guests"] is want.workers["guests"]
    assert plan.keep(Config(groups=(group(),)), memory).groups[0] is config.groups[0]


def test_an_upstream_that_loses_prefixes_all_the_time_fills_no_memory(kernel: FakeKernel) -> None:
    """Whoever may send Router Advertisements there may let prefixes come and go; those lost last are kept."""
    config = Config(groups=(group(),))
    memory = Memory()
    for number in range(100):
        heard = frozenset(IPv6Network((f"2001:db8:{number:x}:{more:x}::", 64)) for more in range(8))
        want, _, memory = plan.desired(
            config, kernel.snapshot(), memory, heard={"guests": heard}, now=float(number)
        )
    live = want.workers["guests"].live
    assert len(live) <= 64 + 8 + 1
    assert IPv6Network("2001:db8:62::/64") in live


def test_same_snapshot_is_not_bound_again(kernel: FakeKernel) -> None:
    """Where the kernel shows the very same links, addresses and routes, only what workers learned and what
    is on record is looked at anew; time that matters is never skipped."""
    config = Config(groups=(group(timers=Timers(prefix_grace=100.0)),))
    snapshot = kernel.snapshot()
    want, report, memory = plan.desired(config, snapshot, Memory(), now=0.0)
    route = HostRoute(IPv6Address("2001:db8:7::5").packed, kernel.index("tap-3"), 254, 4389, 135)
    again, same, memory = plan.desired(
        config, snapshot, memory, learned=frozenset({route}), recorded=Recorded(), now=1.0
    )
    assert again.host_routes == {route}
    assert again.rules is want.rules
    assert same.groups is report.groups
    other, _, _ = plan.desired(None, snapshot, memory, now=1.0)
    assert not other.workers
    kernel.remove_address("eth0", "2001:db8:7::1/64")
    snapshot = kernel.snapshot()
    _, _, memory = plan.desired(config, snapshot, memory, now=2.0)
    late, _, _ = plan.desired(config, snapshot, memory, now=102.0)
    assert late.workers["guests"].live == ()


def test_nothing_to_do_between_equal_states(kernel: FakeKernel) -> None:
    """From a state to itself there are no steps."""
    want, _, _ = desired(Config(groups=(group(),)), kernel)
    assert plan.diff(want, want) == ()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"up": False}, ("waiting", "down")),
        ({"carrier": False}, ("waiting", "no carrier")),
        ({"mac": None}, ("refused", "no link-layer address")),
        ({"master": 99}, ("refused", "enslaved to interface 99")),
    ],
)
def test_upstream_reasons(kernel: FakeKernel, change: dict[str, Any], expected: tuple[str, str]) -> None:
    """The report names what keeps a candidate from being the upstream, and that degrades the daemon."""
    kernel.change_link("eth0", **change)
    _, report, _ = desired(Config(groups=(group(),)), kernel)
    assert reasons(report)["eth0"] == expected
    assert report.groups[0].active is None
    assert report.groups[0].problems


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"mtu": 1279}, ("refused", "its MTU of 1279 is below 1280, the least that IPv6 takes")),
        (
            {"mac": None},
            ("refused", "no link-layer address: mode relay has none to write into what it relays"),
        ),
        ({"master": 99}, ("refused", "enslaved to interface 99")),
        ({"up": False}, ("waiting", "down")),
        ({"mtu": 1280}, ("active", "")),
    ],
)
@pytest.mark.parametrize("name", ["eth0", "tap-3"])
def test_nd_046_relay_refuses_what_it_cannot_relay_to(
    kernel: FakeKernel, name: str, change: dict[str, Any], expected: tuple[str, str]
) -> None:
    """A port of a relay group takes whole IPv6 packets and has a link-layer address, whichever its role."""
    kernel.change_link(name, **change)
    config = Config(groups=(group(mode=Mode.RELAY, rules=(), downstream=("tap-3",)),))
    want, report, _ = desired(config, kernel)
    assert reasons(report)[name] == expected
    ports = {port.name for bound in want.workers.values() for port in bound.ports}
    assert (name in ports) == (expected[0] == "active")
    assert {rule.iif for rule in want.rules} == ports, "the kernel is kept from forwarding on each"


def test_relay_needs_no_address(kernel: FakeKernel) -> None:
    """A port without any usable address relays all the same, as the upstream too, and says what it lacks."""
    kernel.addresses.clear()
    want, report, _ = desired(Config(groups=(group(mode=Mode.RELAY, rules=()),)), kernel)
    lacks = "relays, but has no usable address to speak from"
    assert reasons(report) == {"eth0": ("active", lacks), "tap-3": ("active", lacks)}
    assert report.groups[0].active == "eth0"
    assert [port.source for port in want.workers["guests"].ports] == [None, None]


def test_loopback_named_is_refused(kernel: FakeKernel) -> None:
    """The loopback is never a port, not even by name."""
    kernel.add_link("lo", kind="loopback", mac=None, address=False)
    _, report, _ = desired(Config(groups=(group(downstream=("lo",)),)), kernel)
    assert reasons(report)["lo"][0] == "refused"


def test_port_without_address_relays_only(kernel: FakeKernel) -> None:
    """A port whose addresses are tentative is a port without source, without policy rules, and said to
    wait; so DAD crosses the proxy before anything else does."""
    kernel.add_link("tap-4", address=False)
    kernel.add_address("tap-4", "fe80::4/64", tentative=True)
    want, report, _ = desired(Config(groups=(group(),)), kernel)
    port = next(port for port in want.workers["guests"].ports if port.name == "tap-4")
    assert port.source is None
    assert reasons(report)["tap-4"] == ("waiting", "no usable address")
    assert "tap-4" not in {rule.iif for rule in want.rules}


@pytest.mark.parametrize("answer", [Answer.RESOLVE, Answer.ROUTED])
def test_no_ipv4_address_to_ask_from_degrades(kernel: FakeKernel, answer: Answer) -> None:
    """ARP requests bear an IPv4 address of their sender.  Who asks for nobody needs none."""
    four = Rule(prefix=IPv4Network("192.0.2.0/24"), answer=answer)
    config = Config(groups=(group(rules=(four,)),))
    _, report, _ = desired(config, kernel)
    lack = "group guests: no IPv4 address to ask from, so no host is found by ARP: give eth0 one"
    assert report.groups[0].problems == ((lack,) if answer is Answer.RESOLVE else ())
    kernel.add_address("eth0", "192.0.2.1/24")
    _, report, _ = desired(config, kernel)
    assert report.groups[0].problems == ()


def test_ports_say_what_they_speak_from(kernel: FakeKernel) -> None:
    """The report has the source of either family: by ARP a downstream without an address of its own speaks
    from the upstream's, and from nothing where the group has no IPv4 rule, or no upstream to lend one."""
    kernel.add_address("eth0", "192.0.2.1/24")
    kernel.add_link("tap-4")
    kernel.add_address("tap-4", "192.0.2.4/24")
    own, lent = IPv4Address("192.0.2.4").packed, IPv4Address("192.0.2.1").packed

    def sources4(config: Group) -> dict[str, bytes | None]:
        _, report, _ = desired(Config(groups=(config,)), kernel)
        (of,) = report.groups
        assert all(port.source and len(port.source) == 16 for port in of.ports)
        return {port.name: port.source4 for port in of.ports}

    four = (Rule(prefix=IPv4Network("192.0.2.0/24")),)
    assert sources4(group(rules=four)) == {"eth0": lent, "tap-3": lent, "tap-4": own}
    assert sources4(group()) == {"eth0": None, "tap-3": None, "tap-4": None}
    assert sources4(group(rules=four, upstream=())) == {"tap-3": None, "tap-4": own}


def test_source_is_link_local_before_others_and_fresh_before_deprecated(kernel: FakeKernel) -> None:
    """A port speaks from its link-local address, else from another one that is past DAD."""
    kernel.add_link("tap-4", address=False)
    for text in ("2001:db8:4::9/64", "2001:db8:4::5/64"):
        kernel.add_address("tap-4", text)
    kernel.addresses = [
        a._replace(deprecated=True) if a.address[-1] == 5 and a.prefix_length == 64 else a
        for a in kernel.addresses
    ]
    want, _, _ = desired(Config(groups=(group(),)), kernel)
    by_name = {port.name: port for port in want.workers["guests"].ports}
    assert by_name["tap-4"].source == IPv6Address("2001:db8:4::9").packed
    assert by_name["eth0"].source == IPv6Address("fe80::2").packed
    assert by_name["eth0"].addresses == (IPv6Address("2001:db8:7::1").packed,)


def test_prefixes_of_a_port(kernel: FakeKernel) -> None:
    """`prefixes` are what the kernel routes out of a port but for defaults, link-local, multicast and
    single addresses on the link; `on_link` and the live prefixes those that need no gateway."""
    for network, via in (
        ("::/0", "fe80::1"),
        ("ff00::/8", None),
        ("2001:db8:aa::/56", None),
        ("2001:db8:bb::1/128", None),
        ("2001:db8:cc::1/128", "2001:db8:7::ff"),
        ("2001:db8:dd::/48", "fe80::1"),
    ):
        kernel.add_foreign_route(network, "eth0", via=via)
    want, report, _ = desired(Config(groups=(group(),)), kernel)
    bound = want.workers["guests"]
    on_link = (IPv6Network("2001:db8:7::/64"), IPv6Network("2001:db8:aa::/56"))
    _, without, _ = desired(Config(groups=(replace(group(), routes=None),)), kernel)
    assert any(
        warning.startswith("`routes: false`, and 2001:db8:7::/64") for warning in without.groups[0].warnings
    )
    routed = (Rule(prefix=Live.UPSTREAM, answer=Answer.ROUTED),)
    _, only_routed, _ = desired(Config(groups=(replace(group(), routes=None, rules=routed),)), kernel)
    assert not only_routed.groups[0].warnings, "the routes are the user's own"
    other = (Rule(prefix=IPv6Network("2001:db8:9::/64")),)
    _, elsewhere, _ = desired(Config(groups=(replace(group(), routes=None, rules=other),)), kernel)
    assert not elsewhere.groups[0].warnings, "none of its hosts is on-link upstream"
    assert bound.ports[0].on_link == on_link
    assert bound.live == on_link
    assert bound.ports[0].prefixes == (
        *on_link,
        IPv6Network("2001:db8:cc::1/128"),
        IPv6Network("2001:db8:dd::/48"),
    )
    assert bound.next_hops == {(IPv6Address("2001:db8:7::ff").packed, bound.ports[0].ifindex)}
    assert [entry.grace_left for entry in report.groups[0].live] == [None, None]


def test_default_route_without_gateway_is_no_live_prefix(kernel: FakeKernel) -> None:
    """`default dev eth0` does not make the whole of IPv6 the upstream's prefix."""
    kernel.add_foreign_route("::/0", "eth0")
    want, _, _ = desired(Config(groups=(group(),)), kernel)
    assert want.workers["guests"].live == (IPv6Network("2001:db8:7::/64"),)


def test_grace_is_a_deadline(kernel: FakeKernel) -> None:
    """A lost prefix stays for its grace; the memory says when the next round must come for it."""
    config = Config(groups=(group(timers=Timers(prefix_grace=100.0)),))
    _, _, memory = desired(config, kernel)
    assert memory.deadline == math.inf
    kernel.remove_address("eth0", "2001:db8:7::1/64")
    kernel.add_address("eth0", "2001:db8:8::1/64")
    _, report, memory = desired(config, kernel, memory, now=10.0)
    assert memory.deadline == 110.0
    assert report.groups[0].live[0] == (IPv6Network("2001:db8:7::/64"), 100.0)
    want, _, memory = desired(config, kernel, memory, now=60.0)
    assert memory.deadline == 110.0
    assert len(want.workers["guests"].live) == 2
    want, _, memory = desired(config, kernel, memory, now=110.0)
    assert want.workers["guests"].live == (IPv6Network("2001:db8:8::/64"),)
    assert memory.deadline == math.inf


def test_take_back_is_a_deadline(kernel: FakeKernel) -> None:
    """While an earlier candidate proves itself, the memory says when it has."""
    kernel.add_link("eth1")
    config = Config(groups=(group(upstream=("eth0", "eth1")),))
    kernel.change_link("eth0", carrier=False)
    _, report, memory = desired(config, kernel)
    assert report.groups[0].active == "eth1"
    kernel.change_link("eth0", carrier=True)
    _, report, memory = desired(config, kernel, memory, now=50.0)
    assert reasons(report)["eth0"] == ("standby", "eth1 is active")
    assert memory.deadline == 50.0 + plan.TAKE_BACK
    _, report, memory = desired(config, kernel, memory, now=60.0)
    assert report.groups[0].active == "eth0"


def test_only_routes_of_the_groups_table_and_ports_are_wanted(kernel: FakeKernel) -> None:
    """What a worker learned is wanted where its group puts routes now, and nowhere else."""
    index = kernel.index("tap-3")
    good = HostRoute(IPv6Address("2001:db8:7::5").packed, index, 254, 4389, 135)
    learned = frozenset(
        {good, good._replace(table=100), good._replace(ifindex=99), good._replace(metric=1)},
    )
    want, _, _ = desired(Config(groups=(group(),)), kernel, learned=learned)
    assert want.host_routes == {good}
    want, _, _ = desired(Config(groups=(group(routes=None),)), kernel, learned=learned)
    assert not want.host_routes


def test_steps_name_what_they_can() -> None:
    """A route shows its table when that is not the main one, and its device by number when it is gone."""
    route = HostRoute(IPv6Address("2001:db8::5").packed, 7, 100, 4389, 135)
    other = HostRoute(IPv6Address("2001:db8::6").packed, 8, 254, 4389, 135)
    steps = plan.diff(
        State(host_routes=frozenset({route})), State(host_routes=frozenset({other})), {7: "tap"}
    )
    assert [str(step) for step in steps] == [
        "+ route 2001:db8::5/128 dev tap table 100",
        "- route 2001:db8::6/128 dev #8",
    ]


def test_check_keeps_what_was_set_before(kernel: FakeKernel) -> None:
    """`sysctls: check` after `manage` changes nothing while it runs; what was set is put back at the end."""
    config = Config(groups=(group(),), sysctls=Sysctls.CHECK)
    path = "net/ipv6/conf/eth0/force_forwarding"
    kernel.set_sysctl(path, "1")
    recorded = Recorded(sysctls={path: ("0", "1")})
    want, report, _ = desired(config, kernel, recorded=recorded)
    assert want.sysctls == {path: "1"}
    assert report.missing == ("sysctl -w net.ipv6.conf.tap-3.force_forwarding=1",)
    want, _, _ = desired(None, kernel, recorded=recorded)
    assert want.sysctls == {path: "0"}


def test_ipv6_disabled_on_a_port_is_no_step(kernel: FakeKernel) -> None:
    """A link on which IPv6 is off has none of its sysctls."""
    kernel.change_link("tap-3", forwarding=None, accept_ra=None, force_forwarding=None)
    want, _, _ = desired(Config(groups=(group(),)), kernel)
    assert list(want.sysctls) == ["net/ipv6/conf/eth0/force_forwarding"]


def test_crash_between_the_switch_and_the_interfaces(kernel: FakeKernel) -> None:
    """all/forwarding was restored, then the daemon was killed before an interface of its own got its value
    back: the next one restores it."""
    kernel.force_forwarding = False
    path = "net/ipv6/conf/eth0/forwarding"
    recorded = Recorded(sysctls={FORWARDING: ("0", "1"), path: ("1", "0")})
    want, report, _ = desired(None, kernel, recorded=recorded)
    assert want.sysctls == {path: "1"}
    assert report.forget == (FORWARDING,)


def bound(name: str, *ports: int) -> Bound:
    return Bound(
        group=Group(name=name),
        ports=tuple(Port(i, f"p{i}", Role.DOWNSTREAM, b"\2" * 6, 1500, b"\0" * 16) for i in ports),
    )


def owners(steps: tuple[Step, ...], have: dict[str, Bound]) -> None:
    """Carry out worker steps, checking that an interface never has two owners."""
    now = dict(have)
    for step in steps:
        if isinstance(step, StopWorker):
            del now[step.name]
        elif isinstance(step, StartWorker | UpdateWorker):
            now[step.bound.group.name] = step.bound
        held = [port.ifindex for of in now.values() for port in of.ports]
        assert len(held) == len(set(held)), str(step)


@pytest.mark.parametrize(
    ("have", "want"),
    [
        ([("a", 1, 2), ("b", 3)], [("a", 1), ("b", 2, 3)]),
        ([("a", 1), ("b", 2), ("c", 3)], [("a", 2), ("b", 3), ("c", 1)]),
        ([("a", 1), ("b", 2)], [("b", 1, 2)]),
        ([("a", 1, 2)], [("a", 1), ("b", 2)]),
        ([("a", 1), ("b", 2)], [("a", 2), ("b", 1)]),
        ([("a", 1, 4), ("b", 2), ("c", 3)], [("a", 2, 4), ("b", 1, 3)]),
    ],
)
def test_one_owner_of_an_interface(have: list[tuple[Any, ...]], want: list[tuple[Any, ...]]) -> None:
    """However interfaces move between groups, none has two owners at any moment, and all arrive."""
    before = {name: bound(name, *ports) for name, *ports in have}
    after = {name: bound(name, *ports) for name, *ports in want}
    steps = plan.diff(State(workers=after), State(workers=before))
    owners(steps, before)
    final = dict(before)
    for step in steps:
        if isinstance(step, StopWorker):
            del final[step.name]
        elif isinstance(step, StartWorker | UpdateWorker):
            final[step.bound.group.name] = step.bound
    assert final == after


def test_always_over_an_on_link_prefix_warns(kernel: FakeKernel) -> None:
    """An `always` rule over an on-link prefix of the upstream answers for hosts that live there: said."""
    rules = (Rule(prefix=IPv6Network("2001:db8::/32"), answer=Answer.ALWAYS), Rule(prefix=Live.UPSTREAM))
    _, report, memory = desired(Config(groups=(group(rules=rules),)), kernel)
    assert any("on-link on eth0" in text for text in report.groups[0].warnings)
    _, report, _ = desired(Config(groups=(group(rules=rules),)), kernel, memory)
    assert report.groups[0].warnings, "it is still said when nothing changed"


def test_empty_snapshot_and_no_config() -> None:
    """Nothing comes of nothing."""
    want, report, memory = plan.desired(None, Snapshot(), Memory(), now=0.0)
    assert (want.workers, want.host_routes, want.rules, want.sysctls) == ({}, frozenset(), frozenset(), {})
    assert report == Report()
    assert memory.deadline == math.inf


def test_replaced_group_is_bound_anew(kernel: FakeKernel) -> None:
    """A group that differs in anything gives another Bound, even on the same ports."""
    want, _, memory = desired(Config(groups=(group(),)), kernel)
    other = replace(group(), isolate=True)
    again, _, _ = desired(Config(groups=(other,)), kernel, memory)
    steps = plan.diff(again, want)
    assert [str(step) for step in steps] == ["~ worker guests: other isolate"]


def test_always_for_the_upstreams_own_prefixes_is_told() -> None:
    """Of both families: whoever stands in for all that is on-link there takes every neighbor's place."""
    kernel = FakeKernel()
    kernel.add_link("eth0")
    kernel.add_address("eth0", "2001:db8:7::1/64")
    kernel.add_address("eth0", "192.0.2.1/24")
    rules = tuple(Rule(prefix=live, answer=Answer.ALWAYS) for live in Live)
    group = Group(name="guests", upstream=("eth0",), rules=rules)
    _, report, _ = plan.desired(Config(groups=(group,)), kernel.snapshot(), Memory(), now=0.0)
    assert [text.partition(":")[0].partition(",")[0] for text in report.groups[0].warnings] == [
        "`always` for upstream overlaps 2001",
        "`always` for upstream-ipv4 overlaps 192.0.2.0/24",
    ]

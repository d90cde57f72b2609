"""Every example is planned: with the links that it names, for groups that serve; and with none, for groups
that wait.

A fake kernel has the links and shows what is done to it.  Of each glob there are two links; of what a group
excludes there is one, to be left alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from portier.config import load
from portier.core import plan
from portier.core.doctor import machine, ports, told, ways
from portier.core.doctor.facts import Daemon, Facts, Setup, Told
from portier.core.doctor.finding import examine
from portier.core.model import Config
from portier.runtime.reconcile import Reconciler, Round
from tests.fakes import FakeClock, FakeKernel, FakeRecord, FakeWorkers

EXAMPLES = Path(__file__).parents[1] / "examples"
FILES = sorted(path for path in EXAMPLES.rglob("*") if path.suffix in (".yaml", ".toml"))
TUNNELS = {"wg0"}  # without a link-layer address


class Serves(NamedTuple):
    """What a group comes to: its active upstream, the prefix on that link, its downstream ports, and what
    stands by.  ``live`` is what `upstream` stands for among its prefixes."""

    upstream: str
    on_link: str
    downstream: tuple[str, ...]
    standby: tuple[str, ...] = ()
    live: tuple[str, ...] = ()
    relay: bool = False
    ipv4: bool = False
    table: int = 0  # of its own, and the next one is what downstreams are left with


GUESTS = {
    "guests": Serves(
        "enp3s0",
        "2001:db8:7::/64",
        ("virbr0", "lxc1", "lxc2"),
        standby=("wlp2s0",),
        live=("2001:db8:7::/64",),
    )
}
EXPECTED = {
    "autoconfigured-guests.yaml": {
        "guests": Serves("eth0", "2001:db8:7::/64", ("wlan0", "tap1", "tap2"), live=("2001:db8:7::/64",))
    },
    "guests.toml": GUESTS,
    "vms-and-containers.yaml": GUESTS,
    "relay-chain.yaml": {"workshop": Serves("enp1s0", "2001:db8:7::/64", ("enp2s0",), relay=True)},
    "relay-hotspot.yaml": {"hotspot": Serves("wlan0", "2001:db8:7::/64", ("wlan1", "eth0"), relay=True)},
    "relay-vm-host.yaml": {
        "machines": Serves("bond0", "2001:db8:7::/64", ("vm-1", "vm-2"), standby=("enp3s0",), relay=True)
    },
    "two-segments.yaml": {"lab": Serves("", "", ("enp1s0", "enp2s0"))},
    "two-uplinks.yaml": {
        "blue": Serves("eth0", "2001:db8:a::/64", ("blue-1", "blue-2"), table=1_378_781_928),
        "red": Serves("eth1", "2001:db8:b::/64", ("red-1", "red-2"), table=1_351_370_910),
    },
    "floating-addresses.yaml": {"floating": Serves("fg0", "2001:db8:7::/64", ("fpr-1", "fpr-2"), ipv4=True)},
    "vm-bridge.yaml": {"machines": Serves("vmbr0", "2001:db8:7::/64", ("vmbr1",), live=("2001:db8:7::/64",))},
    "vps-docker.yaml": {"docker": Serves("eth0", "2001:db8:7::/64", ("br-1", "br-2"))},
    "whole-prefix.yaml": {"everything": Serves("eth0", "2001:db8:7::/64", ("wg0", "eth1"))},
}

# What doctor finds in an example that is in order: that `always` answers for more than there is, and that
# routes are left to the user.
COSTS = {
    "guests.toml": {"always-overlap"},
    "vms-and-containers.yaml": {"always-overlap"},
    "whole-prefix.yaml": {"always-overlap", "routes-off"},
    "floating-addresses.yaml": {"routed-nowhere"},
}


class World:
    """A kernel with nothing but the loopback, and a reconciler with an example."""

    def __init__(self, path: Path) -> None:
        loaded = load(path)
        self.config: Config = loaded.config
        self.kernel = FakeKernel(FakeRecord())
        self.kernel.add_link("lo", kind="loopback", address=False, mac=None)
        self.workers = FakeWorkers(self.kernel)
        self.reconciler = Reconciler(
            open_kernel=lambda: self.kernel,
            record=self.kernel.record,
            workers=self.workers,
            load=lambda: loaded,
            digest=str,
            emit=lambda _event: None,
            clock=FakeClock(),
        )
        self.reconciler.take(loaded)

    def add_links(self, on_link: dict[str, str]) -> None:
        """Make the links that the groups name: upstreams with an address in their group's prefix, two links
        for each glob, and those that are excluded."""
        for group in self.config.groups:
            for name in group.upstream:
                self.kernel.add_link(name)
                self.kernel.add_address(name, on_link[group.name].replace("::/", f"::{len(name)}/"))
            for pattern in group.downstream:
                plain = pattern.removeprefix("!")
                names = [plain.replace("*", number) for number in "12"] if "*" in plain else [plain]
                for name in names:
                    self.kernel.add_link(name, mac=None if name in TUNNELS else b"")

    def states(self, group: str) -> dict[str, str]:
        """The ports of a group and their states."""
        found = next(of for of in self.reconciler.report.groups if of.group.name == group)
        return {port.name: port.state for port in found.ports}


def steps(done: Round) -> list[str]:
    """The steps of a round without errors, in no order."""
    assert not done.errors
    return sorted(map(str, done.steps))


def expected(groups: dict[str, Serves]) -> list[str]:
    """A worker for each group; on each of its ports forwarding, but not of link-local packets; in mode relay
    none at all.  With tables of its own, those rules and routes."""
    wanted = []
    for name, serves in groups.items():
        front = [f"upstream {serves.upstream}"] if serves.upstream else []
        ports = ", ".join([*front, f"downstream {' '.join(serves.downstream)}"])
        wanted.append(f"+ worker {name}{' (relay)' * serves.relay}: {ports}")
        for port in (*filter(None, [serves.upstream]), *serves.downstream):
            if serves.relay:
                wanted.append(f"+ rule iif {port} blackhole")
                continue
            if serves.table:
                table = serves.table + (port != serves.upstream)
                wanted += [f"+ rule iif {port} lookup {table}", f"+ rule iif {port} unreachable"]
            if serves.ipv4:
                wanted.append(f"~ sysctl net/ipv4/conf/{port}/forwarding 0 -> 1")
            wanted += [
                f"~ sysctl net/ipv6/conf/{port}/force_forwarding 0 -> 1",
                f"+ rule iif {port} from fe80::/10 blackhole",
                f"+ rule iif {port} to fe80::/10 blackhole",
            ]
        if serves.table:
            own = serves.table
            route = f"+ route {serves.on_link} dev {serves.upstream} table"
            wanted += [f"{route} {table} metric 256" for table in (own, own + 1)]
            wanted.append(f"+ rule iif lo lookup {own} suppress_prefixlength 127")
    return sorted(wanted)


def test_all_are_here() -> None:
    """No example is without expectations, and no expectation without its example."""
    assert {path.name for path in FILES} == EXPECTED.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_example_with_its_links(path: Path) -> None:
    """With all its links each group serves on exactly its ports, and the next round has nothing to do."""
    groups = EXPECTED[path.name]
    world = World(path)
    world.add_links({name: serves.on_link for name, serves in groups.items()})
    assert steps(world.reconciler.round()) == expected(groups)
    assert world.workers.running().keys() == groups.keys()
    for name, serves in groups.items():
        active = dict.fromkeys(filter(None, [serves.upstream, *serves.downstream]), "active")
        assert world.states(name) == active | dict.fromkeys(serves.standby, "standby")
        live = world.workers.running()[name].live
        assert {*map(str, live)} == set(serves.live)
    assert steps(world.reconciler.round()) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_doctor_finds_an_example_in_order(path: Path) -> None:
    """Where its links are, but for what the example itself says that it costs."""
    world = World(path)
    world.add_links({name: serves.on_link for name, serves in EXPECTED[path.name].items()})
    world.reconciler.round()
    snapshot = world.kernel.snapshot()
    state, report, _ = plan.desired(world.config, snapshot, plan.Memory(), now=0.0)
    facts = Facts(
        daemon=Daemon(pid=1, uptime=1.0, file=str(path)),
        told=tuple(
            Told(notice.check, problem, of.group.name, notice.finding, notice.remedy)
            for of in report.groups
            for problem, notices in ((True, of.problems), (False, of.warnings))
            for notice in notices
        ),
        hosts=(),
        barriers=(),
        networkd=None,
        config=world.config,
        snapshot=snapshot,
        setup=Setup(report.groups, state.workers),
    )
    checks = (*machine.CHECKS, *ports.CHECKS, *ways.CHECKS, *told.CHECKS)
    diagnosis = examine(facts, checks)
    assert {finding.check for finding in diagnosis.findings} == COSTS.get(path.name, set())
    assert not diagnosis.unmade


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_example_without_links(path: Path) -> None:
    """On a machine with none of its links nothing is done, and every port that has a name waits."""
    world = World(path)
    assert steps(world.reconciler.round()) == []
    assert world.workers.running() == {}
    for group in world.config.groups:
        patterns = (*group.upstream, *group.downstream)
        named = [name for name in patterns if "*" not in name and not name.startswith("!")]
        assert world.states(group.name) == dict.fromkeys(named, "waiting")
    assert all(of.active is None for of in world.reconciler.report.groups)

"""The real engine and real sockets; only the kernel's routing table is a stand-in."""

from collections.abc import Iterator
from ipaddress import IPv6Address, IPv6Network

import pytest

from portier.core import ndp
from portier.core.model import Bound, Group, Port, Role, Rule
from portier.core.route import RouteEngine
from portier.core.rules import RuleTable
from portier.runtime.supervisor import Supervisor
from portier.runtime.worker import Worker
from portier.system.packet import PacketPort
from tests.cables import Plug, await_carrier, cable, ip, own_namespace
from tests.runtime.rig import FakeKernel, FakeMemberships, World, wait_for

LAN = IPv6Network("2001:db8:7::/64")
ASKER = IPv6Address("2001:db8:7::99").packed
HOST = IPv6Address("2001:db8:7::5").packed


class Scene:
    """A group between two cables, and a host at the far end of each."""

    def __init__(self) -> None:
        self.world = World()
        self._plugs: list[Plug] = []
        self.up, self.asker = self.cable("up0", "wan")
        self.down, self.host = self.cable("tap0", "guest")
        self.supervisor = Supervisor(
            lambda bound, crashed: Worker(
                bound.group.name,
                open_port=PacketPort,
                open_kernel=self._open_kernel,
                open_memberships=FakeMemberships,
                recollect=lambda _: (),
                make_engine=RouteEngine,
                feed=self.world.feed,
                on_event=self.world.events.append,
                wake=self.world.wakes.append,
                crashed=crashed,
            ),
            self.world.wakes.append,
        )

    def _open_kernel(self) -> FakeKernel:
        self.world.kernels.append(FakeKernel(self.world))
        return self.world.kernels[-1]

    def cable(self, one: str, other: str) -> tuple[Plug, Plug]:
        """Lay a cable that is put away at the end."""
        plugs = cable(one, other)
        self._plugs += plugs
        return plugs

    def close(self) -> None:
        """Stop and put away."""
        self.supervisor.close()
        for plug in self._plugs:
            plug.close()

    def bound(self) -> Bound:
        return Bound(
            group=Group(name="guests", upstream=("up0",), downstream=("tap*",), rules=(Rule(prefix=LAN),)),
            ports=(self._port(self.up, Role.UPSTREAM), self._port(self.down, Role.DOWNSTREAM)),
            live=(LAN,),
        )

    def _port(self, plug: Plug, role: Role) -> Port:
        return Port(
            ifindex=plug.index,
            name=plug.name,
            role=role,
            mac=plug.mac,
            mtu=1500,
            source=IPv6Address(f"fe80::{plug.index}").packed,
        )

    def hears(self, plug: Plug, kind: int) -> ndp.Message:
        """The next message of that type at the far end of a cable."""
        while True:
            message = ndp.parse(ndp.NO_OFFLOAD + plug.receive())
            if isinstance(message, ndp.Message) and message.type == kind:
                return message

    def resolve(self) -> ndp.Message:
        """The asker asks, the host answers, and so the asker gets its answer."""
        frame = ndp.solicitation(self.asker.mac, ASKER, HOST)
        self.asker.send(frame[ndp.VNET_HEADER :])
        asked = self.hears(self.host, ndp.SOLICITATION)
        assert asked.target == HOST
        answer = ndp.advertisement(
            asked.ether_source,
            self.host.mac,
            HOST,
            asked.source,
            HOST,
            ndp.S_FLAG | ndp.O_FLAG,
            self.host.mac,
        )
        self.host.send(answer[ndp.VNET_HEADER :])
        while True:
            told = self.hears(self.asker, ndp.ADVERTISEMENT)
            if told.flags & ndp.S_FLAG:  # and no announcement
                return told


@pytest.fixture
def scene() -> Iterator[Scene]:
    with own_namespace():
        scene = Scene()
        yield scene
        scene.close()


def test_a_host_is_found_and_answered_for(scene: Scene) -> None:
    """From the wire through engine and kernel back to the wire."""
    scene.supervisor.start(scene.bound())
    answer = scene.resolve()

    assert answer.target == HOST
    assert answer.ether_source == scene.up.mac
    assert [route.ifindex for route in scene.world.kernels[0].routes] == [scene.down.index]
    assert [route.address for route in scene.supervisor.learned()] == [HOST]
    counters = scene.supervisor.status()["guests"].counters
    assert counters["up0"] == {"resolving": 1}
    assert counters["tap0"] == {"heard": 1}


def test_a_flap_between_two_looks_does_not_deafen(scene: Scene) -> None:
    """A port that goes down and up so quickly that the reconciler sees no change is opened again, because
    it no longer counts as running."""
    bound = scene.bound()
    scene.supervisor.start(bound)
    ip("link set up0 down")
    ip("link set up0 up")
    wait_for(lambda: scene.world.wakes, "the reconciler is woken")
    assert [port.name for port in scene.supervisor.running()["guests"].ports] == ["tap0"]

    scene.supervisor.update(bound)
    assert scene.supervisor.running()["guests"] == bound
    await_carrier("up0", "wan")
    assert scene.resolve().target == HOST


def test_a_link_that_is_deleted_and_made_again(scene: Scene) -> None:
    """A new index is a new port; nothing of the old one is left."""
    scene.supervisor.start(scene.bound())
    scene.resolve()
    ip("link del tap0")
    wait_for(lambda: scene.world.wakes, "the reconciler is woken")
    scene.down, scene.host = scene.cable("tap0", "guest")
    scene.supervisor.update(scene.bound())

    assert scene.supervisor.learned() == frozenset()
    assert scene.resolve().target == HOST  # which may have waited since the host was announced
    wait_for(scene.supervisor.learned, "the host on the new link")
    assert [route.ifindex for route in scene.supervisor.learned()] == [scene.down.index]


def test_rules_compile_for_the_ports_at_hand(scene: Scene) -> None:
    """An update with other rules is in force when it returns, and the sockets stay."""
    bound = scene.bound()
    scene.supervisor.start(bound)
    scene.resolve()
    denied = Bound(group=Group(name="guests", rules=(Rule(prefix=LAN, allow=False),)), ports=bound.ports)
    scene.supervisor.update(denied)
    assert RuleTable.compile(denied).lookup(HOST) is not None

    assert scene.supervisor.learned() == frozenset()
    said = scene.supervisor.explain("guests", HOST, None)
    assert said.verdict.label == "denied"

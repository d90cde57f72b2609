"""Guests that claim what belongs to others: no route and no answer in their favour, and an event names it."""

from __future__ import annotations

import pytest

from tests.netns.lab import Capture, Host, Lab, holds_for, wait_for
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

SERVER = f"{NET}5"
VICTIMS = {"router": UPSTREAM, "proxy": PROXY, "server": SERVER, "guest": guest(2)}
# Another guest of whom nothing is known cannot be told from the claimant by anybody.
CLAIMS = [(victim, known) for victim in VICTIMS for known in (True, False) if known or victim != "guest"]
TIMERS = "timers: {retransmit: 300ms}"


@pytest.fixture
def scene(lab: Lab) -> Scene:
    """The usual scene; the server is another address of the upstream host, nobody's next hop."""
    scene = vps(lab)
    scene.u.add("eth0", f"{SERVER}/64")
    scene.start(config(extra=TIMERS))
    return scene


def reaches(source: Host, target: str) -> bool:
    """Whether pings arrive; the proxy's own first reply may go astray before the host route is there."""
    return source.ping(target, count=5, interval=0.1, timeout=1).received >= 3


def claim(scene: Scene, how: str, address: str) -> None:
    """Let guest 1 claim the address, again and again."""
    villain = scene.guests[1]
    mac = villain.mac("eth0")
    for _ in range(3):
        if how == "source":
            villain.inject("eth0", solicit(villain, f"{NET}4242", source=address))
        elif how == "advertisement":
            villain.inject("eth0", advertise(villain, address, flags=OVERRIDE))
        elif how == "unicast advertisement":
            to = scene.p.link_local("tap1")
            villain.inject(
                "eth0", advertise(villain, address, flags=OVERRIDE, to=to, to_mac=scene.p.mac("tap1"))
            )
        elif how == "dad":
            villain.inject("eth0", solicit(villain, address, source="::", mac=mac))


@pytest.mark.parametrize("how", ["source", "advertisement", "unicast advertisement", "dad"])
@pytest.mark.parametrize(("victim", "known"), CLAIMS)
def test_claim_by_a_message(scene: Scene, victim: str, how: str, known: bool) -> None:
    """A claim by a solicitation's source, an unsolicited advertisement or a DAD probe changes nothing."""
    address, portier = VICTIMS[victim], scene.portier
    other = scene.guests[2] if victim != "guest" else scene.u
    if known:
        assert reaches(other, address)
    claim(scene, how, address)
    holds_for(lambda: scene.p.host_routes().get(address) != "tap1", 0.7, "no route to the claimant")
    before = scene.guests[1].capture("eth0")
    assert reaches(other, address)
    assert not [frame for frame in before.frames() if not frame.outgoing and frame.raw[54:56] == b"\x80\x00"]
    assert scene.p.host_routes().get(address) != "tap1"
    if how != "dad" and (known or victim in ("router", "proxy")):
        portier.wait_event(address)


@pytest.mark.parametrize("victim", ["router", "proxy", "server"])
def test_claim_by_having_it(scene: Scene, victim: str) -> None:
    """A guest that just has the address, without DAD, and answers whoever asks, does not get the traffic
    of somebody who is not on its own segment."""
    address = VICTIMS[victim]
    villain = scene.guests[1]
    villain.add("eth0", f"{address}/64")
    at_villain = villain.capture("eth0")
    assert reaches(scene.guests[2], address)
    assert scene.p.host_routes().get(address) != "tap1"
    assert not [f for f in at_villain.frames() if not f.outgoing and f.raw[20] == 58 and f.raw[54] == 128]


@pytest.mark.parametrize("victim", VICTIMS)
def test_claim_of_a_known_address_by_answering(scene: Scene, victim: str) -> None:
    """The same, once the proxy knows the owner."""
    address = VICTIMS[victim]
    other = scene.guests[2] if victim != "guest" else scene.u
    assert reaches(other, address)
    villain = scene.guests[1]
    villain.add("eth0", f"{address}/64")
    villain.inject("eth0", solicit(villain, guest(2), source=address))
    villain.inject("eth0", advertise(villain, address))
    scene.portier.wait_event(address, villain.mac("eth0"))
    assert reaches(other, address)
    assert scene.p.host_routes().get(address) != "tap1"


def test_claim_of_an_address_that_was_confirmed_by_unicast(lab: Lab) -> None:
    """The owner's answer to a unicast solicitation has no O flag (so Linux): that makes it no proxy, whose
    word a host's own would beat."""
    scene = vps(lab)
    scene.start(config(extra="timers: {reachable: 200ms, retransmit: 300ms}"))
    address, villain = guest(2), scene.guests[1]
    at_owner = scene.guests[2].capture("eth0")
    scene.u.inject("eth0", solicit(scene.u, address))
    wait_for(lambda: scene.p.host_routes().get(address), 5, "known")
    wait_for(lambda: confirmed(scene, at_owner, address), 5, "asked by unicast, and answered")

    for _ in range(5):
        villain.inject("eth0", solicit(villain, f"{NET}4242", source=address))
        to = {"to": scene.p.link_local("tap1"), "to_mac": scene.p.mac("tap1")}
        villain.inject("eth0", advertise(villain, address, flags=SOLICITED | OVERRIDE, **to))
    scene.portier.wait_event(address, villain.mac("eth0"))
    holds_for(lambda: scene.p.host_routes().get(address) == "tap2", 0.7, "the owner keeps it")


def confirmed(scene: Scene, at_owner: Capture, address: str) -> bool:
    """Ask once more; whether the owner was asked by unicast, and answered without the O flag."""
    scene.u.inject("eth0", solicit(scene.u, address))
    return any(not frame.raw[58] & OVERRIDE for frame in at_owner.advertisements(address, outgoing=True))


@pytest.mark.parametrize("victim", VICTIMS)
def test_claim_by_the_kernels_own_dad(scene: Scene, victim: str) -> None:
    """A guest that uses DAD as it should is told at once that the address is taken."""
    address = VICTIMS[victim]
    villain = scene.guests[1]
    villain.use_dad("eth0")
    villain.add("eth0", f"{address}/64", dad=True)
    wait_for(lambda: villain.address_state("eth0", address) == "dadfailed", 3, "dadfailed")
    assert scene.p.host_routes().get(address) != "tap1"


def test_answer_out_of_turn(scene: Scene) -> None:
    """A guest that answers a solicitation which the owner upstream answers too loses to the owner, however
    early it speaks."""
    villain = scene.guests[1]
    front = scene.guests[2].capture("eth0")
    scene.guests[2].inject("eth0", solicit(scene.guests[2], SERVER))
    for _ in range(5):
        villain.inject("eth0", advertise(villain, SERVER))
    front.wait_advertisement(SERVER, outgoing=False)
    assert scene.guests[2].ping(SERVER)
    holds_for(lambda: SERVER not in scene.p.host_routes(), 0.7, "no route to the claimant")


def test_rule_ties_addresses_to_ports(lab: Lab) -> None:
    """With `downstream` in a rule, the address is learned there and nowhere else."""
    scene = vps(lab)
    rules = (
        f'["{NET}/64", {{allow: "{guest(1)}/128", downstream: tap1}}, '
        f'{{allow: "{guest(2)}/128", downstream: tap2}}]'
    )
    portier = scene.start(config(rules))
    villain = scene.guests[2]
    villain.inject("eth0", advertise(villain, guest(1)))
    villain.inject("eth0", solicit(villain, UPSTREAM, source=guest(1)))
    wait_for(lambda: portier.count("wrong-port") >= 1, 5, "the claim seen")
    assert guest(1) not in scene.p.host_routes()
    assert scene.u.ping(guest(1))
    assert scene.p.host_routes()[guest(1)] == "tap1"

"""`portier explain` names the step that decides, and the wire agrees."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.netns.lab import Lab, wait_for
from tests.netns.scenes import NET, Scene, config, fence, guest, solicit, vps

PATTERN = "2001:db8:7:1::"


@dataclass(frozen=True)
class Case:
    """An address, the port on which it is asked for, what decides, and whether there is an answer."""

    address: str
    on: str
    words: tuple[str, ...]
    answered: bool = False


CASES = {
    "works": Case(guest(1), "eth0", ("known on tap1", "verdict: answered"), answered=True),
    "no rule": Case("2001:db8:99::1", "eth0", ("no rule",)),
    "denied": Case(f"{NET}dead", "eth0", ("denie",)),
    "host pattern": Case(f"{PATTERN}2", "eth0", ("no rule",)),
    "no such host": Case(f"{NET}4444", "eth0", ("nobody",)),
    "wrong group": Case("2001:db8:8::21", "eth0", ("no rule", "group two has a rule for it", "never cross")),
    "port waiting": Case(f"{NET}31", "eth0", ("usable",)),
}


@pytest.fixture(scope="module")
def scene(shared_lab: Lab) -> Scene:
    """Two groups, and every reason for not answering that an address can have."""
    scene = vps(shared_lab)
    other = shared_lab.host("u2")
    shared_lab.link(other, "eth0", scene.p, "eth1")
    other.add("eth0", "2001:db8:8::a/64")
    scene.guests[2].add("eth0", "2001:db8:8::21/64")
    scene.guests[1].add("eth0", f"{NET}dead/64")
    scene.guests[1].add("eth0", f"{PATTERN}2/64")
    rules = (
        f'["{NET}/64", {{deny: "{NET}dead/128"}}, {{allow: "{NET}31/128", downstream: absent0}}, '
        f'{{allow: "{PATTERN}/64", host: "::1:0/::ffff:0"}}]'
    )
    one = config(
        rules, name="one", downstream="[tap1, absent0]", extra="timers: {retransmit: 200ms, negative: 60s}"
    )
    two = config('["2001:db8:8::/64"]', name="two", upstream="eth1", downstream="tap2").partition(
        "groups:\n"
    )[2]
    scene.daemon = shared_lab.portier(one + two, on=scene.p)
    scene.daemon.wait_ports("eth0", "tap1", group="one")
    scene.daemon.wait_ports("eth1", "tap2", group="two")
    return scene


@pytest.mark.parametrize("name", CASES)
def test_explain_agrees_with_the_wire(scene: Scene, name: str) -> None:
    """Ask the wire, then `explain`: the same outcome, by exit code, and the deciding step is named."""
    case = CASES[name]
    front = scene.u.capture("eth0")
    scene.u.inject("eth0", solicit(scene.u, case.address))
    if case.answered:
        front.wait_advertisement(case.address, outgoing=False)
    else:
        fence(scene, front, guest(1))
        wait_for(lambda: scene.portier.group("one")["pending"] == 0, 5, "nothing pending")
        assert not front.advertisements(case.address, outgoing=False)
    done = scene.portier.explain(case.address, case.on)
    assert done.returncode == (0 if case.answered else 1), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for word in case.words:
        assert word in done.stdout.lower(), done.stdout
    if name == "port waiting":
        assert "absent0" in done.stdout, done.stdout


def test_explain_before_anything_was_asked(scene: Scene) -> None:
    """For an address nobody has asked for yet, `explain` says what would happen, and what then does."""
    address = f"{NET}51"
    scene.guests[1].add("eth0", f"{address}/64")
    done = scene.portier.explain(address, "eth0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert scene.u.ping(address)


def test_explain_of_nonsense(scene: Scene) -> None:
    """What is no address, or no port, is a wrong usage, said in one line."""
    for args in (("not-an-address", None), (f"{NET}1", "nosuchport")):
        done = scene.portier.explain(*args)
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) <= 1 or args[1], done.stderr


def test_explain_without_daemon(lab: Lab) -> None:
    """Where no daemon runs, the exit code says so."""
    scene = vps(lab)
    portier = scene.start(config())
    portier.stop()
    assert portier.explain(guest(1)).returncode == 4

"""What the engine for mode route notes for those who ask why nothing happens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from portier.core.model import Rule
from portier.core.notes import Noted
from portier.core.outcome import Verdict
from tests.core.playbook import LAN, D, Playbook, Stage, U, ip, mac, port

ROUTER = "fe80::1:1"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Play every scene in both families, but for what ARP cannot tell: a proxy's word from a host's."""
    only = "another_proxy" in metafunc.function.__name__
    metafunc.parametrize("family", (6,) if only else (6, 4), indirect=True, ids="ipv{}".format)


@pytest.fixture(autouse=True)
def family(request: pytest.FixtureRequest) -> Iterator[int]:
    """The family in which the scene is played."""
    Stage.family = request.param
    yield request.param
    Stage.family = 6


def noted(play: Playbook) -> Noted:
    return play.engine.noted(play.now)


def test_a_target_asked_for_in_vain() -> None:
    """What no rule allows is noted with who asked, and how often he asked again at once."""
    play = Playbook()
    for _ in range(3):
        assert play.ns(U, ROUTER, "2001:db8:8::5", 1) is Verdict.NO_RULE
        play.pass_time(1.0)
    (refused,) = noted(play).refused
    assert (refused.target, refused.port, refused.verdict) == (ip("2001:db8:8::5"), "up0", Verdict.NO_RULE)
    assert (refused.asker, refused.mac, refused.again) == (ip(ROUTER), mac(1), 2)
    assert refused.age == pytest.approx(1.0)
    assert noted(play).asked == {"up0": (), "down0": (), "down1": ()}


def test_one_who_got_an_answer_does_not_ask_again() -> None:
    """Questions with a pause between them may each have had an answer from the owner."""
    play = Playbook()
    for _ in range(3):
        play.ns(U, ROUTER, "2001:db8:8::5", 1)
        play.pass_time(30.0)
    assert [refused.again for refused in noted(play).refused] == [0]


def test_what_a_guest_asks_for_in_vain() -> None:
    """A rule that does not allow the gateway keeps guests from everything."""
    play = Playbook()
    play.ns(D, "::5", "2001:db8:8::5", 5)
    assert [(refused.port, refused.mac) for refused in noted(play).refused] == [("down0", mac(5))]


def test_denied_and_refused_askers_are_told_apart() -> None:
    """Each refusal has its verdict."""
    play = Playbook(rules=(Rule(prefix=LAN, allow=False),))
    play.ns(U, ROUTER, "::5", 1)
    assert [refused.verdict for refused in noted(play).refused] == [Verdict.DENIED]


def test_few_are_kept() -> None:
    """A scan of a whole prefix leaves the last few targets, the last first."""
    play = Playbook()
    for number in range(100):
        play.ns(U, ROUTER, f"2001:db8:8::{number + 1:x}", 1)
    play.ns(D, "::5", "2001:db8:9::5", 5)
    *kept, last = noted(play).refused
    assert last.port == "down0"
    assert len(kept) == 16
    assert kept[0].target == ip("2001:db8:8::64")


def test_what_is_allowed_and_asked_for() -> None:
    """Once somebody has asked for an allowed address, that is known of the port, over reloads too."""
    play = Playbook()
    play.ns(U, ROUTER, "::5", 1)
    play.configure()
    assert noted(play).asked == {"up0": (Stage.family,), "down0": (), "down1": ()}


def test_an_impostor() -> None:
    """Who claims the proxy's own address is noted."""
    play = Playbook(ports=(port(U, addresses=(ip("::1"),)), port(D)))
    play.na(U, "::1", 66, flags="O")
    (contested,) = noted(play).contested
    assert (contested.address, contested.port, contested.mac) == (ip("::1"), "up0", None)
    assert (contested.rival_port, contested.rival_mac) == ("up0", mac(66))


def test_somebody_upstream_answers_for_a_guest() -> None:
    """A node on the upstream that answers what the proxy asks there, as another proxy does, is noted as the
    one who has the guest's address, and the guest as the one who wanted it."""
    play = Playbook(ports=(port(U, on_link=(LAN,)), port(D)))
    play.na(D, "::5", 5, flags="O")
    play.na(U, "::5", 66, flags="SO")
    (contested,) = noted(play).contested
    assert (contested.address, contested.port, contested.mac) == (ip("::5"), "up0", mac(66))
    assert (contested.rival_port, contested.rival_mac) == ("down0", mac(5))


@pytest.mark.parametrize("late", [False, True])
def test_another_proxy_upstream_answers_for_a_guest(late: bool) -> None:
    """What a proxy says has O=0 and moves no host that has spoken for itself; it is noted all the same."""
    play = Playbook(ports=(port(U, on_link=(LAN,)), port(D)))
    play.ns(U, ROUTER, "::5", 1)
    play.na(D, "::5", 5)
    if late:
        play.pass_time(1.0)
        play.na(D, "::5", 5)
    play.na(U, "::5", 66, flags="S")
    (contested,) = noted(play).contested
    assert (contested.port, contested.mac) == ("down0", mac(5))
    assert (contested.rival_port, contested.rival_mac) == ("up0", mac(66))


def test_two_hosts_with_one_address() -> None:
    """A conflict is noted with both."""
    play = Playbook()
    play.learn(D, "::5", 5)
    play.na(U, "::5", 66, flags="O")
    play.na(D, "::5", 5)
    (contested,) = noted(play).contested
    assert (contested.port, contested.mac) == ("down0", mac(5))
    assert (contested.rival_port, contested.rival_mac) == ("up0", mac(66))

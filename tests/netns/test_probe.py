"""`portier doctor --probe` follows a solicitation and packets through the proxy, and names what fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jsonschema
import pytest

from tests.netns.lab import ROOT, Lab, wait_for
from tests.netns.scenes import NET, PROXY, UPSTREAM, Scene, config, guest, vps

QUICK = "timers: {retransmit: 200ms, negative: 100ms}"
RULES = f'["{NET}/64", {{deny: "{NET}dead/128"}}, {{allow: "{NET}a1/128", answer: always}}, 198.51.100.0/24]'
SCHEMA = json.loads((ROOT / "schema" / "portier.probe.schema.json").read_text("utf-8"))
NEEDS_NFT = pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed")


@pytest.fixture(scope="module")
def scene(shared_lab: Lab) -> Scene:
    """A proxy that leaves the sysctls to the tests, for both families, with two hosts behind."""
    scene = vps(shared_lab)
    scene.p.sysctl("net/ipv6/conf/all/forwarding", 1)
    scene.p.sysctl("net/ipv4/ip_forward", 1)
    scene.u.add("eth0", "198.51.100.1/24")
    scene.p.add("eth0", "198.51.100.2/24")
    scene.p.ip("-4 route add default via 198.51.100.1 dev eth0")
    scene.guests[1].add("eth0", "198.51.100.17/24")
    scene.start(config(RULES, extra=QUICK, head="sysctls: check"))
    assert scene.p.ping(UPSTREAM), "the kernel knows its router"
    return scene


def probe(scene: Scene, address: str, *more: str) -> dict[str, Any]:
    """What `doctor --probe --json` says."""
    done = scene.portier.cli("doctor", "--json", "--probe", address, *more)
    assert done.returncode in {0, 3}, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    jsonschema.Draft202012Validator(SCHEMA).validate(answer)
    assert answer["works"] == (done.returncode == 0)
    return answer


def failing(answer: dict[str, Any]) -> tuple[str, str, str]:
    """The hop that failed, which is the last: its name, what it says and the remedy."""
    last = answer["hops"][-1]
    assert last["state"] == "FAILED", answer
    assert [hop for hop in answer["hops"] if hop["state"] == "FAILED"] == [last]
    return last["name"], last["text"], last["remedy"]


def test_the_whole_way_works(scene: Scene) -> None:
    """Every hop of a host that works is named and fine, and the router learns nothing that is wrong."""
    answer = probe(scene, guest(1))
    hops = {hop["name"]: hop for hop in answer["hops"]}
    assert answer["works"]
    assert list(hops) == [
        "port", "solicitation", "rule", "question", "host", "route", "advertisement", "forwarding",
        "way-back", "firewall", "ping", "answer",
    ]  # fmt: skip
    assert all(hop["state"] == "ok" for hop in answer["hops"] if hop["name"] != "firewall"), answer
    assert UPSTREAM in hops["solicitation"]["text"]
    assert scene.guests[1].mac("eth0") in hops["host"]["text"]
    assert "tap1" in hops["forwarding"]["text"]
    assert scene.u.mac("eth0") in hops["advertisement"]["text"]
    known = scene.portier.neighbors().get(UPSTREAM)
    assert known is None or known["mac"] == scene.u.mac("eth0"), "nothing wrong is learned"
    assert probe(scene, guest(1))["works"], "known by now"


def test_nobody_is_misled(scene: Scene) -> None:
    """The router, which asked for nothing, has no entry afterwards; and nobody is known whom nobody heard."""
    fresh = f"{NET}78"
    scene.guests[2].add("eth0", f"{fresh}/64")
    before = set(scene.portier.neighbors())
    assert probe(scene, fresh)["works"]
    assert set(scene.portier.neighbors()) - before <= {fresh, UPSTREAM}
    assert not scene.u.ip_json(f"-6 neigh show {fresh}")
    assert probe(scene, fresh, "--on", "tap1")["works"]
    macs = {host["mac"] for host in scene.portier.neighbors().values()}
    assert not {mac for mac in macs if mac.startswith("02:43:89:")}, "made-up neighbors"


def test_a_probe_is_nobody_who_asks(lab: Lab) -> None:
    """Doctor goes by who asked for what and what was refused, and that is nothing after probes alone."""
    scene = vps(lab, guests=1)
    scene.start(config(f'["{NET}/64", {{deny: "{NET}dead/128"}}]', extra=QUICK))
    for address in (guest(1), f"{NET}dead", f"{NET}dead", "2001:db8:7:1::5", "2001:db8:7:1::5", "ff02::5"):
        probe(scene, address)
    group = scene.portier.group()
    assert (group["asked"]["eth0"], group["refused"]) == ([], [])
    assert not group["counters"]["eth0"].keys() & {"denied", "no-rule", "bad-target"}


def test_for_people(scene: Scene) -> None:
    """A line for each hop, and the outcome."""
    done = scene.portier.cli("doctor", "--probe", guest(1))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split()[:2] == ["port", "ok"]
    assert lines[-1] == f"{guest(1)} is reached"
    done = scene.portier.cli("doctor", "--probe", f"{NET}dead")
    assert done.returncode == 3
    assert "FAILED" in done.stdout
    assert "! 2001:db8:7::dead is not reached: rule" in done.stdout


def test_ipv4(scene: Scene) -> None:
    """The same by ARP."""
    answer = probe(scene, "198.51.100.17")
    assert answer["works"], json.dumps(answer, indent=1)
    assert "198.51.100.1" in answer["hops"][1]["text"]
    name, text, _ = failing(probe(scene, "198.51.100.18"))
    assert (name, "tap1, tap2" in text) == ("host", True)


def test_from_downstream(scene: Scene) -> None:
    """`--on` has it asked for elsewhere."""
    answer = probe(scene, guest(1), "--on", "tap2")
    assert answer["port"] == "tap2"
    hops = {hop["name"]: hop for hop in answer["hops"]}
    assert hops["advertisement"]["state"] == "ok"
    assert "left by tap2" in hops["advertisement"]["text"]
    scene.guests[2].ping(guest(1))
    answer = probe(scene, guest(1), "--on", "tap2")
    assert answer["router"] in {guest(2), f"{NET}78"}, "a host there"
    hops = {hop["name"]: hop["state"] for hop in answer["hops"]}
    assert hops["way-back"] == hops["answer"] == "ok", answer


def test_an_address_of_the_proxy(scene: Scene) -> None:
    """Asked for on another port, it is answered for, and what is sent to it arrives."""
    answer = probe(scene, PROXY, "--on", "tap2")
    assert answer["works"], answer
    assert "of this host itself" in next(hop["text"] for hop in answer["hops"] if hop["name"] == "forwarding")


def test_many_at_once_keep_nobody_waiting(scene: Scene) -> None:
    """One is followed at a time; the others are told so at once, and the control socket goes on answering."""
    nobody = f"/v1/probe?address={NET}4242"
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(scene.portier.request, "POST", nobody) for _ in range(8)]
        assert scene.portier.status()["groups"]
        answers = [one.result() for one in asked]
    done = [answer for answer in answers if "hops" in answer]
    assert done
    assert {answer["error"] for answer in answers if answer not in done} == {
        "another probe is under way: try again in a few seconds"
    }


def test_an_address_that_is_answered_in_any_case(scene: Scene) -> None:
    """An answer is not taken for a host."""
    name, text, _ = failing(probe(scene, f"{NET}a1"))
    assert (name, "nobody answers on tap1, tap2" in text) == ("host", True)


@dataclass(frozen=True)
class Case:
    """The hop that fails, words of what it says and of the remedy, the address, and what breaks its way and
    mends it again."""

    hop: str
    text: str
    remedy: str = ""
    address: str = guest(1)
    broken: Callable[[Scene], object] = lambda _: None
    mended: Callable[[Scene], object] = lambda _: None


def firewalled(scene: Scene) -> None:
    scene.guests[1].run(["nft", "-f", "-"], stdin="table ip6 f { chain i { type filter hook input "
        "priority 0; icmpv6 type echo-request drop; }; }")  # fmt: skip


def dropping(scene: Scene) -> None:
    scene.p.run(["nft", "-f", "-"], stdin="table inet f { chain c { type filter hook forward priority 0; "
        'policy drop; ct state established accept; iifname "tap*" accept; }; }')  # fmt: skip


def silenced(scene: Scene) -> None:
    scene.p.run(["nft", "-f", "-"], stdin='table netdev f { chain e { type filter hook egress device "eth0" '
        "priority 0; icmpv6 type nd-neighbor-advert drop; }; }")  # fmt: skip


def up_again(scene: Scene) -> None:
    scene.p.ip("link set eth0 up")
    scene.p.ip(f"addr replace {NET}2/64 dev eth0 nodad")
    scene.p.ip(f"-6 route replace default via {UPSTREAM} dev eth0")
    scene.p.ip("-4 route replace default via 198.51.100.1 dev eth0")
    scene.portier.wait_ports("eth0", "tap1", "tap2")
    assert scene.p.ping(UPSTREAM)


CASES = {
    "no rule": Case("rule", "no rule allows it", "add to prefixes", address="2001:db8:99::1"),
    "asked for where it is": Case(
        "rule", "it lives on the very port that asks", f"portier doctor --probe {UPSTREAM} --on tap1",
        address=UPSTREAM, broken=lambda scene: scene.u.ping(guest(1)),
    ),
    "denied": Case("rule", "denied", "portier explain", address=f"{NET}dead"),
    "host absent": Case("host", "nobody answers on tap1, tap2", "ip addr show", address=f"{NET}4444"),
    "host firewalled": Case(
        "ping", "no answer", "its firewall", broken=firewalled,
        mended=lambda scene: scene.guests[1].run(["nft", "flush", "ruleset"]),
    ),
    "forwarding off": Case(
        "forwarding", "does not forward what comes in by eth0", "sysctl -w net/ipv6/conf/all/forwarding=1",
        broken=lambda scene: scene.p.sysctl("net/ipv6/conf/all/forwarding", 0),
        mended=lambda scene: scene.p.sysctl("net/ipv6/conf/all/forwarding", 1),
    ),
    "blackhole route": Case(
        "forwarding", "blackhole", "ip route get",
        broken=lambda scene: scene.p.ip(f"-6 route add blackhole {guest(1)} metric 1"),
        mended=lambda scene: scene.p.ip(f"-6 route del blackhole {guest(1)} metric 1"),
    ),
    "no way back": Case(
        "way-back", "goes astray", "ip route get",
        broken=lambda scene: scene.p.ip(f"-6 route add unreachable {UPSTREAM} metric 1"),
        mended=lambda scene: scene.p.ip(f"-6 route del unreachable {UPSTREAM} metric 1"),
    ),
    "dropped when forwarded": Case(
        "firewall", "policy drop", "nft insert rule inet f c", broken=dropping,
        mended=lambda scene: scene.p.run(["nft", "flush", "ruleset"]),
    ),
    "dropped on egress": Case(
        "advertisement", "", "nft", broken=silenced,
        mended=lambda scene: scene.p.run(["nft", "flush", "ruleset"]),
    ),
    "upstream down": Case(
        "port", "no upstream of group lan is active", "portier status",
        broken=lambda scene: scene.p.ip("link set eth0 down"),
        mended=up_again,
    ),
}  # fmt: skip


@NEEDS_NFT
@pytest.mark.parametrize("name", CASES)
def test_the_hop_that_fails_is_named(scene: Scene, name: str) -> None:
    """Broken there, the way ends there; mended, it is whole again."""
    case = CASES[name]
    case.broken(scene)
    try:
        if name == "upstream down":
            wait_for(lambda: scene.portier.group()["upstream"]["active"] is None, 10, "the upstream gone")
        hop, text, remedy = failing(probe(scene, case.address))
    finally:
        case.mended(scene)
    assert hop == case.hop, text
    assert case.text in text
    assert case.remedy in remedy
    if case.address == guest(1):
        assert probe(scene, guest(1))["works"]


def test_a_host_that_went_away(scene: Scene) -> None:
    """A host that is known and does not answer any more is not taken for one that is there."""
    away = f"{NET}77"
    scene.guests[2].add("eth0", f"{away}/64")
    assert probe(scene, away)["works"]
    scene.guests[2].ip(f"addr del {away}/64 dev eth0")
    name, _, _ = failing(probe(scene, away))
    assert name in {"host", "ping"}


def test_mode_relay(lab: Lab) -> None:
    """Where the ports are one link, the question and the answer are relayed."""
    scene = vps(lab)
    scene.start(
        "version: 1\ngroups:\n  lan: {upstream: eth0, downstream: [tap1, tap2], mode: relay, "
        "loop_protection: off}\n"
    )
    wait_for(lambda: scene.u.ping(guest(1), timeout=1), 20, "relayed")
    answer = probe(scene, guest(1))
    assert answer["works"], json.dumps(answer, indent=1)
    hops = [hop["name"] for hop in answer["hops"]]
    assert hops[:6] == ["port", "solicitation", "rule", "question", "host", "advertisement"]
    name, _, _ = failing(probe(scene, f"{NET}4444"))
    assert name == "host"
    name, text, _ = failing(probe(scene, "198.51.100.17"))
    assert (name, "IPv6" in text) == ("rule", True)


def test_nonsense(scene: Scene) -> None:
    """What is no address or no port is said in one line."""
    for args, code in (
        (("--probe", "nonsense"), 64),
        (("--probe", guest(1), "--on", "nosuch0"), 1),
        (("--on", "eth0"), 64),
    ):
        done = scene.portier.cli("doctor", *args)
        assert done.returncode == code, done.stderr
        assert len(done.stderr.splitlines()) == 1

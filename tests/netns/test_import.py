"""Imported configurations beside the peers that they come from, on the wire.

Debian's ndppd and npd6 are started with some of the shapes of `tests/golden/import`, and Portier with what it
makes of them, at the same place, and the same solicitations are sent to both.  Where they answer
differently, the reason stands here; any other difference fails.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from portier.config.peers import convert
from tests.netns.lab import Capture, Host, Lab, wait_for
from tests.netns.scenes import PROXY, ROUTER, UPSTREAM, solicit

GOLDEN = Path(__file__).parent.parent / "golden" / "import"
PATH = "/usr/sbin:/usr/bin"
WAIT = 1.5  # seconds; ndppd gives up after half a second, Portier's first answers come in milliseconds

# Why Portier answers where the peer does not, or the other way round.
UNICAST: Final = "a unicast probe (RFC 4861 section 7.3) is answered like any other; the peers never do"
DAD: Final = "an address that is in use is defended (RFC 4862 section 5.4.4); ndppd answers to `::`"
HOP_LIMIT: Final = "hop limit 64 is from another link, and to be ignored (RFC 4861 7.1.1); the peers answer"
ONE_SECTION: Final = "of two sections for one interface ndppd 0.2.5 goes by the last"
SEMICOLON: Final = "ndppd looks for an interface called `eth1;`, and takes the rule for `static`"
LOST_BLOCK: Final = "ndppd leaves out a block that does not begin in the line of its key"
COMMENT: Final = "npd6 takes the // behind the prefix for a length of 0, and answers for every address"
# Why the R flag differs.
ROUTER_FLAG: Final = (
    "the file does not say: the peers set R, Portier shows what the owner shows (RFC 4861 4.4)"
)

KINDS: Final = {  # of solicitation: the end of the target's address
    "unknown": "0a1",
    "known": "0a1",
    "unicast": "0a2",
    "unicast, known": "0a1",
    "DAD": "0a3",
    "hop limit 64": "0a4",
    "no option": "0a5",
    "absent": "0b9",
}
HOSTS: Final = ("0a1", "0a2", "0a3", "0a4", "0a5")


@dataclass(frozen=True)
class Shape:
    """A shape, the links that it names, and how Portier differs from the peer: kind of question to reason.

    ``near`` and ``denied`` are the beginnings of addresses that are allowed, and that are not; hosts with
    allowed ones are behind ``behind``.  ``router`` is the reason why R differs, if it does.
    """

    peer: str
    name: str
    front: str
    near: str
    denied: str
    behind: str = ""
    others: tuple[str, ...] = ()
    differences: dict[str, str] = field(default_factory=dict)
    router: str = ""


AT_ONCE: Final = {"unicast": UNICAST, "unicast, known": UNICAST, "hop limit 64": HOP_LIMIT}
ASKED: Final = {**AT_ONCE, "DAD": DAD}
SHAPES: Final = (
    Shape("ndppd", "docker-bridge", "ens3", "2001:db8:7:0:d0c::", "2001:db8:7:0:d0d::", behind="docker0",
          differences=ASKED),
    Shape("ndppd", "several-bridges", "eth0", "2001:db8:7:2::", "2001:db8:7:4::", behind="br-guest",
          others=("br-lan",), differences=ASKED),
    Shape("ndppd", "several-bridges", "eth0", "2001:db8:7:3::", "2001:db8:7:4::", behind="br-lan",
          others=("br-guest",), differences=ASKED),
    Shape("ndppd", "both-ways", "eth0", "2001:db8:7::", "2001:db8:8::", behind="eth1", differences=ASKED),
    Shape("ndppd", "vps-static", "ens3", "2001:db8:7::", "2001:db8:8::", differences=AT_ONCE,
          router=ROUTER_FLAG),
    # docker-auto is not among them: under `auto` ndppd 0.2.5 answers, or ends by itself, as it happens.
    Shape("ndppd", "semicolon", "eth0", "2001:db8:7::", "2001:db8:a::", behind="eth1",
          differences={**ASKED, "absent": SEMICOLON}),
    Shape("ndppd", "two-sections", "eth0", "2001:db8:7::", "2001:db8:a::", behind="eth1", others=("eth2",),
          differences={"unknown": ONE_SECTION, "known": ONE_SECTION, "no option": ONE_SECTION,
                       "unicast": UNICAST, "unicast, known": UNICAST, "DAD": DAD}),
    Shape("ndppd", "misread", "eth0", "2001:db8:7::", "2001:db8:a::", behind="eth1", others=("eth2",),
          differences={"unknown": LOST_BLOCK, "known": LOST_BLOCK, "no option": LOST_BLOCK,
                       "unicast": UNICAST, "unicast, known": UNICAST, "DAD": DAD}),
    Shape("npd6", "simple", "eth0", "2001:db8:7:89aa::", "2001:db8:7:89ab::", differences=AT_ONCE,
          router=ROUTER_FLAG),
    Shape("npd6", "sample", "eth0", "2001:db8:7:89aa::", "2001:db8:7:89ab::", differences=AT_ONCE),
    Shape("npd6", "white", "eth0", "2001:db8:7:1::1", "2001:db8:7:1::2", differences=AT_ONCE,
          router=ROUTER_FLAG),
    Shape("npd6", "black-range", "eth0", "2001:db8:7:1::3", "2001:db8:7:1::", differences=AT_ONCE,
          router=ROUTER_FLAG),
    Shape("npd6", "comment", "eth0", "2001:db8:7:1::", "2001:db8:7:2::",
          differences={**AT_ONCE, "denied": COMMENT}, router=ROUTER_FLAG),
)  # fmt: skip


@dataclass
class Place:
    """The hosts of a shape: the asker in front, the proxy, and one behind each link."""

    asker: Host
    proxy: Host
    front: Capture


def place(lab: Lab, shape: Shape) -> Place:
    """Make the links that the shape names, and the hosts behind them."""
    u, p = lab.host("u"), lab.host("p")
    lab.link(u, "eth0", p, shape.front)
    u.add("eth0", f"{UPSTREAM}/64")
    p.add(shape.front, f"{PROXY}/64")
    p.ip(f"-6 route add default via {UPSTREAM} dev {shape.front}")
    for number, name in enumerate((shape.behind, *shape.others) if shape.behind else ()):
        host = lab.host(f"h{number}")
        lab.link(host, "eth0", p, name)
        if name == shape.behind:
            for end in HOSTS:
                host.add("eth0", f"{shape.near}{end}/128")
            host.ip(f"-6 route add default via {p.link_local(name)} dev eth0")
    return Place(u, p, u.capture("eth0"))


@contextmanager
def peer(shape: Shape, at: Place, file: Path) -> Iterator[subprocess.Popen[str]]:
    """The peer itself, listening."""
    log = at.proxy.lab.directory / "peer.log"
    more = ["-f", "-l", f"{log}.own"] if shape.peer == "npd6" else []
    with log.open("w") as output:
        process = at.proxy.popen(
            [shape.peer, *more, "-c", str(file)], stdout=output, stderr=subprocess.STDOUT
        )
    wait_for(
        lambda: "ALLMULTI" in at.proxy.ip_json(f"link show dev {shape.front}")[0]["flags"],
        5,
        f"{shape.peer} listens",
    )
    yield process
    process.terminate()
    process.wait(5)


def asked(shape: Shape, at: Place) -> tuple[dict[str, bool], set[bool]]:
    """Send every kind of solicitation; which were answered, and which R flags the answers had."""
    mac = at.proxy.mac(shape.front)
    answered: dict[str, bool] = {}
    flags: set[bool] = set()

    def ask(kinds: dict[str, dict[str, object]]) -> None:
        """Kinds with targets of their own, all at once."""
        at.front.clear()
        targets = {
            kind: f"{shape.near}{KINDS[kind]}" if kind in KINDS else f"{shape.denied}0a1" for kind in kinds
        }
        for kind, fields in kinds.items():
            at.asker.inject("eth0", solicit(at.asker, targets[kind], **fields))  # type: ignore[arg-type]
        time.sleep(WAIT)
        for kind, target in targets.items():
            found = at.front.advertisements(target, outgoing=False)
            if kind == "DAD":  # ndppd sends to `::`, which nobody hears
                found = [frame for frame in found if frame.packet["IPv6"].dst == "ff02::1"]
            answered[kind] = bool(found)
            flags.update(bool(frame.raw[58] & ROUTER) for frame in found)

    ask({"unknown": {}})
    ask({"known": {}, "unicast": {"to_mac": mac}, "DAD": {"source": "::"}, "hop limit 64": {"hlim": 64},
         "no option": {"option": False}, "absent": {}, "denied": {}})  # fmt: skip
    ask({"unicast, known": {"to_mac": mac}})
    return answered, flags


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.peer}-{shape.name}-{shape.near}")
def test_an_imported_configuration_answers_as_the_peer_did(lab: Lab, shape: Shape) -> None:
    """The same solicitations to the peer and to Portier: the same answers, but where a reason is listed."""
    if shutil.which(shape.peer, path=PATH) is None:
        pytest.skip(f"{shape.peer} is not installed")
    file = GOLDEN / shape.peer / f"{shape.name}.conf"
    at = place(lab, shape)
    with peer(shape, at, file) as process:
        theirs, their_flags = asked(shape, at)
        assert process.poll() is None
    imported = convert(shape.peer, file.read_text(encoding="utf-8"), file.name)
    daemon = lab.portier(imported.text, on=at.proxy)
    daemon.wait_ports(shape.front, *((shape.behind, *shape.others) if shape.behind else ()))
    ours, our_flags = asked(shape, at)
    differing = {kind: ours[kind] for kind in ours if ours[kind] != theirs[kind]}
    assert set(differing) == set(shape.differences), f"here Portier differs: {differing}"
    assert (their_flags - our_flags == {True}) == bool(shape.router), (their_flags, our_flags)

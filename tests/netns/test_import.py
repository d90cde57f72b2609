"""Imported configurations beside the peers that they come from, on the wire.

Debian's ndppd and npd6 are started with shapes of `tests/golden/import`, and Portier with what it makes of
them at a place of the same kind beside it; the same solicitations go to both, those of the router in front
and those of the hosts behind.  What each answers is written down here, kind by kind, and where the two
differ, the reason is; any other difference fails.
"""

from __future__ import annotations

import ipaddress
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from portier.config.peers import convert
from portier.errors import ConfigError
from tests.netns.lab import Capture, Frame, Host, Lab, wait_for
from tests.netns.scenes import ROUTER, solicit

GOLDEN = Path(__file__).parent.parent / "golden" / "import"
PATH = "/usr/sbin:/usr/bin"
LONG_ENOUGH = 1.2  # seconds for an answer that should not come: ndppd gives up after half of one
NOWHERE = "2001:db8:dead::1"  # in front, and in nobody's rules
TUN = """
import fcntl, struct, subprocess, sys, time
link = open("/dev/net/tun", "r+b", buffering=0)
fcntl.ioctl(link, 0x400454CA, struct.pack("16sH", sys.argv[1].encode(), 0x1001))  # TUNSETIFF: a TUN
subprocess.run(["ip", "link", "set", sys.argv[1], "up"], check=True)
time.sleep(600)
"""

# Why Portier answers where the peer does not, or the other way round.
UNICAST: Final = "a unicast probe (RFC 4861 section 7.3) is answered like any other; the peers never do"
SESSION: Final = "ndppd tells the first who asked, whoever asks again; Portier tells the one who asks"
DAD: Final = "an address that is in use is defended (RFC 4862 section 5.4.4); ndppd answers to `::`"
INVALID: Final = (
    "to be ignored (RFC 4861 section 7.1.1): hop limit, checksum or code is wrong; the peers answer"
)
BOTH_WAYS: Final = "hosts behind find those in front, and each other, by the same rule; ndppd takes one way"
ONE_SECTION: Final = "of two sections for one interface ndppd 0.2.5 goes by the last"
SEMICOLON: Final = "ndppd looks for an interface called `eth1;`, and takes the rule for `static`"
LOST_BLOCK: Final = "ndppd leaves out a block that does not begin in the line of its key"
COMMENT: Final = "npd6 takes the // behind the prefix for a length of 0, and answers for every address"
ROUTED: Final = "`auto` asks on the link of the route; `routed` takes the route for the answer"
REWRITE: Final = "what was rewritten is answered for, and left to nftables; ndppd 0.2.5 knows no `rewrite`"
SHARED: Final = "two uplinks with one link behind are one group, whose links are all proxied to each other"
TUNNEL: Final = (
    "nobody can be asked on a link without link-layer addresses: what is routed there is answered for"
)
SEVERAL: Final = "with several interfaces npd6 answers what there is at first, and then waits in vain"
# Why the answers differ in form.
ROUTER_FLAG: Final = (
    "the file does not say: the peers set R, Portier shows what the owner shows (RFC 4861 4.4)"
)
YES_SEMICOLON: Final = "ndppd takes `yes;` for no"
ONE_GROUP: Final = "`router no` of one uplink is now that of the group"
NO_OPTION: Final = "linkOption is off: npd6 leaves out what a unicast answer may (RFC 4861 section 7.2.4)"

FROM_FRONT: Final[
    dict[str, tuple[str, dict[str, object]]]
] = {  # kind of solicitation: the end of its target's address, and what is special
    "multicast": ("0a1", {}),
    "another's": ("0b1", {}),
    "again": ("0a1", {}),
    "from another": ("0b1", {}),
    "without option": ("0a2", {"option": False}),
    "from a global address": ("0a3", {"source": "global"}),
    "from off the link": ("0a4", {"source": "off the link"}),
    "unicast": ("0a5", {"unicast": True}),
    "unicast, known": ("0a1", {"unicast": True}),
    "unicast from off the link": ("0a6", {"source": "off the link", "unicast": True}),
    "DAD": ("0a7", {"source": "::"}),
    "hop limit 64": ("0a8", {"hlim": 64}),
    "checksum wrong": ("0a9", {"cksum": 0x1234}),
    "code 1": ("0aa", {"code": 1}),
    "absent": ("0b9", {}),
    "outside": ("", {}),
}
FROM_BEHIND: Final = ("for one in front", "for one behind another link", "for one outside")
KINDS: Final = (*FROM_FRONT, *FROM_BEHIND)
FIRST: Final = ("multicast", "another's")  # are asked before the others
HOSTS: Final = (*(f"0a{number:x}" for number in range(1, 11)), "0b1")
INVALIDS: Final = ("hop limit 64", "checksum wrong", "code 1")
UNICASTS: Final = ("unicast", "unicast, known", "unicast from off the link")
PLAIN: Final = (*FIRST, "again", "without option", "from a global address", "from off the link")

Answers = frozenset[str]
# What ndppd answers under `iface` and `static`, and npd6; and Portier under `resolve` and `always`.
ASKS: Final[Answers] = frozenset({*PLAIN, *INVALIDS})
STATIC: Final[Answers] = frozenset({*PLAIN, *INVALIDS, "from another", "absent"})
SILENT: Final[Answers] = frozenset()
RESOLVE: Final[Answers] = frozenset({*PLAIN, *UNICASTS, "from another", "DAD"})
RESOLVE_BOTH: Final[Answers] = RESOLVE | {"for one in front", "for one behind another link"}
ALWAYS: Final[Answers] = frozenset({*PLAIN, *UNICASTS, "from another", "absent"})
REASONS: Final = {  # where a part names no other
    **dict.fromkeys(UNICASTS, UNICAST),
    **dict.fromkeys(INVALIDS, INVALID),
    "from another": SESSION,
    "DAD": DAD,
    "for one in front": BOTH_WAYS,
    "for one behind another link": BOTH_WAYS,
}


@dataclass(frozen=True)
class Part:
    """Addresses that a shape allows, and what is answered for them.

    ``near`` is how they begin; hosts that have them are behind the link ``behind``.  ``whole``: it is one
    address, asked for by all kinds.  ``outside`` begins addresses that are not allowed there.  ``only`` are
    the kinds that are asked, where not all are.  ``reasons`` tell why the two differ, by kind or (``""``) in
    all, where `REASONS` does not hold; ``form`` why answers of both are not of one form.
    """

    near: str
    theirs: Answers
    ours: Answers
    behind: str = ""
    front: str = ""
    outside: str = ""
    whole: bool = False
    routed: int = 0
    only: tuple[str, ...] = KINDS
    reasons: dict[str, str] = field(default_factory=dict)
    form: str = ""


@dataclass(frozen=True)
class Shape:
    """A file of `tests/golden/import`, the link in front, its parts, and links that it names besides."""

    peer: str
    name: str
    front: str
    parts: tuple[Part, ...]
    others: tuple[str, ...] = ()


class Question(NamedTuple):
    """A solicitation: who sends it, what it is about, and from which address."""

    kind: str
    part: Part
    asker: Host
    target: str
    source: str
    fields: dict[str, object]


def allowed(near: str, behind: str, outside: str = "", **more: object) -> Part:
    """Addresses behind a link, under `iface` there and `resolve` here."""
    return Part(near, ASKS, RESOLVE_BOTH, behind, outside=outside, **more)  # type: ignore[arg-type]


def static(near: str, outside: str = "", **more: object) -> Part:
    """Addresses that are answered for whoever has them."""
    more = {"form": ROUTER_FLAG} | more
    return Part(near, STATIC, ALWAYS, outside=outside, **more)  # type: ignore[arg-type]


def unheard(near: str, ours: Answers, reason: str, **more: object) -> Part:
    """Addresses that the peer answers nothing about."""
    return Part(near, SILENT, ours, reasons={"": reason}, **more)  # type: ignore[arg-type]


# Under `auto` ndppd 0.2.5 knows a link from the first question alone: each link is asked one.
AUTO: Final = tuple(
    Part(f"2001:db8:7:{number}::", ASKS, RESOLVE, f"br{number}", routed=64, only=(kind,), form=ROUTER_FLAG)
    for number, kind in enumerate(
        ("multicast", "without option", "from off the link", "unicast", "DAD", "hop limit 64"), 1
    )
)
# With several interfaces npd6 answers what there is when it first wakes: here one question, of one part.
ONE_AT_FIRST: Final = tuple(kind for kind in KINDS if kind != "another's")
NONE_AT_FIRST: Final = tuple(kind for kind in KINDS if kind not in FIRST)
SHAPES: Final = (
    Shape("ndppd", "docker-bridge", "ens3", (
        allowed("2001:db8:7:0:d0c::", "docker0", "2001:db8:7:0:d0d::"),)),
    Shape("ndppd", "proxmox", "vmbr0", (allowed("2001:db8:7::", "vmbr1", "2001:db8:8::"),)),
    Shape("ndppd", "both-ways", "eth0", (
        Part("2001:db8:7::", ASKS | {"for one in front"}, RESOLVE_BOTH, "eth1", outside="2001:db8:8::"),)),
    Shape("ndppd", "several-bridges", "eth0", (
        Part("2001:db8:7:1::", ASKS, RESOLVE | {"for one behind another link"}, "br-lan",
             outside="2001:db8:7:4::"),
        Part("2001:db8:7:2::", ASKS, RESOLVE | {"for one behind another link"}, "br-guest"),
        allowed("2001:db8:7:3::", "br-guest"),
        allowed("2001:db8:7:3:1::", "br-lan"))),
    Shape("ndppd", "nested", "eth0", (
        Part("2001:db8:7:0:1::", ASKS, RESOLVE | {"for one behind another link"}, "virbr0",
             outside="2001:db8:8::", form=ROUTER_FLAG),
        Part("2001:db8:7:0:5::", ASKS, RESOLVE | {"for one behind another link"}, "docker0",
             form=ROUTER_FLAG),
        static("2001:db8:7::53", whole=True))),
    Shape("ndppd", "lxd-addresses", "enp1s0", (
        static("2001:db8:7::10", "2001:db8:7::1", whole=True),
        static("2001:db8:7::11", whole=True),
        Part("2001:db8:7::12", frozenset({"multicast", "again"}), RESOLVE, "lxdbr0", whole=True,
             reasons=dict.fromkeys(PLAIN, SESSION), form=ROUTER_FLAG))),
    Shape("ndppd", "vps-static", "ens3", (static("2001:db8:7::", "2001:db8:8::"),)),
    Shape("ndppd", "semicolon", "eth0", (
        Part("2001:db8:7::", STATIC, RESOLVE_BOTH, "eth1", outside="2001:db8:a::", form=YES_SEMICOLON,
             reasons={"absent": SEMICOLON}),)),
    Shape("ndppd", "two-sections", "eth0", (
        unheard("2001:db8:7::", RESOLVE | {"for one behind another link"}, ONE_SECTION, behind="eth1",
                outside="2001:db8:a::"),
        Part("2001:db8:8::", ASKS, RESOLVE | {"for one behind another link"}, "eth2"))),
    Shape("ndppd", "misread", "eth0", (
        unheard("2001:db8:7::", RESOLVE | {"for one behind another link"}, LOST_BLOCK, behind="eth1",
                outside="2001:db8:a::"),
        unheard("2001:db8:8::", RESOLVE | {"for one behind another link"}, LOST_BLOCK, behind="eth2"))),
    Shape("ndppd", "two-uplinks", "", (
        Part("2001:db8:a::", ASKS, RESOLVE | {"outside"}, "br-lan", "wan1", "2001:db8:b::",
             reasons={"outside": SHARED}, form=ONE_GROUP),
        Part("2001:db8:b::", ASKS, RESOLVE | {"outside"}, "br-lan", "wan2", "2001:db8:a::",
             reasons={"outside": SHARED}))),
    Shape("ndppd", "vlan", "", (
        Part("2001:db8:200::", ASKS, RESOLVE_BOTH - {"for one behind another link"}, "br200", "eth0.200",
             "2001:db8:201::", form=ROUTER_FLAG),
        Part("2001:db8:100::", ASKS, RESOLVE, "br100", "eth0.100", routed=64, only=("multicast",),
             form=ROUTER_FLAG))),
    Shape("ndppd", "master", "eth0", (
        Part("2001:db8:7::", ASKS, RESOLVE | {"for one behind another link"}, "eth1",
             outside="2001:db8:a::"),
        Part("2001:db8:8::", ASKS, RESOLVE, "eth2", routed=64, only=("multicast",)),
        static("2001:db8:9::", form=""))),
    Shape("ndppd", "one-point-oh", "eth0", (
        Part("2001:db8:7::", ASKS, RESOLVE, "eth1", outside="2001:db8:b::"),
        Part("2001:db8:9::", ASKS, RESOLVE | {"absent"}, "eth1", reasons={"absent": REWRITE}),
        static("2001:db8:a::", form=""))),
    Shape("ndppd", "out-of-range", "eth0", (
        Part("2001:db8:7::", STATIC, ALWAYS | {"DAD", "for one in front"}, "eth1", outside="2001:db8:b::",
             form=ROUTER_FLAG),),
        others=("eth5",)),
    Shape("ndppd", "wireguard", "eth0", (
        unheard("2001:db8:7:0:ffff::", RESOLVE | {"absent"}, TUNNEL, behind="wg0", outside="2001:db8:8::",
                routed=112),
        static("2001:db8:7::2", whole=True))),
    Shape("ndppd", "auto-networks", "eth0", (
        *AUTO, Part("2001:db8:7:8::", ASKS, RESOLVE | {"absent"}, "br8", routed=64, only=("absent",),
                    reasons={"absent": ROUTED}))),
    Shape("ndppd", "whole-internet", "wlan0", (
        Part("2001:db8:7:0:1::", ASKS, RESOLVE, "eth1", routed=80, only=("multicast",)),)),
    Shape("npd6", "simple", "eth0", (static("2001:db8:7:89aa::", "2001:db8:7:89ab::"),)),
    Shape("npd6", "sample", "eth0", (static("2001:db8:7:89aa::", "2001:db8:7:89ab::", form=""),)),
    Shape("npd6", "unicast", "eth0", (
        Part("2001:db8:7:1::", STATIC | set(UNICASTS), ALWAYS, outside="2001:db8:7:2::",
             form=NO_OPTION),)),
    Shape("npd6", "white", "eth0", (
        static("2001:db8:7:1::1", "2001:db8:7:1::2"), static("2001:db8:7:1::80", whole=True))),
    Shape("npd6", "black-range", "eth0", (static("2001:db8:7:1::3", "2001:db8:7:1::"),)),
    Shape("npd6", "black-addresses", "eth0", (static("2001:db8:7:1::", "2001:db8:7:2::"),)),
    Shape("npd6", "comment", "eth0", (
        Part("2001:db8:7:1::", STATIC | {"outside"}, ALWAYS, outside="2001:db8:7:2::",
             reasons={"outside": COMMENT}, form=ROUTER_FLAG),)),
    Shape("npd6", "everything", "venet0", (static("2001:db8:7:1::"),)),
    Shape("npd6", "no-list", "eth0", (static("2001:db8:7:1::", "2001:db8:7:2::"),)),
    Shape("npd6", "nothing-white", "eth0", (unheard("2001:db8:7:1::", SILENT, ""),)),
    Shape("npd6", "lists-apart", "", (
        Part("2001:db8:7:1::", frozenset({"multicast"}), ALWAYS, front="eth0", outside="2001:db8:7:2::",
             only=ONE_AT_FIRST, reasons={"": SEVERAL}, form=ROUTER_FLAG),
        unheard("2001:db8:7:2::", ALWAYS, SEVERAL, front="eth1", outside="2001:db8:7:1::",
                only=NONE_AT_FIRST))),
    Shape("npd6", "masked", "", (
        Part("2001:db8:7:33::", frozenset({"multicast"}), ALWAYS, front="eth0",
             outside="2001:db8:7:33:8000::", only=ONE_AT_FIRST, reasons={"": SEVERAL}, form=ROUTER_FLAG),
        unheard("2001:db8:7:34:8000::", ALWAYS, SEVERAL, front="eth0", only=NONE_AT_FIRST),
        unheard("2001:db8::", ALWAYS, SEVERAL, front="br0.5", outside="2001:db9::", only=NONE_AT_FIRST))),
)  # fmt: skip


class Place:
    """A proxy between the links of a shape, with hosts on them."""

    def __init__(self, lab: Lab, shape: Shape, whose: str) -> None:
        self._shape = shape
        self.proxy = lab.host(f"{whose}-proxy")
        self.fronts: dict[str, Host] = {}
        self.behind: dict[str, Host] = {}
        self.links: list[str] = []
        for part in shape.parts:
            self._front(lab, part, f"{whose}-front")
            self._behind(lab, part, f"{whose}-behind")
        for name in shape.others:
            lab.link(lab.host(f"{whose}-{name}"), "eth0", self.proxy, name)
            self.links.append(name)
        self._captures: dict[Host, Capture] = {
            host: host.capture("eth0") for host in (*self.fronts.values(), *self.behind.values())
        }

    def _front(self, lab: Lab, part: Part, name: str) -> None:
        """The link in front of a part: the router there has an address for each kind of question."""
        link = part.front or self._shape.front
        number = self._shape.parts.index(part)
        if link not in self.fronts:
            asker = self.fronts[link] = lab.host(f"{name}-{link}")
            lab.link(asker, "eth0", self.proxy, link)
            self.links.append(link)
            net = self._net(part)
            self.proxy.add(link, f"{net}fe/64")
            asker.ip(f"addr add {net}a/64 dev eth0 nodad", f"addr add {NOWHERE}/128 dev eth0 nodad")
            self.proxy.ip(
                f"-6 route add default via {asker.link_local('eth0')} dev {link} metric {9 + number}"
            )
        asker = self.fronts[link]
        sources = {f"{self._source(part, kind, {})}/64" for kind in FROM_FRONT}
        sources |= {f"{self._off_link(part, kind)}/128" for kind in FROM_FRONT}
        in_front = () if part.whole else (f"{part.near}0f1/128",)
        asker.ip(*(f"addr add {address} dev eth0 nodad" for address in (*sources, *in_front)))
        via = f"via {asker.link_local('eth0')} dev {link}"
        self.proxy.ip(f"-6 route add {self._off_link(part, 'multicast')}/64 {via}")

    def _behind(self, lab: Lab, part: Part, name: str) -> None:
        """The link behind a part, with the hosts that have its addresses."""
        link = part.behind
        if link.startswith("wg"):
            self.proxy.popen([sys.executable, "-c", TUN, link])
            wait_for(lambda: "UP" in self._flags(link), 20, f"{link} is up")
            self.links.append(link)
        elif link:
            if link not in self.behind:
                host = self.behind[link] = lab.host(f"{name}-{link}")
                lab.link(host, "eth0", self.proxy, link)
                self.links.append(link)
                host.ip(f"-6 route add default via {self.proxy.link_local(link)} dev eth0")
            ends = ("",) if part.whole else HOSTS
            self.behind[link].ip(
                *(f"addr add {part.near}{end}/128 dev eth0 nodad" for end in ends),
                *(f"addr add {self._source(part, kind, {})}/64 dev eth0 nodad" for kind in FROM_BEHIND),
            )
        if part.routed:
            self.proxy.ip(f"-6 route add {part.near}/{part.routed} dev {link}")

    def _flags(self, link: str) -> list[str]:
        known = self.proxy.ip_json("link show")
        return next((list(entry["flags"]) for entry in known if entry["ifname"] == link), [])

    def listens(self, link: str) -> bool:
        """Whether somebody takes all multicast of a link."""
        return "ALLMULTI" in self._flags(link)

    # questions

    def _target(self, part: Part, end: str) -> str:
        return part.near if part.whole else f"{part.near}{end}"

    def _net(self, part: Part) -> str:
        """What is on-link in front: the part's own /64, but where a route has to lead behind."""
        link = part.front or self._shape.front
        first = next(other for other in self._shape.parts if (other.front or self._shape.front) == link)
        own = ipaddress.IPv6Network((self._target(first, "0a1"), 64), strict=False)
        return "2001:db8:7:ff::" if first.routed else str(own[0])

    def _off_link(self, part: Part, kind: str) -> str:
        return f"2001:db8:ffff:{self._shape.parts.index(part)}::{KINDS.index(kind) + 1:x}"

    def _source(self, part: Part, kind: str, fields: dict[str, object]) -> str:
        """The address that a question comes from: another one for each, so that answers tell them apart."""
        match fields.pop("source", None):
            case "::":
                return "::"
            case "global":
                return f"{self._net(part)}a"
            case "off the link":
                return self._off_link(part, kind)
        asking = {"again": "multicast"}.get(kind, kind)
        return f"fe80::{self._shape.parts.index(part) + 1:x}:{KINDS.index(asking) + 1:x}"

    def questions(self) -> Iterator[Question]:
        """All that is asked, about all parts."""
        for part in self._shape.parts:
            link = part.front or self._shape.front
            for kind, (end, special) in FROM_FRONT.items():
                target = self._target(part, end)
                if kind == "outside":
                    target = f"{part.outside}0a1"
                if kind not in part.only or (kind == "outside" and not part.outside):
                    continue
                if part.whole and kind == "absent":
                    continue
                fields = dict(special)
                source = self._source(part, kind, fields)
                if fields.pop("unicast", False):
                    fields["to_mac"] = self.proxy.mac(link)
                yield Question(kind, part, self.fronts[link], target, source, fields)
            if part.behind in self.behind and part.only is KINDS:
                yield from self._from_behind(part)

    def _from_behind(self, part: Part) -> Iterator[Question]:
        others = [other for other in self._shape.parts if other.behind not in ("", part.behind)]
        targets = dict(zip(FROM_BEHIND, (f"{part.near}0f1", "", NOWHERE), strict=True))
        if part.whole:
            del targets["for one in front"]
        if others:
            targets["for one behind another link"] = self._target(others[0], "0a1")
        for kind, target in targets.items():
            if target:
                yield Question(kind, part, self.behind[part.behind], target, self._source(part, kind, {}), {})

    def ask(self, *, first: bool) -> None:
        """Send the questions that come first, or the others."""
        for question in self.questions():
            if (question.kind in FIRST) == first:
                frame = solicit(question.asker, question.target, source=question.source, **question.fields)  # type: ignore[arg-type]
                question.asker.inject("eth0", frame)

    def answers(self, whose: str, *, first: bool) -> dict[tuple[int, str], list[Frame]]:
        """What came of the questions that were answered: those that the parts name for ``whose``."""
        asked = [question for question in self.questions() if (question.kind in FIRST) == first]
        keys = [(self._shape.parts.index(question.part), question.kind) for question in asked]
        expected = {key for key in keys if key[1] in getattr(self._shape.parts[key[0]], whose)}
        deadline = time.monotonic() + 10
        while True:
            came = dict(zip(keys, map(self._answers, asked), strict=True))
            answered = {key for key, frames in came.items() if frames}
            if expected <= answered or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        assert answered == expected, f"what {whose} answers, and what it should"
        return {key: came[key] for key in answered}

    def _answers(self, question: Question) -> list[Frame]:
        to = ipaddress.IPv6Address("ff02::1" if question.source == "::" else question.source)
        found = self._captures[question.asker].advertisements(question.target, outgoing=False)
        return [frame for frame in found if ipaddress.IPv6Address(frame.raw[38:54]) == to]

    def clear(self) -> None:
        """Forget the answers so far."""
        for capture in self._captures.values():
            capture.clear()


def start(host: Host, name: str, file: Path, log: Path) -> subprocess.Popen[str]:
    """Start the peer."""
    more = ["-f", "-l", f"{log}.own"] if name == "npd6" else []
    with log.open("w") as output:
        return host.popen([name, *more, "-c", str(file)], stdout=output, stderr=subprocess.STDOUT)


@contextmanager
def peer(shape: Shape, at: Place, file: Path, log: Path) -> Iterator[None]:
    """The peer itself, listening; it must not end by itself."""
    process = start(at.proxy, shape.peer, file, log)
    for link in at.fronts:
        wait_for(partial(at.listens, link), 10, f"{shape.peer} listens")
    if any(part.routed for part in shape.parts):
        time.sleep(1)  # it reads the routes a moment after that, and says so nowhere
    yield
    assert process.poll() is None, log.read_text()
    process.terminate()
    process.wait(10)


def form(frame: Frame) -> tuple[str, str, int]:
    """R flag, the other flags, and the length of an answer."""
    return ("R" if frame.raw[58] & ROUTER else "-", f"{frame.raw[58] & ~ROUTER:02x}", len(frame.raw))


def needs(peer_name: str) -> None:
    """Skip where the peer is not installed."""
    if shutil.which(peer_name, path=PATH) is None:
        pytest.skip(f"{peer_name} is not installed")


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.peer}-{shape.name}")
def test_an_imported_configuration_answers_as_the_peer_did(lab: Lab, shape: Shape) -> None:
    """The same solicitations to the peer and to Portier: the same answers, but where a reason is listed."""
    needs(shape.peer)
    file = GOLDEN / shape.peer / f"{shape.name}.conf"
    theirs, ours = Place(lab, shape, "theirs"), Place(lab, shape, "ours")
    imported = convert(shape.peer, file.read_text(encoding="utf-8"), file.name)
    daemon = lab.portier(imported.text, on=ours.proxy)
    groups = [group["name"] for group in daemon.status()["groups"]]
    wait_for(
        lambda: {link for group in groups for link, state in daemon.ports(group).items() if state == "active"}
        == set(ours.links), 10, "all ports are active",
    )  # fmt: skip
    with peer(shape, theirs, file, lab.directory / "peer.log"):
        for first in (True, False):
            for place in (theirs, ours):
                place.clear()
                place.ask(first=first)
            if not first:
                time.sleep(LONG_ENOUGH)
            told, said = (
                place.answers(whose, first=first) for place, whose in ((theirs, "theirs"), (ours, "ours"))
            )
            for key in told.keys() & said.keys():
                one_form = {form(frame) for frame in told[key]} == {form(frame) for frame in said[key]}
                assert one_form or shape.parts[key[0]].form, (key, told[key], said[key])
            sources = {key: frame.source for key, frames in said.items() for frame in frames}
            assert all(source.startswith("fe80:") for source in sources.values()), sources


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.peer}-{shape.name}")
def test_each_difference_has_its_reason(shape: Shape) -> None:
    """Where Portier answers and the peer does not, or the other way round, it is said why."""
    for part in shape.parts:
        for kind in part.theirs ^ part.ours:
            assert part.reasons.get("") or part.reasons.get(kind) or REASONS.get(kind), (part.near, kind)


def test_there_are_twenty_shapes_on_the_wire() -> None:
    """No shape is counted twice."""
    assert len({(shape.peer, shape.name) for shape in SHAPES}) >= 20


@pytest.mark.parametrize(
    ("peer_name", "name"),
    [
        ("ndppd", "typo"),
        ("ndppd", "refused-interface"),
        ("npd6", "words"),
        ("npd6", "no-colon"),
        ("npd6", "refused-pairs"),
        ("npd6", "refused-values"),
    ],
)
def test_where_the_peer_does_not_start_it_is_said(lab: Lab, peer_name: str, name: str) -> None:
    """A file that the peer ends with: the import says so, or refuses it too."""
    needs(peer_name)
    file = GOLDEN / peer_name / f"{name}.conf"
    host = lab.host("proxy")
    for link in ("eth0", "eth1", "eth2"):
        lab.link(lab.host(link), "eth0", host, link)
    process = start(host, peer_name, file, lab.directory / "peer.log")
    assert process.wait(10) not in (0, None)
    try:
        imported = convert(peer_name, file.read_text(encoding="utf-8"), file.name)
    except ConfigError:
        assert name.startswith("refused-")
    else:
        assert any("does not start" in remark.message for remark in imported.remarks)

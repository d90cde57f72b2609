"""The load generator must be right before anybody's speed is judged by it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from tests.bench.load import ASKER4, FIRST4, OUTER, Result, asked4, command
from tests.netns.lab import Host, Keeper, Lab, UnavailableError

ASKER = "02:00:5e:10:00:01"
PROXY = "02:00:5e:10:00:02"
TARGET = "2001:db8:7::1000"
CORE = min(os.sched_getaffinity(0))

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    """Two hosts on one cable, whose kernels say nothing on it."""
    try:
        keeper = Keeper.start()
    except UnavailableError as error:
        pytest.skip(f"no network namespaces here: {error}")
    lab = Lab(keeper, tmp_path)
    asker, proxy = lab.host("asker"), lab.host("proxy")
    for host in (asker, proxy):
        host.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
    asker.ip(
        f"link add {OUTER} address {ASKER} type veth peer name {OUTER} address {PROXY} netns {proxy.pid}"
    )
    for host in (asker, proxy):
        host.ip(f"link set {OUTER} up")
    yield asker, proxy
    lab.close()
    keeper.close()


def answer(
    *, target: str = TARGET, solicited: int = 1, link_layer: str = PROXY, hop_limit: int = 255, code: int = 0
) -> Packet:
    """A Neighbor Advertisement to the asker, right unless told otherwise."""
    message = ICMPv6ND_NA(tgt=target, R=0, S=solicited, O=0, code=code)
    option = ICMPv6NDOptDstLLAddr(lladdr=link_layer)
    ip = IPv6(src="fe80::1", dst="fe80::a", hlim=hop_limit)
    return Ether(src=PROXY, dst=ASKER) / ip / message / option


def reply(**fields: object) -> Packet:
    """An ARP reply to the asker, right but for `fields`; ``dst`` is that of the frame."""
    ether = Ether(src=PROXY, dst=fields.pop("dst", ASKER))
    right = {"op": 2, "hwsrc": PROXY, "psrc": str(FIRST4), "hwdst": ASKER, "pdst": ASKER4}
    return ether / ARP(**{**right, **fields})


def ask(asker: Host, proxy: Host, *frames: Packet, told: Sequence[str] = ()) -> Result:
    """Let the generator ask for ten targets at once, while these frames come in."""
    args = [
        "--ask",
        OUTER,
        "--targets",
        "10",
        "--window",
        "10",
        "--once",
        "--seconds",
        "2",
        "--timeout",
        "0.5",
    ]
    process = asker.popen(
        command(CORE, *args, "--checksum", *told), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    for frame in frames:
        proxy.inject(OUTER, bytes(frame))
    return Result.read(process.communicate(timeout=20)[0])


def test_a_right_answer_counts_once(ends: tuple[Host, Host]) -> None:
    """An answer is counted, a second one is extra, and who is not answered is lost."""
    result = ask(*ends, answer(), answer())
    assert (result.sent, result.answered, result.extra, result.wrong, result.lost) == (10, 1, 1, 0, 9)


def test_wrong_answers_are_told(ends: tuple[Host, Host]) -> None:
    """Each defect makes an answer wrong: it never counts."""
    bad_checksum = bytearray(bytes(answer()))
    bad_checksum[56] ^= 1
    frames = [
        answer(target="2001:db8:7::100a"),  # the eleventh, which nobody asked for
        answer(solicited=0),
        answer(link_layer=ASKER),
        answer(hop_limit=64),
        answer(code=1),
        Ether(bytes(bad_checksum)),
    ]
    result = ask(*ends, *frames)
    assert (result.answered, result.wrong, result.lost) == (0, len(frames), 10)


def test_a_right_arp_reply_counts_once(ends: tuple[Host, Host]) -> None:
    """A padded one counts, a second one is extra; a request is no answer."""
    frames = (reply(op=1), Ether(bytes(reply()) + bytes(18)), reply())
    result = ask(*ends, *frames, told=asked4())
    assert (result.sent, result.answered, result.extra, result.wrong, result.lost) == (10, 1, 1, 0, 9)


def test_wrong_arp_replies_are_told(ends: tuple[Host, Host]) -> None:
    """Each defect makes a reply wrong: it never counts."""
    frames = [
        reply(psrc=str(FIRST4 + 10)),  # the eleventh, which nobody asked for
        reply(pdst="10.7.0.11"),
        reply(hwdst=PROXY),
        reply(hwsrc=ASKER),
        reply(op=3),
        reply(ptype=0x86DD),
        reply(dst="ff:ff:ff:ff:ff:ff"),
    ]
    result = ask(*ends, *frames, told=asked4())
    assert (result.answered, result.wrong, result.lost) == (0, len(frames), 10)


@pytest.mark.parametrize("told", [[], asked4()], ids=["nd", "arp"])
def test_the_responder_answers_for_its_addresses_only(ends: tuple[Host, Host], told: list[str]) -> None:
    """Twenty are asked for, ten belong to the responder: ten answers, all right."""
    asker, proxy = ends
    responder = proxy.popen(
        command(CORE, "--respond", OUTER, "--targets", "10", "--seconds", "20", *told), stdout=subprocess.PIPE
    )
    assert responder.stdout is not None
    responder.stdout.readline()
    args = ["--ask", OUTER, "--targets", "20", "--window", "4", "--once", "--timeout", "0.5", "--checksum"]
    result = Result.read(asker.run(command(CORE, *args, *told)).stdout)
    assert (result.sent, result.answered, result.wrong, result.lost) == (20, 10, 0, 10)

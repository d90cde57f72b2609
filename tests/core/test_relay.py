"""The engine for mode relay, frame by frame: the numbers are those of the checklist."""

from __future__ import annotations

from portier.core import ndp
from portier.core.outcome import Verdict
from tests.core.relaybook import D, E, RelayBook, U, datagram, ip, mac

RELAYED = Verdict.RELAYED


def test_nd_054_059_a_multicast_solicitation_goes_out_of_every_other_port_with_that_ports_address() -> None:
    """And nothing but link-layer addresses and the checksum changes."""
    play = RelayBook()
    assert play.ns(D, 0xA, "::b") is RELAYED
    assert play.where() == [U, E]
    for out in play.sent:
        assert out.by == out.message.link_layer == play.mac_of(out.port)
        assert out.to == bytes.fromhex("3333ff00000b")
        assert out.message.source == ip("::a")
        assert out.message.target == ip("::b")


def test_nd_057_058_an_advertisement_is_learned_from_then_relayed() -> None:
    """Unicast to the asker's port, and data flows both ways after it."""
    play = RelayBook()
    play.ns(D, 0xA, "::b")
    assert play.state(D, "::a") == "stale"
    assert play.na(E, 0xB, "::a") is RELAYED
    assert play.state(E, "::b") == "reachable"
    (out,) = play.sent
    assert out.port == D
    assert out.to == mac(0xA)
    assert out.message.link_layer == out.by == play.mac_of(D)
    assert out.message.flags == ndp.S_FLAG | ndp.O_FLAG
    packet = datagram("::a", "::b")
    assert play.forward(D, 0xA, packet) is None
    assert play.put(D, 0xA, packet) is RELAYED
    (out,) = play.sent
    assert (out.port, out.to, out.by, out.packet) == (E, mac(0xB), play.mac_of(E), packet)
    fast = play.forward(D, 0xA, packet)
    assert fast == out

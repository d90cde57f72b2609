"""What a probe sends and notes: `portier doctor --probe`.

A solicitation is made as the upstream router would make one and handed to the engine, and what the worker
does about it is noted in a `Trace`.  A packet is made as the router would send it.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from portier.core import arp, ndp
from portier.core.outcome import AddRoute, Effect, MoveRoute, RemoveRoute, RouteResult, Verdict

_TRACED: Final = 256  # things done that a trace has room for
_ECHO: Final = {4: (8, 0), 16: (128, 129)}  # ICMP types of request and reply, by the length of an address
_HOPS: Final = 64
_TOKEN_AT: Final = 8  # octets of an echo message before its data


class State(enum.StrEnum):
    """How a hop fared."""

    OK = "ok"
    FAILED = "FAILED"
    UNKNOWN = "unknown"


class Hop(NamedTuple):
    """One hop of a probe's way: what happened there in words, and what to do where it failed."""

    name: str
    state: State
    text: str
    remedy: str = ""


class Done(NamedTuple):
    """One thing that a worker did: an effect with the result of a route effect, or a send (interface index
    and frame) with the reason why it failed, or "".  ``at`` is monotonic seconds."""

    at: float
    effect: Effect | None = None
    result: RouteResult | None = None
    ifindex: int = 0
    frame: bytes = b""
    error: str = ""


class Trace:
    """What came of a frame that was handed to a worker as if it had come in by a port: its verdict, and what
    the worker did about its target since.  ``done`` only grows, and is for any thread."""

    def __init__(self, target: bytes, began: float) -> None:
        self.target = target
        self.began = began
        self.verdict = Verdict.NOWHERE
        self.done: list[Done] = []

    def note(self, done: Done) -> None:
        """Take note of what was done, where it is about the target."""
        effect = done.effect
        if isinstance(effect, AddRoute | MoveRoute | RemoveRoute):
            about = effect.route.address == self.target
        else:
            about = self.target in done.frame
        if about and len(self.done) < _TRACED:
            self.done.append(done)

    def sends(self, kind: str) -> list[Done]:
        """The questions, or the answers, about the target that were sent."""
        return [done for done in list(self.done) if done.frame and _says(done.frame, self.target) == kind]


def _says(frame: bytes, target: bytes) -> str:
    """Whether a frame asks for a target, or tells of it."""
    if len(target) == 4:
        if frame[22:24] != arp.ETHERTYPE:
            return ""
        return "question" if frame[48:52] == target else "answer" if frame[38:42] == target else ""
    if frame[22:24] != b"\x86\xdd" or frame[30] != 58 or frame[72:88] != target:
        return ""
    return {135: "question", 136: "answer"}.get(frame[64], "")


def solicitation(mac: bytes, source: bytes, target: bytes, nonce: bytes, *, named: bool) -> bytes:
    """The question for `target` as a neighbor at `mac` with the address `source` would put it.  Where it is
    not `named`, Neighbor Discovery does not say that link-layer address; ARP always does."""
    if len(target) == 4:
        return arp.request(mac, source, target)
    return ndp.unique_solicitation(mac, source, target, nonce, named=named)


def echo_message(source: bytes, target: bytes, number: int, token: bytes) -> bytes:
    """An echo request (RFC 792, RFC 4443 section 4.1), with its checksum."""
    kind = _ECHO[len(target)][0]
    message = bytes((kind, 0, 0, 0)) + number.to_bytes(2, "big") + b"\0\1" + token
    pseudo = b""
    if len(target) == 16:
        pseudo = source + target + len(message).to_bytes(4, "big") + b"\0\0\0\x3a"
    return message[:2] + _checksum(pseudo + message) + message[4:]


def echo_frame(
    from_mac: bytes, to_mac: bytes, source: bytes, target: bytes, number: int, token: bytes
) -> bytes:
    """An Ethernet frame with an echo request, as a router passes one on."""
    message = echo_message(source, target, number, token)
    if len(target) == 16:
        head = b"\x60\0\0\0" + len(message).to_bytes(2, "big") + bytes((58, _HOPS)) + source + target
        return to_mac + from_mac + b"\x86\xdd" + head + message
    head = (
        b"\x45\0"
        + (20 + len(message)).to_bytes(2, "big")
        + bytes(4)
        + bytes((_HOPS, 1, 0, 0))
        + source
        + target
    )
    head = head[:10] + _checksum(head) + head[12:]
    return to_mac + from_mac + b"\x08\0" + head + message


def is_echo_reply(message: bytes, length: int, token: bytes) -> bool:
    """Whether an ICMP message (of the family whose addresses have `length` octets) answers the echo request
    with this token."""
    return message[:1] == bytes((_ECHO[length][1],)) and message[_TOKEN_AT:] == token


def carries_echo_reply(frame: bytes, length: int, token: bytes) -> bool:
    """The same for an Ethernet frame."""
    if length == 16:
        return (
            frame[12:14] == b"\x86\xdd"
            and frame[20:21] == b"\x3a"
            and is_echo_reply(frame[54 : 54 + 8 + len(token)], 16, token)
        )
    if frame[12:14] != b"\x08\0" or len(frame) < 34:
        return False
    at = 14 + 4 * (frame[14] & 0xF)
    return is_echo_reply(frame[at : at + 8 + len(token)], 4, token)


def _checksum(data: bytes) -> bytes:
    data += bytes(len(data) % 2)
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (0xFFFF - total).to_bytes(2, "big")

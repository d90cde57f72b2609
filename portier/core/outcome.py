"""What an engine says of a frame: one named verdict, what to do to the kernel, what to send.

Every frame ends in exactly one `Verdict`, which is at once the counter, the word in the log and the
word that `explain` prints; so nothing is ever dropped without a name.
"""

from __future__ import annotations

import enum
from typing import NamedTuple, Self

from portier.core.model import Event, HostRoute


class Verdict(enum.IntEnum):
    """How a received frame ended.  `label` is the name people see; `dropped` tells those verdicts in
    which somebody may have waited for an answer and gets none."""

    def __new__(cls, number: int, label: str, dropped: bool = True) -> Self:
        """Tie a number, which indexes the counters, to a label."""
        member = int.__new__(cls, number)
        member._value_ = number
        member.label = label
        member.dropped = dropped
        return member

    label: str
    dropped: bool

    # Something was done.
    ANSWERED = 0, "answered", False
    RESOLVING = 1, "resolving", False  # the target is being asked for, the asker waits
    RELAYED = 2, "relayed", False  # went to the other ports, or to the one it is for
    DEFENDED = 3, "defended", False  # a DAD probe for an address in use was answered
    HEARD = 4, "heard", False  # an advertisement, taken note of
    # Nothing to do, and rightly so.
    OWN_ADDRESS = 5, "own-address", False  # lives on this port: the kernel answers
    SAME_PORT = 6, "same-port", False  # the target lives where it is asked for
    OWN_PROBE = 7, "own-probe", False  # the DAD probe of the very host that has the address
    NOT_HANDLED = 8, "not-handled", False  # an ND message that this mode leaves to the kernel
    # The rules say no.
    LINK_LOCAL = 9, "link-local-target", True
    NO_RULE = 10, "no-rule", True
    DENIED = 11, "denied", True
    WRONG_PORT = 12, "wrong-port", True  # the rule ties its hosts to other ports
    ASKER_REFUSED = 13, "asker-refused", True
    ISOLATED = 14, "isolated", True
    # The world says no.
    NO_ROUTE = 15, "no-route", True  # answer: routed, and no route by another port of the group
    NOBODY = 16, "nobody-there", True  # asked for lately, nobody answered
    NOWHERE = 17, "nowhere-to-ask", True  # no other port on which the target could be
    LOOP = 18, "loop", True  # a solicitation that Portier itself relayed came back
    OWN_FRAME = 19, "own-frame", True  # bears our link-layer address but came from outside
    CLAIM = 20, "claim-refused", True  # claims an address that belongs to another
    CONFLICT = 21, "conflict", True  # two hosts, one address: the first keeps it
    # The limits say no.
    PENDING_FULL = 22, "pending-full", True
    PORT_LIMIT = 23, "port-limit", True
    SOURCE_LIMIT = 24, "source-limit", True
    ROUTE_LIMIT = 25, "route-limit", True
    # The kernel says no.
    ROUTE_FAILED = 26, "route-failed", True
    NO_SOURCE = 27, "no-source-address", True  # the port has no address to speak from
    # The message is invalid (RFC 4861 sections 6.1, 7.1 and 8.1; RFC 6980).
    TRUNCATED = 28, "truncated", True
    BAD_HOP_LIMIT = 29, "bad-hop-limit", True
    BAD_CHECKSUM = 30, "bad-checksum", True
    BAD_CODE = 31, "bad-code", True
    BAD_OPTION = 32, "bad-option", True
    BAD_TARGET = 33, "bad-target", True
    BAD_SOURCE = 34, "bad-source", True
    BAD_DESTINATION = 35, "bad-destination", True
    BAD_FLAGS = 36, "bad-flags", True
    FRAGMENTED = 37, "fragmented", True
    NOT_ND = 38, "not-nd", True
    # The packet is invalid (RFC 826, RFC 5227).
    BAD_HARDWARE = 39, "bad-hardware-type", True
    BAD_PROTOCOL = 40, "bad-protocol-type", True
    BAD_OPERATION = 41, "bad-operation", True
    BAD_LINK_LAYER = 42, "bad-link-layer-address", True
    BROADCAST = 43, "broadcast-target", True  # the network's own address, or its broadcast address
    # Mode relay.
    QUEUED = 44, "queued", False  # waits for its destination to be found
    QUEUE_FULL = 45, "queue-full", True
    TOO_BIG = 46, "too-big", True  # for the port it would leave by; the sender is told
    HOLD_DOWN = 47, "hold-down", True  # the port takes no part for a while
    WAITING = 48, "waiting-for-router", True  # the port takes no part yet
    ROGUE_ROUTER = 49, "rogue-router", True  # a Router Advertisement that should not be there
    NOT_IPV6 = 50, "not-ipv6", True
    KERNEL = 51, "kernel-answers", False  # answer: kernel
    OFFLOAD = 52, "unsupported-offload", True  # to be cut up in a way that no packet socket can carry


class AddRoute(NamedTuple):
    """Effect: the host route must be in place before the outcome's frames are sent."""

    route: HostRoute


class RemoveRoute(NamedTuple):
    """Effect: the host route goes; that it is gone already is success."""

    route: HostRoute


class MoveRoute(NamedTuple):
    """Effect: a host is on another port now.  The new route is in place before the old one goes."""

    old: HostRoute
    route: HostRoute


class Join(NamedTuple):
    """Effect: the multicast group (packed) is wanted on an interface.  Said once for any number of hosts that
    share the group."""

    ifindex: int
    group: bytes


class Leave(NamedTuple):
    """Effect: the multicast group is wanted on the interface no more."""

    ifindex: int
    group: bytes


class DrawAll(NamedTuple):
    """Effect: more groups are wanted on an interface than are joined there (or, not `wanted`, no longer), so
    switches have to be made to pass on all multicast."""

    ifindex: int
    wanted: bool


class Reconsider(NamedTuple):
    """Effect: what the reconciler plans by is other than it was (``what``), so it should look again."""

    what: str


Effect = AddRoute | MoveRoute | RemoveRoute | Join | Leave | DrawAll | Reconsider


class RouteResult(enum.Enum):
    """How an `AddRoute` or a `MoveRoute` ended."""

    ADDED = "added"
    PRESENT = "present"  # it was there already and is ours
    FOREIGN = "foreign"  # somebody else's with the same destination, table and metric; left alone
    FAILED = "failed"  # the kernel refused


class Outcome(NamedTuple):
    """What came of a frame or of the passing of time.  ``sends`` are (interface index, whole frame
    with its virtio-net header in front) in order; effects come before them."""

    verdict: Verdict
    effects: tuple[Effect, ...] = ()
    sends: tuple[tuple[int, bytes], ...] = ()
    events: tuple[Event, ...] = ()

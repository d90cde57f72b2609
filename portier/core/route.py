"""The engine for mode `route`: answers solicitations on behalf of hosts that live on other ports.

It serves both families alike, in the words of Neighbor Discovery; how each is spoken, `portier.core.family`
knows.  An address is 16 bytes or 4, and nothing here depends on which.

Bytes in, `Outcome` out; it opens nothing and reads no clock.  `RouteEngine.receive` takes a frame,
`RouteEngine.tick` the passing of time; both say what to do to the kernel and what to send.  One decision,
`_judge`, serves the wire and `explain` alike.

Its state: the neighbors that are known, the targets being asked for (`Pending`), the DAD probes that are
out (`Probe`), and short memories of what was relayed and of who was not there.  All of it is bounded by
the group's limits.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection, Iterable
from itertools import islice
from typing import Final, NamedTuple

from portier.core import arp, ndp
from portier.core.announce import Announcer, Turns, frames
from portier.core.engine import (
    Explanation,
    KernelOracle,
    KnownHost,
    Lazy,
    NeighborInfo,
    Rates,
    RouterInfo,
    Say,
    Standing,
    gives_way,
    link_local,
    listed,
    mac_text,
    silent,
    text,
)
from portier.core.family import ArpVoice, Heard, Kind, NdVoice, read
from portier.core.groups import Groups
from portier.core.histogram import FOUND_BOUNDS, Histogram, Tally
from portier.core.hostroutes import HostRoutes
from portier.core.model import (
    Announce,
    Answer,
    Bound,
    Event,
    EventKind,
    Group,
    HostRoute,
    Multicast,
    Network,
    Role,
    RouterAdvertisements,
    Switch,
)
from portier.core.neighbors import Claim, Neighbor, NeighborTable, RouteState
from portier.core.notes import Noted, Notes
from portier.core.outcome import AddRoute, Effect, MoveRoute, Outcome, RouteResult, Verdict
from portier.core.ports import Attached, names
from portier.core.routers import Routers
from portier.core.rules import CompiledRule, Prefixes, RuleTable
from portier.core.timers import Timed, Timers

# How long an answer from a downstream waits for the owner upstream that was asked at the same time, where
# the prefix is on-link there: long enough for a neighbor on a wire, too short to be noticed.
_UPSTREAM_HEAD_START: Final = 0.003
# An address that two places say they have: the old one is asked this often, this far apart.
_CONTEST_PROBES: Final = 3
_CONTEST_INTERVAL: Final = 0.25
# RFC 4861 section 7.2.2 wants a small queue; each asker is one who waits for the same target.
_ASKERS_PER_TARGET: Final = 16
# `always` answers whether the host is there or not; where its route is still to be found, this much later,
# so that the first packet finds it too.
_BEHIND: Final = 0.01
# What a sighting is worth by its O flag: a host's own answer, its question, a proxy's answer.
_WORD: Final = {True: 2, None: 1, False: 0}
# How many moves of one host are followed at once; then one in RetransTimer, or a link-layer address in two
# places would be a storm of announcements.
_MOVES: Final = 4
# Hosts of an earlier process are asked after so often: as many as there may be route changes meanwhile.
_RECALLS: Final = 0.1
# Since a host route to a gateway was seen, the kernel is asked for others without limit for so long; a router
# asks again for who talks within half a minute.
_LED: Final = 300.0
_NONCE: Final = 32  # octets of a nonce that are remembered
# So that a tick over many hosts never keeps frames waiting.
_TICK_BATCH: Final = 128

# Ethertype, version, class, flow, payload length 32, ICMPv6, hop limit 255: a solicitation as hosts send it.
_PLAIN: Final = bytes.fromhex("86dd6000000000203aff")
_PLAIN_LENGTH: Final = ndp.OPTIONS + 8
_SOLICITATION: Final = b"\x87\0"

# Verdicts with which an answer goes out; it is held back if the kernel refuses the route once more.
_SAID: Final = frozenset({Verdict.ANSWERED, Verdict.ROUTE_FAILED})
_REFUSALS: Final = frozenset({Verdict.NO_RULE, Verdict.DENIED, Verdict.WRONG_PORT, Verdict.ASKER_REFUSED})

_tuple_new = tuple.__new__


class _Decision(NamedTuple):
    verdict: Verdict
    entry: Neighbor | None = None
    rule: CompiledRule | None = None
    router: bool = False


class _Recall(Timed):
    """The hosts of an earlier process that are still to be asked."""

    __slots__ = ("hosts",)

    def __init__(self) -> None:
        super().__init__()
        self.hosts: deque[KnownHost] = deque()


class _Asker(NamedTuple):
    """One who waits for an answer."""

    ifindex: int
    address: bytes
    mac: bytes


class _Pending(Timed):
    """A target that is being asked for.

    ``origin`` is the port on whose behalf, ``since`` when, ``asked`` are the ports it was asked for on,
    ``askers`` those who wait, ``wanted`` whether the host's own traffic does, ``promised`` that they are
    answered in any case.
    ``checked`` means that others have a say before a downstream is believed, ``held`` the port on which the
    kernel's neighbor table has the target, ``corrects`` that the host told of itself as one who was elsewhere
    before, ``candidate`` is the downstream that spoke up meanwhile, ``proven`` when it answered us, and
    ``settle_at`` when the others have had their chance.
    """

    __slots__ = (
        "asked",
        "askers",
        "candidate",
        "checked",
        "corrects",
        "held",
        "origin",
        "promised",
        "proven",
        "rule",
        "settle_at",
        "since",
        "target",
        "tries",
        "wanted",
    )

    def __init__(self, target: bytes, rule: CompiledRule, origin: int, now: float) -> None:
        super().__init__()
        self.target = target
        self.since = now
        self.rule = rule
        self.origin = origin
        self.asked: set[int] = set()
        self.askers: list[_Asker] = []
        self.wanted = False
        self.tries = 0
        self.checked = False
        self.corrects = False
        self.held = 0
        self.candidate: _Sighting | None = None
        self.proven = False
        self.promised = False
        self.settle_at = 0.0


class _Probe(Timed):
    """DAD probes for an address: who is to be told of an objection, by port, and whom to learn if there is
    none within RetransTimer; nobody, where the address is known or two want it."""

    __slots__ = ("newcomer", "origin", "probers", "target")

    def __init__(self, target: bytes, origin: int, newcomer: _Sighting | None) -> None:
        super().__init__()
        self.target = target
        self.origin = origin
        self.newcomer = newcomer
        self.probers: dict[int, bytes] = {}


class _Relayed(NamedTuple):
    """A DAD probe that was relayed: until when that is remembered, the ports that have it, and whose it
    was: (interface index, link-layer address)."""

    until: float
    ports: frozenset[int]
    origin: tuple[int, bytes]


class _Sighting(NamedTuple):
    """An address seen on a port.  ``genuine`` says that the frame came from the very link-layer address it
    names; ``solicited`` that it answers what we asked; ``override`` is the O flag of an advertisement, None
    where the address was the source of a solicitation or the target of a DAD probe; ``corrects`` that nobody
    asked for the advertisement and that it overrides what others have (RFC 4861 section 7.2.6)."""

    port: Attached
    address: bytes
    mac: bytes
    genuine: bool = True
    solicited: bool = False
    override: bool | None = None
    router: bool | None = None
    corrects: bool = False


class RouteEngine:
    """The decisions of one group in mode `route`.

    Not for more than one thread, but for the methods that say they copy.
    """

    def __init__(self, kernel: KernelOracle) -> None:
        self._kernel = kernel
        self._bound: Bound | None = None
        self._rules = RuleTable(())
        self._ports: dict[int, Attached] = {}
        self._uplink: Attached | None = None
        self._macs: frozenset[bytes] = frozenset()
        self._own: dict[bytes, set[int]] = {}
        self._broadcasts: frozenset[bytes] = frozenset()
        self._particular: frozenset[bytes] = frozenset()  # that `always` may not mean
        self._upstream_on_link = Prefixes()
        self._behind = Prefixes()
        self._table = NeighborTable()
        self._by_address = self._table.by_address
        self._pending: dict[bytes, _Pending] = {}
        self._probes: dict[bytes, _Probe] = {}
        self._relayed: dict[tuple[bytes, bytes], _Relayed] = {}
        self._nobody: dict[bytes, tuple[float, frozenset[int]]] = {}
        self._rates = Rates()
        self._led_until = 0.0
        self._next_hops: dict[bytes, set[int]] = {}
        self._routers = Routers()
        self._routes = HostRoutes()
        self._recall = _Recall()
        self._announcer = Announcer()
        self._groups = Groups()
        self._timers: Timers[Neighbor | _Pending | _Probe | _Recall | Turns] = Timers(
            lambda: (
                (self._recall,),
                self._by_address.values(),
                self._pending.values(),
                self._probes.values(),
                self._announcer.turns.values(),
            )
        )
        self._effects: list[Effect] = []
        self._sends: list[tuple[int, bytes]] = []
        self._events: list[Event] = []
        self._plain_flags = 0
        self._found = Histogram(FOUND_BOUNDS)
        self._failed = 0
        self._announced = 0
        self._notes = Notes()

    # -- configuration -----------------------------------------------------------------------------

    def configure(self, bound: Bound, rules: RuleTable, now: float) -> Outcome:
        """Take over the ports and rules of `bound`.  Hosts whose port stays and whom the rules still allow
        are kept; for the others the outcome removes the routes."""
        before = self._bound
        group = bound.group
        self._bound = bound
        self._rules = rules
        fresh = before is None or before.group.limits != group.limits
        attached: dict[int, Attached] = {}
        lender = next((port.source4 for port in bound.ports if port.role is Role.UPSTREAM), None)
        for port in bound.ports:
            old = self._ports.get(port.ifindex)
            voices = (
                NdVoice(port, group.advertisement),
                ArpVoice(port, group.advertisement, port.source4 or lender or b""),
            )
            this = Attached(port, voices, group.limits.resolutions, now)
            if old is not None:
                this.counts = old.counts
                this.late = old.late
                this.asked = old.asked
                this.routers = old.routers
                if not fresh:
                    this.bucket = old.bucket
                    this.lookups = old.lookups
            attached[port.ifindex] = this
        former, self._ports = self._ports, attached
        everywhere = frozenset(attached)
        ups = frozenset(index for index, this in attached.items() if this.upstream)
        for index, this in attached.items():
            this.reaches = (ups if group.isolate and not this.upstream else everywhere) - {index}
        self._uplink = next((attached[index] for index in ups), None)
        self._macs = frozenset(port.mac for port in bound.ports if port.mac is not None)
        self._next_hops = {}
        for gateway, ifindex in bound.next_hops:
            self._next_hops.setdefault(gateway, set()).add(ifindex)
        own: dict[bytes, set[int]] = {}
        for port in bound.ports:
            for address in port.addresses:
                own.setdefault(address, set()).add(port.ifindex)
        self._own = own
        self._broadcasts = frozenset(
            address.packed
            for port in bound.ports
            for prefix in port.on_link
            if prefix.version == 4 and prefix.prefixlen < 31  # RFC 3021
            for address in (prefix.network_address, prefix.broadcast_address)
        )
        self._particular = frozenset((*own, *self._broadcasts, *self._next_hops))
        uplink = self._uplink
        self._upstream_on_link = Prefixes((prefix, 1) for prefix in (uplink.port.on_link if uplink else ()))
        behind: list[tuple[Network, int]] = [
            (prefix, port.ifindex) for port in bound.ports for prefix in port.prefixes
        ]
        self._behind = Prefixes(behind)
        if fresh:
            self._routes.limit(group.limits.route_changes, now)
            self._rates.clear()
        self._plain_flags = self._flags(router=False)
        if before is not None:
            self._recheck(before)
        self._regroup()
        self._announcer.configure(attached.keys())
        for this in attached.values():
            self._tell_of_return(this, former.get(this.ifindex), now)
        self._take(self._routers.configure(bound, now))
        return self._outcome(Verdict.HEARD)

    def _recheck(self, before: Bound) -> None:
        """Drop what no longer fits the ports, rules and limits, and set the rest right."""
        bound = self._group_bound
        places = {(port.ifindex, port.name, port.role, port.table) for port in bound.ports}
        ports_changed = places != {(port.ifindex, port.name, port.role, port.table) for port in before.ports}
        rules_changed = ports_changed or before.group != bound.group or before.live != bound.live
        if rules_changed:
            for entry in list(self._by_address.values()):
                port = self._ports.get(entry.ifindex)
                if port is None or self._barred(port, entry.address) is not None:
                    self._drop(entry)
                else:
                    self._rerule(entry)
        for address in (*self._own, *self._next_hops):
            known = self._by_address.get(address)
            if known is not None and self._barred(self._ports[known.ifindex], address) is not None:
                self._drop(known)
        while (excess := self._table.excess(bound.group.limits)) is not None:
            self._drop(excess)
        for pending in list(self._pending.values()):
            self._recheck_pending(pending)
        for probe in list(self._probes.values()):
            seen = probe.newcomer
            if seen is not None:
                place = self._ports.get(seen.port.ifindex)
                probe.newcomer = None if place is None else seen._replace(port=place)

    def _recheck_pending(self, pending: _Pending) -> None:
        rule = self._rules.lookup(pending.target)
        seen = pending.candidate
        if rule is None or not rule.allow or (seen and seen.port.ifindex not in self._ports):
            self._give_up(pending)
            return
        pending.rule = rule
        pending.asked &= self._ports.keys()
        pending.askers = [asker for asker in pending.askers if asker.ifindex in self._ports]
        if seen:
            pending.candidate = seen._replace(port=self._ports[seen.port.ifindex])

    def _rerule(self, entry: Neighbor) -> None:
        """Routes, flags and askers of a host may be others now."""
        self._routes.replace(entry, self._route_for(entry.address, entry.ifindex))
        self._set_ready(entry)

    # -- multicast groups ----------------------------------------------------------------------------

    def _regroup(self) -> None:
        """Have the groups of all that is answered for: addresses of the host itself, single addresses of the
        rules, and the known hosts."""
        wanted = [
            (index, group)
            for address, homes in self._own.items()
            for index, group in self._groups_of(address, homes)
        ]
        for rule in self._rules.singles:
            if rule.answer is not Answer.KERNEL:  # which joins them itself
                homes = self._ports.keys() if rule.ports is None else rule.ports
                wanted += self._groups_of(rule.network.network_address.packed, homes)
        self._effects += self._groups.keep(wanted)
        for entry in self._by_address.values():
            self._regroup_host(entry)

    def _groups_of(self, address: bytes, homes: Collection[int]) -> list[tuple[int, bytes]]:
        """The groups in which an address is asked for that lives on one of the ports `homes`, each with its
        port."""
        if self._group.multicast is not Multicast.GROUPS:
            return []
        return [
            (index, group)
            for index, this in self._ports.items()
            if (group := this.voice(address).group(address)) and not this.reaches.isdisjoint(homes)
        ]

    def _regroup_host(self, entry: Neighbor) -> None:
        groups = self._groups_of(entry.address, (entry.ifindex,)) if entry.ifindex else []
        self._effects += self._groups.want(entry.address, groups)

    # -- frames --------------------------------------------------------------------------------------

    def receive(self, ifindex: int, frame: bytes, now: float) -> Outcome:
        """Decide on a frame that came in on `ifindex`, or that the host's own stack sent there, at the
        monotonic time `now`."""
        port = self._ports.get(ifindex)
        if port is None:
            return Outcome(Verdict.NOWHERE)
        # The common case, a plain solicitation for a host known to be there, without a second look: the
        # same checks as below, on the bytes themselves.
        head = frame[22:32]
        if (
            head == _PLAIN
            and len(frame) == _PLAIN_LENGTH
            and frame[64:66] == _SOLICITATION
            and (asker := port.correspondents.get(frame[32:48] + frame[88:96])) is not None
            and (frame[0] & 1 or (int.from_bytes(frame[32:96], "big") + 90) % 0xFFFF == 0)
        ):
            target = frame[72:88]
        elif (
            head == arp.REQUEST_HEAD
            and len(frame) >= arp.END
            and (asker := port.correspondents.get(frame[32:42])) is not None
            and frame[38:42] != frame[48:52]
        ):
            target = frame[48:52]
        else:
            return self._look(port, frame, now)
        entry = self._by_address.get(target)
        neighbor = asker.neighbor
        if neighbor is not None and neighbor.ifindex != ifindex:
            return self._look(port, frame, now)
        if entry is None:
            if not port.upstream or not self._instant(target):
                return self._look(port, frame, now)
            flags = self._plain_flags
        elif now < entry.ready and entry.ifindex in port.reaches:
            flags = entry.flags
        else:
            return self._look(port, frame, now)
        if neighbor is not None:
            neighbor.heard = now
        port.counts[0] += 1
        sends = ((ifindex, asker.frame(target, flags)),)
        return _tuple_new(Outcome, (Verdict.ANSWERED, (), sends, ()))

    def rehearse(self, ifindex: int, frame: bytes, now: float) -> Outcome:
        """The same for a frame that nobody sent: what is done about it is real, but it is not counted, and is
        no sign that somebody asks."""
        port = self._ports.get(ifindex)
        if port is None:
            return Outcome(Verdict.NOWHERE)
        kept = self._notes, port.asked, port.counts
        self._notes, port.asked, port.counts = Notes(), set(), [0] * len(Verdict)
        try:
            return self.receive(ifindex, frame, now)
        finally:
            self._notes, port.asked, port.counts = kept

    def _instant(self, target: bytes) -> bool:
        """Whether an unknown target is answered for at once (`always`), and nothing else is to be done."""
        rule = self._rules.lookup(target)
        return (
            rule is not None
            and rule.answer is Answer.ALWAYS
            and rule.allow
            and rule.shadowed is False
            and not rule.particular
            and target not in self._particular
        )

    def _look(self, port: Attached, frame: bytes, now: float) -> Outcome:
        # The socket's filter cuts frames from outside that bear our own address down to the header.
        message = Verdict.OWN_FRAME if len(frame) == ndp.IPV6 else read(frame)
        verdict = message if isinstance(message, Verdict) else self._message(port, message, frame, now)
        port.counts[verdict] += 1
        return self._outcome(verdict)

    def _message(self, port: Attached, message: Heard, frame: bytes, now: float) -> Verdict:
        if message.ether_source == port.mac:
            return self._host_asks(port, message, now)
        if message.ether_source in self._macs or message.link_layer in self._macs:
            return Verdict.OWN_FRAME
        kind = message.kind
        if kind is Kind.SOLICITATION:
            return self._solicitation(port, message, now)
        if kind is Kind.ADVERTISEMENT:
            return self._advertisement(port, message, now)
        if kind is Kind.PROBE:
            return self._dad_probe(port, message, now)
        if kind is Kind.ROUTER_ADVERTISEMENT:
            port.router_heard(message.source)
            # Who sends one is a router, whatever its neighbor advertisements say.
            for entry in self._table.of_host(port.ifindex, message.link_layer or message.ether_source):
                entry.router = True
                self._set_ready(entry)
        if (
            kind in {Kind.ROUTER_SOLICITATION, Kind.ROUTER_ADVERTISEMENT}
            and self._group.router_advertisements is RouterAdvertisements.RELAY
        ):
            if (limit := self._over_limit(port, message.ether_source, now)) is not None:
                return limit
            return self._take(self._routers.receive(port.port, message, frame, now))
        return Verdict.NOT_HANDLED

    def _take(self, outcome: Outcome) -> Verdict:
        """Make what a part of the engine decided its own."""
        self._effects += outcome.effects
        self._sends += outcome.sends
        self._events += outcome.events
        return outcome.verdict

    # -- solicitations -------------------------------------------------------------------------------

    def _solicitation(self, port: Attached, message: Heard, now: float) -> Verdict:
        source, target = message.source, message.target
        if source in self._own:
            return self._impostor(port, source, message.ether_source, now)
        if message.link_layer and not link_local(source):
            genuine = message.link_layer == message.ether_source
            sighting = _Sighting(port, source, message.link_layer, genuine)
            if self._sighted(sighting, message.ether_source, now) is Verdict.CLAIM:
                return Verdict.CLAIM
        decision = self._judge(port, target, source, now)
        if decision.verdict in _REFUSALS:
            self._notes.refuse(
                target,
                port.port.name,
                source,
                message.ether_source,
                decision.verdict,
                now,
                upstream=port.upstream,
            )
            return decision.verdict
        if decision.rule is not None:
            port.asked.add(len(target))
        known = self._by_address.get(source)
        if known is not None and known.ifindex != port.ifindex:
            known = None
        # RFC 4861 section 7.2.4 would have an asker without the option resolved first; what that finds
        # out is where the frame came from.
        mac = message.link_layer or (known.mac if known else message.ether_source)
        asker = _Asker(port.ifindex, source, mac)
        if decision.verdict is Verdict.RESOLVING:
            assert decision.rule is not None  # noqa: S101 - _judge gives the rule with this verdict
            ports = self._askable(port, target, decision.rule)
            return self._resolve(port, target, decision.rule, ports, message.ether_source, now, asker)
        entry = decision.entry
        if entry is not None:
            self._probe_if_stale(entry, now)
        if decision.verdict not in _SAID:
            return decision.verdict
        if entry is not None:
            again = entry.route_state is RouteState.FOREIGN and now >= entry.reachable
            if not self._routes.in_place(entry, now, again=again):
                return Verdict.ROUTE_LIMIT
            flags = entry.flags
        else:
            flags = self._flags(router=decision.router)
            rule = decision.rule
            if (
                rule is not None
                and rule.answer is Answer.ALWAYS
                and self._shadowed(rule, target, port)
                and self._resolve_behind(port, target, rule, message.ether_source, now, asker)
            ):
                return Verdict.ANSWERED  # in a moment
        self._reply(port, asker, target, flags)
        if message.link_layer and (
            known.mac == mac if known is not None else self._refusal(port, source) is not None
        ):
            port.remember(asker.address, asker.mac, known)
        return decision.verdict

    def _judge(
        self,
        port: Attached,
        target: bytes,
        asker: bytes | None,
        now: float,
        say: Say | None = None,
    ) -> _Decision:
        """How a solicitation for `target` on `port` is decided.  ``asker`` None stands for a solicitation
        that no `askers` list is held against; `say` is told each step in words."""
        say = say or silent
        if target in self._broadcasts:
            say("the address of a whole network, or its broadcast address: no host's")
            return _Decision(Verdict.BROADCAST)
        if self._routers.answers_for(port.ifindex, target):
            say("a router upstream, whose Router Advertisements are relayed: answered")
            return self._sayable(port, target, say, _Decision(Verdict.ANSWERED, router=True))
        if link_local(target):
            say("link-local targets are not proxied in mode route: each link keeps its own")
            return _Decision(Verdict.LINK_LOCAL)
        if homes := self._own.get(target):
            if port.ifindex in homes:
                say("an address of this host on {}: the kernel answers", port.port.name)
                return _Decision(Verdict.OWN_ADDRESS)
            say("an address of this host on another port of the group: answered")
            return self._sayable(port, target, say, _Decision(Verdict.ANSWERED, router=True))
        rule = self._rules.lookup(target)
        if rule is None:
            say("no rule allows it")
            return _Decision(Verdict.NO_RULE)
        if not rule.allow:
            say("rule: {}", rule)
            return _Decision(Verdict.DENIED, rule=rule)
        say("rule: {}, answer {}", rule, rule.answer)
        if asker is not None and not rule.admits(asker):
            say("only {} is answered for it, and not {}", Lazy(listed, rule.rule.askers), Lazy(text, asker))
            return _Decision(Verdict.ASKER_REFUSED, rule=rule)
        if rule.answer is Answer.KERNEL:
            say("answer kernel: the kernel answers, from a proxy entry")
            return _Decision(Verdict.KERNEL, rule=rule)
        if rule.answer is Answer.ROUTED:
            return self._judge_routed(port, target, rule, say)
        entry = self._by_address.get(target)
        if entry is not None:
            return self._judge_known(port, entry, rule, say)
        say("no host with this address is known")
        if rule.answer is Answer.ALWAYS and port.upstream:
            if port.ifindex in self._next_hops.get(target, ()):
                say("the next hop of a route by the very port that asks: it answers for itself")
                return _Decision(Verdict.SAME_PORT, rule=rule)
            say("answer always: answered at once, whether the host is there or not")
            return self._sayable(port, target, say, _Decision(Verdict.ANSWERED, rule=rule))
        behind = self._led_by(port, target, now)
        if behind and behind.ifindex in port.reaches and (rule.ports is None or behind.ifindex in rule.ports):
            # As a routing daemon sets it for a host that another proxy has learned.
            say("the kernel has a host route for it, to a gateway by {}: answered", behind.port.name)
            return self._sayable(port, target, say, _Decision(Verdict.ANSWERED, rule=rule))
        asked = self._askable(port, target, rule)
        if not asked:
            if rule.ports is not None and not rule.ports - {port.ifindex}:
                say("no port that the rule names ({}) is usable", ", ".join(rule.rule.downstream))
            else:
                say("no other port of the group on which it could be asked for")
            return _Decision(Verdict.NOWHERE, rule=rule)
        if left := self._known_absent(target, asked, now):
            say("asked for lately and nobody answered: not asked again for {:.1f} s", left)
            return _Decision(Verdict.NOBODY, rule=rule)
        say("would be asked for on {}", Lazy(names, asked))
        return self._sayable(port, target, say, _Decision(Verdict.RESOLVING, rule=rule))

    def _led_by(self, port: Attached, target: bytes, now: float) -> Attached | None:
        """The port by which the kernel has a host route to a gateway for an unknown target.  As long as there
        are none at all, a flood of such targets costs no more than `resolutions` questions a second."""
        if now >= self._led_until and not port.lookups.take(now):
            return None
        behind = self._ports.get(self._kernel.host_route(target, port.port.table))
        if behind is not None:
            self._led_until = now + _LED
        return behind

    def _judge_known(self, port: Attached, entry: Neighbor, rule: CompiledRule, say: Say) -> _Decision:
        home = self._ports[entry.ifindex]
        say("known on {} with link-layer address {}", home.port.name, Lazy(mac_text, entry.mac))
        if home is port:
            say("it lives on the very port that asks and answers for itself")
            return _Decision(Verdict.SAME_PORT, entry, rule)
        if entry.ifindex not in port.reaches:
            say("isolate: downstreams are not proxied to each other")
            return _Decision(Verdict.ISOLATED, entry, rule)
        if entry.route_state is RouteState.FAILED:
            say("the kernel refuses its host route; tried again at the next solicitation")
            return self._sayable(port, entry.address, say, _Decision(Verdict.ROUTE_FAILED, entry, rule))
        return self._sayable(port, entry.address, say, _Decision(Verdict.ANSWERED, entry, rule))

    def _judge_routed(self, port: Attached, target: bytes, rule: CompiledRule, say: Say) -> _Decision:
        out = self._ports.get(self._kernel.route(target, port.port.table))
        if out is None:
            say("answer routed: the kernel has no route for it by a port of the group")
            return _Decision(Verdict.NO_ROUTE, rule=rule)
        say("answer routed: the kernel's route for it leaves by {}", out.port.name)
        if out is port:
            say("that is the port that asks")
            return _Decision(Verdict.SAME_PORT, rule=rule)
        if rule.ports is not None and out.ifindex not in rule.ports:
            say("the rule ties its hosts to other ports")
            return _Decision(Verdict.WRONG_PORT, rule=rule)
        if out.ifindex not in port.reaches:
            say("isolate: downstreams are not proxied to each other")
            return _Decision(Verdict.ISOLATED, rule=rule)
        return self._sayable(port, target, say, _Decision(Verdict.ANSWERED, rule=rule))

    def _sayable(self, port: Attached, target: bytes, say: Say, decision: _Decision) -> _Decision:
        if not port.voice(target).answers:
            say("{} has no address to answer from", port.port.name)
            return decision._replace(verdict=Verdict.NO_SOURCE)
        return decision

    def _askable(self, port: Attached | None, target: bytes, rule: CompiledRule) -> list[Attached]:
        """The ports on which `target` may live by `rule` and can be asked for, on behalf of `port`, or of
        the host itself where that is None."""
        return [
            this
            for index, this in self._ports.items()
            if (port is None or index in port.reaches)
            and (rule.ports is None or index in rule.ports)
            and this.voice(target).asks
        ]

    def _shadowed(self, rule: CompiledRule, target: bytes, port: Attached) -> bool:
        if rule.shadowed is not None:
            return rule.shadowed
        return self._behind.get(target) in (0, port.ifindex)

    def _resolve_behind(
        self,
        port: Attached,
        target: bytes,
        rule: CompiledRule,
        ether_source: bytes,
        now: float,
        asker: _Asker,
    ) -> bool:
        """Look for a target that is answered for in any case, so that its host route is there before the
        answer; says whether the answer waits for that."""
        ports = self._askable(port, target, rule)
        if not ports or self._known_absent(target, ports, now) or target in self._pending:
            return False
        if self._resolve(port, target, rule, ports, ether_source, now, asker) is not Verdict.RESOLVING:
            return False
        pending = self._pending[target]
        pending.wanted = pending.promised = True
        self._timers.schedule(pending, now + _BEHIND)
        return True

    def _known_absent(self, target: bytes, ports: list[Attached], now: float) -> float:
        """For how many seconds more `target` is not to be asked for on `ports`: it was, on all of them."""
        until, asked = self._nobody.get(target, (0.0, frozenset[int]()))
        if now < until and all(this.ifindex in asked for this in ports):
            return until - now
        return 0.0

    def _resolve(
        self,
        port: Attached,
        target: bytes,
        rule: CompiledRule,
        ports: list[Attached],
        ether_source: bytes,
        now: float,
        asker: _Asker | None = None,
    ) -> Verdict:
        """Ask for `target` on `ports`, or join those who wait for it; without `asker` it is wanted for its
        route alone."""
        pending = self._pending.get(target)
        if pending is None:
            if (limit := self._over_limit(port, ether_source, now)) is not None:
                return limit
            if not self._make_room(port):
                return Verdict.PENDING_FULL
            pending = self._pending[target] = _Pending(target, rule, port.ifindex, now)
            pending.settle_at = now + _UPSTREAM_HEAD_START
        if asker is None:
            pending.wanted = True
        elif asker not in pending.askers and len(pending.askers) < _ASKERS_PER_TARGET:
            pending.askers.append(asker)
        uplink = self._uplink
        if uplink is not None and self._upstream_on_link.get(target) and rule.ports is None:
            # Whoever answers on a downstream for an address of the upstream's own link is believed only
            # when the upstream, asked at the same time, has no owner for it.
            pending.checked = True
            if uplink not in ports:
                ports = [*ports, uplink]
        if self._ask(pending, ports):
            pending.tries = 1
            self._timers.schedule(pending, now + self._group.timers.retransmit)
        if pending.candidate is not None:
            self._hasten(pending, now)
        return Verdict.RESOLVING

    def _make_room(self, port: Attached) -> bool:
        """See to it that one more target or probe of `port` can be waited for.  The port that waits for most
        gives way to the others."""
        if len(self._pending) + len(self._probes) < self._group.limits.pending:
            return True
        waiting: list[_Pending | _Probe] = [*self._pending.values(), *self._probes.values()]
        largest = gives_way((item.origin for item in waiting), port.ifindex)
        if not largest:
            return False
        self._give_up(next(item for item in waiting if item.origin == largest))
        return True

    def _give_up(self, item: _Pending | _Probe) -> None:
        if isinstance(item, _Pending):
            del self._pending[item.target]
        else:
            del self._probes[item.target]
        item.due = math.inf

    def _ask(self, pending: _Pending, ports: list[Attached]) -> bool:
        """Ask on those ports that were not asked yet, and say whether there was one."""
        before = len(self._sends)
        for this in ports:
            voice = this.voice(pending.target)
            if this.ifindex not in pending.asked and voice.asks:
                pending.asked.add(this.ifindex)
                self._sends.append((this.ifindex, voice.solicitation(pending.target)))
        return len(self._sends) > before

    def _host_asks(self, port: Attached, message: Heard, now: float) -> Verdict:
        """The host's own stack looks for somebody: help it as if Portier had asked."""
        target = message.target
        if (
            message.kind is not Kind.SOLICITATION
            or not message.everybody
            or link_local(target)
            or target in self._own
        ):
            return Verdict.NOT_HANDLED
        decision = self._judge(port, target, None, now)
        entry = decision.entry
        if entry is not None and entry.ifindex != port.ifindex:
            return Verdict.HEARD if self._routes.in_place(entry, now, again=True) else Verdict.ROUTE_LIMIT
        rule = decision.rule
        if (
            rule is None
            or not rule.allow
            or entry is not None
            or rule.answer in {Answer.ROUTED, Answer.KERNEL}
        ):
            return decision.verdict
        ports = [this for this in self._askable(None, target, rule) if this is not port]
        if not ports:
            return Verdict.NOWHERE
        if self._known_absent(target, ports, now):
            return Verdict.NOBODY
        return self._resolve(port, target, rule, ports, message.ether_source, now)

    def ask(self, target: bytes, now: float) -> Outcome:
        """Look for `target` on all ports, for one who wants to know (`explain`)."""
        rule = self._rules.lookup(target)
        uplink = self._uplink or next(iter(self._ports.values()), None)
        if rule is None or not rule.allow or uplink is None or target in self._by_address:
            return Outcome(Verdict.NOT_HANDLED)
        ports = self._askable(None, target, rule)
        if not ports:
            return Outcome(Verdict.NOWHERE)
        return self._outcome(self._resolve(uplink, target, rule, ports, b"", now))

    def recall(self, hosts: Iterable[KnownHost], now: float) -> Outcome:
        """Ask hosts that an earlier process knew, or that the kernel has heard, by unicast, and know them as
        soon as they answer; many of them one after the other, in the order given, and no more than may be
        known."""
        waiting = self._recall.hosts
        waiting.extend(islice(hosts, max(0, self._group.limits.neighbors - len(waiting))))
        self._timers.schedule(self._recall, now)
        return Outcome(Verdict.HEARD)

    def _recall_due(self, now: float) -> None:
        limits, hosts = self._group.limits, self._recall.hosts
        free = (
            (limits.pending + 1) // 2 - len(self._pending) - len(self._probes)
        )  # the other half is for who asks
        for _ in range(min(len(hosts), free, math.ceil(limits.route_changes * _RECALLS))):
            host = hosts.popleft()
            port, rule = self._ports.get(host.ifindex), self._rules.lookup(host.address)
            if (
                port is None
                or rule is None
                or host.address in self._by_address
                or host.address in self._pending
                or self._barred(port, host.address) is not None
            ):
                continue
            if not port.bucket.take(now, 0.5):
                hosts.append(host)  # a port on which somebody asks for too much keeps no other waiting
                continue
            if not self._unicast(port, host.address, host.mac):
                continue
            pending = self._pending[host.address] = _Pending(host.address, rule, host.ifindex, now)
            pending.wanted = True
            pending.tries = 1
            pending.asked.add(host.ifindex)
            if host.hearsay:
                others, held = self._others(port, host.address, rule)
                if others:
                    self._ask_others(pending, others, held, now)
            self._timers.schedule(pending, now + self._group.timers.retransmit)
        if hosts:
            self._timers.schedule(self._recall, now + _RECALLS)

    # -- advertisements and other sightings ------------------------------------------------------------

    def _advertisement(self, port: Attached, message: Heard, now: float) -> Verdict:
        target = message.target
        if self._routers.answers_for(port.ifindex, target):
            return self._refuse_claim(port, target, message.ether_source, "a router's, on the upstream")
        if link_local(target):
            return Verdict.NOT_HANDLED
        if target in self._own:
            return self._impostor(port, target, message.ether_source, now)
        mac = message.link_layer or message.ether_source
        sighting = _Sighting(
            port,
            target,
            mac,
            genuine=mac == message.ether_source,
            solicited=message.solicited and self._was_asked(port, target, mac, now),
            override=message.override,
            router=message.router,
            corrects=message.override and not message.solicited,
        )
        if message.news and target in self._probes:
            return Verdict.HEARD  # by another proxy, of the very host that probes
        self._object(sighting)
        return self._sighted(sighting, message.ether_source, now)

    def _was_asked(self, port: Attached, target: bytes, mac: bytes, now: float) -> bool:
        """Whether an advertisement with S=1 can be an answer: its sender alone sets that flag.  A host that
        proved itself before may be answering the kernel."""
        pending = self._pending.get(target)
        if pending is not None:
            return port.ifindex in pending.asked
        entry = self._by_address.get(target)
        if entry is None:
            return False
        if entry.ifindex == port.ifindex and entry.mac == mac:
            return entry.probes > 0 or entry.confirmed
        return now < entry.verify_until and port.ifindex in entry.asked

    def _sighted(self, seen: _Sighting, ether_source: bytes, now: float) -> Verdict:
        """An address was seen on a port: learn it, refresh it, or find out who has it."""
        port, address = seen.port, seen.address
        if (refusal := self._refusal(port, address)) is not None:
            return refusal
        entry = self._by_address.get(address)
        if entry is not None and entry.ifindex == port.ifindex and entry.mac == seen.mac:
            self._refresh(entry, seen, now)
            return Verdict.HEARD
        if self._leads_elsewhere(port, address):
            return self._refuse_claim(port, address, ether_source, "the next hop of a route")
        if entry is None:
            return self._newcomer(seen, ether_source, now)
        if entry.claim is None and (limit := self._over_limit(port, ether_source, now)) is not None:
            return limit
        if self._roams(entry, seen):
            if self._restless(entry, now):
                return Verdict.CONFLICT
            self._move(entry, port, seen.mac, now)
            self._refresh(entry, seen, now)
            return Verdict.HEARD
        return self._contest(entry, seen, now)

    def _restless(self, entry: Neighbor, now: float) -> bool:
        """Whether a host has moved so often lately that one more move has to wait."""
        return entry.settled > now + (_MOVES - 1) * self._group.timers.retransmit

    def _roams(self, entry: Neighbor, seen: _Sighting) -> bool:
        """Whether this is the host itself on another port: its own link-layer address, in a frame that it
        sent.  From the upstream's own link to a downstream not even that suffices: a guest could take a
        server's address with it."""
        leaves = self._ports[entry.ifindex].upstream and self._upstream_on_link.get(entry.address)
        return entry.mac == seen.mac and seen.genuine and not leaves

    def _refusal(self, port: Attached, address: bytes) -> Verdict | None:
        """Why `address` may not live on `port` by the rules."""
        rule = self._rules.lookup(address)
        if rule is None or link_local(address):
            return Verdict.NO_RULE
        if address in self._broadcasts:
            return Verdict.BROADCAST
        if not rule.allow:
            return Verdict.DENIED
        if rule.answer in {Answer.ROUTED, Answer.KERNEL}:
            return Verdict.NOT_HANDLED  # where its hosts are is the routing table's to say, not theirs
        if rule.ports is not None and port.ifindex not in rule.ports:
            return Verdict.WRONG_PORT
        return None

    def _leads_elsewhere(self, port: Attached, address: bytes) -> bool:
        """Whether `address` is the next hop of a route that leaves by another port than this downstream."""
        homes = self._next_hops.get(address)
        return homes is not None and not port.upstream and port.ifindex not in homes

    def _barred(self, port: Attached, address: bytes) -> Verdict | None:
        """Why `address` must not be learned on `port`, whoever says that it is there."""
        if address in self._own or self._leads_elsewhere(port, address):
            return Verdict.CLAIM
        return self._refusal(port, address)

    def _newcomer(self, seen: _Sighting, ether_source: bytes, now: float) -> Verdict:
        port, address = seen.port, seen.address
        pending = self._pending.get(address)
        if pending is None:
            if (limit := self._over_limit(port, ether_source, now)) is not None:
                return limit
            return self._check_claim(seen, now)
        pending.corrects = pending.corrects or seen.corrects
        if not port.upstream and not pending.checked and (held := self._held_elsewhere(port, address)):
            pending.checked = True
            pending.held = held
            pending.settle_at = now + _CONTEST_PROBES * _CONTEST_INTERVAL
            self._ask(pending, list(self._ports.values()))
        candidate = pending.candidate
        elsewhere = candidate is not None and candidate.port is not port
        if port.upstream or not pending.checked or (elsewhere and pending.held == port.ifindex):
            if candidate is not None and elsewhere:
                if _WORD[candidate.override] > _WORD[seen.override]:
                    # Another proxy's answer; the host itself has spoken.
                    owner = candidate.port.port.name, candidate.mac
                    self._notes.contest(address, owner, (port.port.name, seen.mac), now)
                    return Verdict.HEARD
                self._tell_claim(candidate, seen, now)
            self._settle(pending, seen, now)
            return Verdict.HEARD
        same = candidate is not None and not elsewhere and candidate.mac == seen.mac
        if candidate is None or same or (seen.solicited and not pending.proven):
            pending.candidate = seen
            pending.proven = pending.proven or seen.solicited
            self._hasten(pending, now)
            return Verdict.HEARD
        self._notes.contest(
            address, (candidate.port.port.name, candidate.mac), (port.port.name, seen.mac), now
        )
        self._event(
            EventKind.CONFLICT,
            port,
            address,
            f"is on {candidate.port.port.name} with {mac_text(candidate.mac)}, "
            f"and {mac_text(seen.mac)} on {port.port.name} says that it has it too",
        )
        return Verdict.CONFLICT

    def _held_elsewhere(self, port: Attached, address: bytes) -> int:
        """The other port on which the kernel's neighbor table has `address`, or 0."""
        held = self._kernel.neighbor(address, self._ports)
        return held if held != port.ifindex and held in self._ports else 0

    def _check_claim(self, seen: _Sighting, now: float) -> Verdict:
        """Somebody says, unasked, that he has an address.  Where it may be another's, the others are asked by
        multicast and he himself by unicast, all at the same time; else he is believed."""
        port, address = seen.port, seen.address
        rule = self._rules.lookup(address)
        assert rule is not None  # noqa: S101 - _refusal found it allowed
        others, held = self._others(port, address, rule)
        if not others:
            self._learn(seen, now)
            return Verdict.HEARD
        if not self._make_room(port):
            return Verdict.PENDING_FULL
        pending = self._pending[address] = _Pending(address, rule, port.ifindex, now)
        pending.corrects = seen.corrects
        pending.candidate = seen
        pending.tries = 1
        self._ask_others(pending, others, held, now)
        pending.asked.add(port.ifindex)
        self._unicast(port, address, seen.mac)
        self._timers.schedule(pending, now + self._group.timers.retransmit)
        return Verdict.HEARD

    def _others(self, port: Attached, address: bytes, rule: CompiledRule) -> tuple[list[Attached], int]:
        """The ports whose hosts have a say before one on `port` is believed to have `address`, and the one of
        them on which the kernel's neighbor table has it, or 0."""
        if port.upstream:
            return [], 0
        others = []
        if self._uplink is not None and rule.ports is None and self._upstream_on_link.get(address):
            others.append(self._uplink)
        if held := self._held_elsewhere(port, address):
            others.append(self._ports[held])
        return [this for this in others if this.voice(address).asks], held

    def _ask_others(self, pending: _Pending, others: list[Attached], held: int, now: float) -> None:
        """Give those who have a say the time for it."""
        pending.checked = True
        pending.held = held
        pending.settle_at = now + (_CONTEST_PROBES * _CONTEST_INTERVAL if held else _UPSTREAM_HEAD_START)
        self._ask(pending, others)

    def _hasten(self, pending: _Pending, now: float) -> None:
        """A candidate that proved itself is believed as soon as the others had their chance, if somebody
        waits for it."""
        if pending.proven and (pending.askers or pending.wanted):
            self._timers.schedule(pending, max(now, pending.settle_at))

    def _settle(self, pending: _Pending, seen: _Sighting, now: float) -> None:
        """It is known now where a target lives: learn it and answer those who wait."""
        self._give_up(pending)
        if self._barred(seen.port, seen.address) is not None:
            return  # the ports or routes changed while it was asked for
        awaited = pending.wanted or bool(pending.askers)
        if awaited:
            self._found.observe(now - pending.since)
        entry = self._learn(seen._replace(corrects=pending.corrects), now, wanted=awaited)
        if pending.held in self._ports:
            self._announce(entry, self._ports[pending.held], now, correction=True)
        entry.verify_until = now + self._group.timers.retransmit
        entry.asked = frozenset(pending.asked)
        if entry.route_state is RouteState.MISSING and not self._route_asked(entry):
            return  # over the limit of route changes: no answer without the route
        for asker in pending.askers:
            if asker.ifindex in self._ports and seen.port.ifindex in self._ports[asker.ifindex].reaches:
                self._answer_waiting(asker, pending.target, entry.flags)

    def _answer_waiting(self, asker: _Asker, target: bytes, flags: int) -> None:
        port = self._ports.get(asker.ifindex)
        if port is not None and port.voice(target).answers:
            port.late += 1
            self._reply(port, asker, target, flags)

    def _route_asked(self, entry: Neighbor) -> bool:
        return any(
            isinstance(effect, AddRoute | MoveRoute) and effect.route == entry.route
            for effect in self._routes.effects
        )

    def _learn(self, seen: _Sighting, now: float, *, wanted: bool = False) -> Neighbor:
        """Enter a new host; `wanted` where somebody waits for it."""
        port = seen.port
        for evicted in self._table.make_room(port.ifindex, seen.mac, self._group.limits):
            self._event(
                EventKind.LIMIT,
                self._ports[evicted.ifindex],
                evicted.address,
                f"on {self._ports[evicted.ifindex].port.name} is forgotten to make room for "
                f"{text(seen.address)}: the table or a share of it is full",
            )
            self._drop(evicted)
        entry = Neighbor(seen.address, port.ifindex, seen.mac, now)
        self._table.add(entry)
        self._want_route(entry, now, wanted=wanted)
        self._refresh(entry, seen, now)
        self._timers.schedule(entry, now + self._group.timers.forget)
        self._regroup_host(entry)
        for this in self._ports.values():
            if entry.ifindex in this.reaches:
                self._announce(entry, this, now, correction=seen.corrects)
        self._event(
            EventKind.LEARNED,
            port,
            seen.address,
            f"is on {port.port.name} with {mac_text(seen.mac)}",
        )
        return entry

    def _refresh(self, entry: Neighbor, seen: _Sighting, now: float) -> None:
        """A known host was heard where it is known to be."""
        entry.heard = now
        self._nobody.pop(entry.address, None)
        if seen.override is not None:
            entry.override = seen.override
            entry.router = entry.router if seen.router is None else seen.router
        if seen.solicited:
            # Only an advertisement that was asked for proves that the host hears us too (RFC 4861
            # section 7.3.1).
            entry.reachable = now + self._group.timers.reachable
            self._table.confirm(entry)
        if entry.claim is not None and (seen.solicited or seen.genuine):
            self._claim_fails(entry, now)
        if entry.claim is None:
            entry.probes = 0
            self._timers.schedule(entry, max(entry.due, now + self._group.timers.forget))
        self._set_ready(entry)

    def _contest(self, entry: Neighbor, seen: _Sighting, now: float, dad_until: float = 0.0) -> Verdict:
        """Another link-layer address says that it has a known host's address, or probes for it until
        `dad_until`: see whether the host is still where it was."""
        port = seen.port
        second_hand = entry.override is False
        owns = port.upstream and self._upstream_on_link.get(entry.address)
        if seen.solicited and seen.override and (second_hand or owns):
            # Asked at the same time as the downstream, the owner upstream wins; and a host that answers for
            # itself comes before a proxy that answers for it.
            if port.upstream:
                home = self._ports[entry.ifindex]
                self._tell_claim(_Sighting(home, entry.address, entry.mac), seen, now)
            self._move(entry, port, seen.mac, now)
            self._refresh(entry, seen, now)
            return Verdict.HEARD
        if entry.override and seen.override is False:
            # O=0 changes nothing but that the host is stale (RFC 4861 section 7.2.5): another proxy says that
            # it is elsewhere now, and might be right.
            owner = self._ports[entry.ifindex].port.name, entry.mac
            self._notes.contest(entry.address, owner, (port.port.name, seen.mac), now)
            entry.reachable = 0.0
            self._set_ready(entry)
            self._probe_if_stale(entry, now)
            return Verdict.HEARD
        if entry.claim is None:
            entry.claim = Claim(port.ifindex, seen.mac, dad_until)
            entry.probes = 0
            self._set_ready(entry)
            self._send_probe(entry, now)
            if second_hand and not dad_until:
                entry.verify_until = now + self._group.timers.retransmit
                entry.asked = frozenset((port.ifindex,))
                self._unicast(port, entry.address, seen.mac)
        return Verdict.CONFLICT

    def _claim_fails(self, entry: Neighbor, now: float) -> None:
        """The owner spoke: it keeps the address."""
        claim = entry.claim
        entry.claim = None
        port = self._ports.get(claim.ifindex) if claim else None
        if claim is not None and port is not None:
            home = self._ports[entry.ifindex]
            if home is not port:
                self._rebut(port, entry.address, now)
            self._notes.contest(entry.address, (home.port.name, entry.mac), (port.port.name, claim.mac), now)
            self._event(
                EventKind.CONFLICT,
                port,
                entry.address,
                f"is on {home.port.name} with {mac_text(entry.mac)} and stays there; "
                f"{mac_text(claim.mac)} on {port.port.name} wanted it",
            )

    def _move(self, entry: Neighbor, port: Attached, mac: bytes, now: float) -> None:
        """A host lives somewhere else now."""
        old = self._ports.get(entry.ifindex)
        was = entry.mac
        for evicted in self._table.make_room(port.ifindex, mac, self._group.limits, moving=entry):
            self._drop(evicted)
        self._table.place(entry, port.ifindex, mac)
        entry.claim = None
        entry.probes = 0
        entry.reachable = 0.0
        entry.override = None
        entry.asked = frozenset()
        entry.heard = now
        entry.settled = max(entry.settled, now) + self._group.timers.retransmit
        self._timers.schedule(entry, now + self._group.timers.forget)
        self._want_route(entry, now, wanted=True)
        self._set_ready(entry)
        if old is None:
            return
        self._regroup_host(entry)
        if old is not port:
            # Neighbors there still have its own link-layer address.
            self._announce(entry, old, now, correction=True)
        where = f"moved from {old.port.name} to {port.port.name}" if old is not port else "has another device"
        if was != mac:
            where += f": {mac_text(was)} is {mac_text(mac)} now"
        self._event(EventKind.MOVED, port, entry.address, where)

    def _refuse_claim(self, port: Attached, address: bytes, mac: bytes, what: str) -> Verdict:
        self._event(
            EventKind.CLAIM,
            port,
            address,
            f"is {what}; {mac_text(mac)} on {port.port.name} claims it and is refused",
        )
        return Verdict.CLAIM

    def _tell_claim(self, claimant: _Sighting, owner: _Sighting, now: float) -> None:
        home, place = owner.port.port.name, claimant.port.port.name
        self._notes.contest(claimant.address, (home, owner.mac), (place, claimant.mac), now)
        self._refuse_claim(claimant.port, claimant.address, claimant.mac, f"another's, on {home}")

    def _impostor(self, port: Attached, address: bytes, mac: bytes, now: float) -> Verdict:
        """Somebody says that he has an address of the proxy's."""
        self._rebut(port, address, now)
        homes = [self._ports[index].port.name for index in sorted(self._own[address])]
        self._notes.contest(address, (homes[0], None), (port.port.name, mac), now)
        return self._refuse_claim(port, address, mac, "the proxy's own address")

    # -- announcements ---------------------------------------------------------------------------------

    def _announce(self, entry: Neighbor, port: Attached, now: float, *, correction: bool) -> None:
        """Tell one of the other ports of a host: that it is there, or, as a `correction`, that it is not
        where neighbors have it."""
        if entry.ifindex not in port.reaches or self._group.announce is Announce.OFF:
            return
        turns = self._announcer.plan(entry, port.ifindex, correction=correction)
        if turns is not None:
            self._timers.schedule(turns, max(now, turns.next_due()))

    def _tell_of_return(self, port: Attached, former: Attached | None, now: float) -> None:
        """A port is there again, or has another link-layer address: what neighbors there know of the hosts
        elsewhere is out of date."""
        if former is None or former.mac != port.mac:
            new = {length for length, voice in port.voices.items() if voice.answers}
        else:
            new = {
                length
                for length, voice in port.voices.items()
                if voice.answers and not former.voices[length].answers
            }
        if new:
            for entry in self._by_address.values():
                if len(entry.address) in new:
                    self._announce(entry, port, now, correction=True)

    def _announcement_due(self, turns: Turns, now: float) -> None:
        item = self._announcer.due(turns, now, self._group.timers.retransmit)
        if item is not None and item.entry.ifindex in (port := self._ports[turns.ifindex]).reaches:
            hops = (hop for hop, ports in self._next_hops.items() if port.ifindex in ports)
            flags = ndp.R_FLAG if self._shows_router(item.entry.router) else 0
            for frame in frames(item, port, hops, flags, self._group.announce):
                self._announced += 1
                self._sends.append((port.ifindex, frame))
        self._timers.schedule(turns, turns.next_due())

    def _rebut(self, port: Attached, address: bytes, now: float) -> None:
        """Somebody on `port` goes on using an address that is another's: tell it, if the family has a way."""
        voice = port.voice(address)
        frame = voice.rebuttal(address) if voice.answers else b""
        if frame and self._announcer.may_defend(port.ifindex, address, now):
            self._sends.append((port.ifindex, frame))

    # -- duplicate address detection -------------------------------------------------------------------

    def _dad_probe(self, port: Attached, message: Heard, now: float) -> Verdict:
        target, mac = message.target, message.ether_source
        if self._routers.answers_for(port.ifindex, target):
            return self._defend(port, mac, target, router=True)
        if link_local(target):
            return Verdict.LINK_LOCAL
        if target in self._broadcasts:
            return Verdict.BROADCAST
        if homes := self._own.get(target):
            if port.ifindex in homes:
                return Verdict.OWN_ADDRESS
            return self._defend(port, mac, target, router=True)
        rule = self._rules.lookup(target)
        if rule is None:
            return Verdict.NO_RULE
        if not rule.allow:
            return Verdict.DENIED
        if rule.answer is Answer.KERNEL:
            if port.voice(target).kernel_defends or (rule.ports is not None and port.ifindex in rule.ports):
                return Verdict.KERNEL
            return self._defend(port, mac, target, router=False)
        relayed = self._relayed.get((target, message.nonce[:_NONCE]))
        if relayed is not None and now < relayed.until and port.ifindex in relayed.ports:
            if (port.ifindex, mac) != relayed.origin:
                return self._tell_loop(port, target, mac)
        else:
            relayed = None
        entry = self._by_address.get(target)
        seen = _Sighting(port, target, mac)
        if entry is not None and entry.mac == mac:
            unproven = entry.ifindex == port.ifindex and not entry.confirmed
            if unproven and self._over_limit(port, mac, now) is None and self._may_await(port, target):
                # It probes more than once (RFC 5227 section 2.1.1), for what was lost the first time.
                self._relay_probe(port, rule, message, relayed, now)
                self._await_objection(seen, known=True, now=now)
            return self._own_probe(entry, port, now)
        if (
            entry is not None
            and entry.ifindex != port.ifindex
            and now < entry.reachable
            and entry.override is not False
        ):
            if self._over_limit(port, mac, now) is None:
                self._relay_probe(port, rule, message, relayed, now)
                self._contest(entry, seen, now, now + self._group.timers.retransmit)
            return self._defend(port, mac, target, router=entry.router)
        if (limit := self._over_limit(port, mac, now)) is not None:
            return limit
        if (
            rule.answer is Answer.ROUTED
            and self._judge_routed(port, target, rule, silent).verdict is Verdict.ANSWERED
        ):
            return self._defend(port, mac, target, router=False)
        if not self._may_await(port, target):
            return Verdict.PENDING_FULL
        self._relay_probe(port, rule, message, relayed, now)
        self._await_objection(seen, known=entry is not None, now=now)
        if entry is None:
            return Verdict.RELAYED
        if entry.ifindex != port.ifindex:
            self._contest(entry, seen, now, now + self._group.timers.retransmit)
            return Verdict.RELAYED
        self._probe_if_stale(entry, now)
        return Verdict.SAME_PORT  # the owner hears the probe itself

    def _own_probe(self, entry: Neighbor, port: Attached, now: float) -> Verdict:
        """The host itself, new on this port or coming up again, is never told that its address is taken."""
        seen = _Sighting(port, entry.address, entry.mac)
        if entry.ifindex == port.ifindex:
            self._refresh(entry, seen, now)
            return Verdict.OWN_PROBE
        if (barred := self._barred(port, entry.address)) is not None:
            if barred is Verdict.CLAIM:
                return self._refuse_claim(port, entry.address, entry.mac, "the next hop of a route")
            return barred
        if (limit := self._over_limit(port, entry.mac, now)) is not None:
            return limit
        if not self._roams(entry, seen):
            self._contest(entry, seen, now, now + self._group.timers.retransmit)
        elif not self._restless(entry, now):
            self._move(entry, port, entry.mac, now)
        return Verdict.OWN_PROBE

    def _tell_loop(self, port: Attached, target: bytes, mac: bytes) -> Verdict:
        self._event(
            EventKind.LOOP,
            port,
            target,
            f"is probed for by {mac_text(mac)} on {port.port.name}, with the very probe that was there "
            f"before: another proxy, or a loop",
        )
        return Verdict.LOOP

    def _relay_probe(
        self, port: Attached, rule: CompiledRule, message: Heard, before: _Relayed | None, now: float
    ) -> None:
        """Pass a DAD probe on to where the owner may be, and remember who has it now."""
        target, nonce = message.target, message.nonce
        ports = {port.ifindex}
        for index, this in self._ports.items():
            voice = this.voice(target)
            if voice.probes and index in port.reaches and (rule.ports is None or index in rule.ports):
                ports.add(index)
                self._sends.append((index, voice.dad_probe(target, nonce)))
        while self._relayed:
            oldest = next(iter(self._relayed))
            if self._relayed[oldest].until > now:
                break
            del self._relayed[oldest]
        key = (target, nonce[:_NONCE])
        self._relayed.pop(key, None)  # so that the oldest come first
        origin = (port.ifindex, message.ether_source)
        if before is not None:
            ports |= before.ports
            origin = before.origin
        until = now + self._group.timers.retransmit
        self._relayed[key] = _Relayed(until, frozenset(ports), origin)

    def _may_await(self, port: Attached, target: bytes) -> bool:
        """Whether there is room to remember who probes: else an objection could not be passed on."""
        return target in self._probes or self._make_room(port)

    def _await_objection(self, seen: _Sighting, *, known: bool, now: float) -> None:
        """Remember who probes, to tell it of an objection or to learn it if there is none."""
        port, target = seen.port, seen.address
        probe = self._probes.get(target)
        if probe is None:
            barred = self._barred(port, target)
            if barred is Verdict.CLAIM:
                self._refuse_claim(port, target, seen.mac, "the next hop of a route")
            newcomer = None if known or barred is not None else seen
            probe = self._probes[target] = _Probe(target, port.ifindex, newcomer)
            self._timers.schedule(probe, now + self._group.timers.retransmit)
        elif probe.newcomer is not None and probe.newcomer.mac != seen.mac:
            # Two hosts want one address at the same time: nobody is learned (RFC 4862 section 5.4.3).
            probe.newcomer = None
        probe.probers[port.ifindex] = seen.mac

    def _object(self, seen: _Sighting) -> None:
        """An advertisement for an address that somebody probes for: pass it on."""
        probe = self._probes.get(seen.address)
        if probe is None or probe.probers.get(seen.port.ifindex) == seen.mac:
            return
        if seen.solicited and not seen.override:
            return  # a proxy's answer to ourselves; it objects to the probe itself if it has reason to
        self._give_up(probe)
        for ifindex, mac in probe.probers.items():
            port = self._ports.get(ifindex)
            if port is not None and port is not seen.port:
                self._defend(port, mac, seen.address, router=bool(seen.router))

    def _defend(self, port: Attached, mac: bytes, target: bytes, *, router: bool) -> Verdict:
        """Tell `mac`, who probes on `port`, that the address is taken, at once: it waits for a second."""
        voice = port.voice(target)
        if not voice.answers:
            return Verdict.NO_SOURCE
        frame = voice.defence(mac, target, self._flags(router=router))
        self._sends.append((port.ifindex, frame))
        return Verdict.DEFENDED

    # -- time ------------------------------------------------------------------------------------------

    def tick(self, now: float) -> Outcome:
        """Do what is due at the monotonic time `now`: retransmit, give up, probe, forget."""
        for item in (due := self._timers.due(now, _TICK_BATCH)):
            if isinstance(item, Neighbor):
                if item.ifindex:
                    self._neighbor_due(item, now)
            elif isinstance(item, _Pending):
                self._pending_due(item, now)
            elif isinstance(item, Turns):
                self._announcement_due(item, now)
            elif isinstance(item, _Recall):
                self._recall_due(now)
            else:
                self._probe_due(item, now)
            if self._routes.effects:
                break  # a route that is refused holds back what belongs to it alone
        due.close()
        if now >= self._routers.deadline:
            self._take(self._routers.tick(now))
        return self._outcome(Verdict.HEARD)

    @property
    def deadline(self) -> float:
        """The monotonic time at which `tick` is next due, infinity when nothing is."""
        return min(self._timers.deadline, self._routers.deadline)

    def _neighbor_due(self, entry: Neighbor, now: float) -> None:
        timers = self._group.timers
        if (claim := entry.claim) is not None:
            if entry.probes < _CONTEST_PROBES:
                self._send_probe(entry, now)
                return
            if now < claim.dad_until:
                self._timers.schedule(entry, claim.dad_until)
                return
            port = self._ports.get(claim.ifindex)
            if port is not None and self._barred(port, entry.address) is None:
                self._move(entry, port, claim.mac, now)
                return
            entry.claim = None
            self._timers.schedule(entry, now + timers.forget)
            self._set_ready(entry)
        elif entry.probes:
            if entry.probes >= timers.retries:
                home = self._ports[entry.ifindex]
                self._event(
                    EventKind.LOST, home, entry.address, f"on {home.port.name} does not answer any more"
                )
                self._drop(entry)
            else:
                self._send_probe(entry, now)
        elif now >= entry.heard + timers.forget:
            self._send_probe(entry, now)
        else:
            self._timers.schedule(entry, entry.heard + timers.forget)

    def _probe_if_stale(self, entry: Neighbor, now: float) -> None:
        if now >= entry.reachable and not entry.probes and entry.claim is None:
            self._send_probe(entry, now)

    def _send_probe(self, entry: Neighbor, now: float) -> None:
        """Ask a known host, by unicast, whether it is still there (RFC 4861 section 7.3.3)."""
        timers = self._group.timers
        if self._unicast(self._ports[entry.ifindex], entry.address, entry.mac):
            entry.probes += 1
            self._timers.schedule(
                entry, now + (_CONTEST_INTERVAL if entry.claim is not None else timers.retransmit)
            )
            return
        # The port has no address to ask from: what is known stays.
        entry.claim = None
        entry.probes = 0
        self._timers.schedule(entry, now + timers.forget)
        self._set_ready(entry)

    def _unicast(self, port: Attached, address: bytes, mac: bytes) -> bool:
        voice = port.voice(address)
        if not voice.asks:
            return False
        self._sends.append((port.ifindex, voice.solicitation(address, mac)))
        return True

    def _pending_due(self, pending: _Pending, now: float) -> None:
        timers = self._group.timers
        asked = frozenset(pending.asked)
        if self._pending.get(pending.target) is not pending:
            return
        seen = pending.candidate
        if seen is not None and pending.proven and now >= pending.settle_at:
            self._settle(pending, seen, now)
        elif pending.promised:
            pending.promised = False
            flags = self._flags(router=False)
            for asker in pending.askers:
                self._answer_waiting(asker, pending.target, flags)
            pending.askers.clear()
            self._timers.schedule(pending, now + timers.retransmit)
        elif pending.tries >= timers.retries or not asked:
            self._give_up(pending)
            if asked and seen is None:
                self._note_absence(pending.target, asked, now)
        else:
            pending.tries += 1
            pending.asked = set()
            self._ask(pending, [self._ports[index] for index in asked])
            if seen is not None:
                self._unicast(seen.port, seen.address, seen.mac)
            self._timers.schedule(pending, now + timers.retransmit)

    def _note_absence(self, target: bytes, asked: frozenset[int], now: float) -> None:
        self._failed += 1
        while self._nobody:
            oldest = next(iter(self._nobody))
            if self._nobody[oldest][0] > now:
                break
            del self._nobody[oldest]
        self._nobody.pop(target, None)
        self._nobody[target] = (now + self._group.timers.negative, asked)

    def _probe_due(self, probe: _Probe, now: float) -> None:
        """Nobody objected to a DAD probe: the host has the address now (RFC 4862 section 5.4)."""
        if self._probes.get(probe.target) is not probe:
            return
        self._give_up(probe)
        seen = probe.newcomer
        if seen is None or probe.target in self._by_address:
            return
        barred = self._barred(seen.port, seen.address)
        if barred is Verdict.CLAIM:
            self._refuse_claim(
                seen.port, seen.address, seen.mac, "the next hop of a route, or the proxy's own"
            )
        elif barred is None:
            pending = self._pending.get(seen.address)
            if pending is not None:
                self._settle(pending, seen, now)
            elif self._held_elsewhere(seen.port, seen.address):
                self._check_claim(seen, now)
            else:
                self._learn(seen, now)

    # -- routes ----------------------------------------------------------------------------------------

    def settle(self, effect: AddRoute | MoveRoute, result: RouteResult) -> Outcome:
        """How a route effect ended.  After `RouteResult.FAILED` the next solicitation tries again."""
        entry = self._by_address.get(effect.route.address)
        if entry is None or entry.route != effect.route:
            return Outcome(Verdict.HEARD)
        news = self._routes.settle(entry, effect.route, result)
        self._set_ready(entry)
        if news:
            why = "is somebody else's" if result is RouteResult.FOREIGN else "is refused by the kernel"
            home = self._ports[entry.ifindex]
            self._event(EventKind.ROUTE, home, entry.address, f"dev {home.port.name}: its host route {why}")
        return self._outcome(Verdict.HEARD)

    def _route_for(self, address: bytes, ifindex: int) -> HostRoute | None:
        routes, port = self._group.routes, self._ports[ifindex]
        if routes is None or port.upstream:
            return None
        return HostRoute(address, ifindex, port.port.table, routes.metric, routes.protocol)

    def _want_route(self, entry: Neighbor, now: float, *, wanted: bool) -> None:
        """Set the route of a host that is new, or newly somewhere.  Those whom nobody waits for leave half
        of the route changes to the others."""
        self._routes.want(entry, self._route_for(entry.address, entry.ifindex), now, 0.0 if wanted else 0.5)

    # -- answers ---------------------------------------------------------------------------------------

    def _flags(self, *, router: bool) -> int:
        """The flags of a solicited answer.  O stays 0, so that the host's own answer wins over the proxy's
        (RFC 4861 section 7.2.8)."""
        flags = ndp.S_FLAG
        if self._group.advertisement.override is Switch.ON:
            flags |= ndp.O_FLAG
        if self._shows_router(router):
            flags |= ndp.R_FLAG
        return flags

    def _shows_router(self, router: bool) -> bool:
        switch = self._group.advertisement.router
        return router if switch is Switch.AUTO else switch is Switch.ON

    def _reply(self, port: Attached, asker: _Asker, target: bytes, flags: int) -> None:
        frame = port.voice(target).replies(asker.address, asker.mac)(target, flags)
        self._sends.append((port.ifindex, frame))

    def _set_ready(self, entry: Neighbor) -> None:
        """Note until when a host is answered for without a second look, and with which flags."""
        rule = self._rules.lookup(entry.address)
        entry.flags = self._flags(router=entry.router)
        settled = entry.route_state in (RouteState.NONE, RouteState.INSTALLED, RouteState.FOREIGN)
        plain = rule is not None and not rule.particular and entry.claim is None
        entry.ready = entry.reachable if settled and plain else 0.0

    # -- bookkeeping -----------------------------------------------------------------------------------

    @property
    def _group_bound(self) -> Bound:
        assert self._bound is not None  # noqa: S101 - configure comes first
        return self._bound

    @property
    def _group(self) -> Group:
        return self._group_bound.group

    def _drop(self, entry: Neighbor) -> None:
        self._routes.drop(entry)
        self._table.remove(entry)
        self._regroup_host(entry)
        self._announcer.forget(entry.address)
        entry.claim = None
        entry.due = math.inf

    def _over_limit(self, port: Attached, source: bytes, now: float) -> Verdict | None:
        """The verdict when a frame from link-layer address `source` exceeds what it or the port may cost."""
        rate = self._group.limits.per_source
        return self._rates.exceeded(port.ifindex, source, rate, port.bucket, now)

    def _event(self, kind: EventKind, port: Attached, address: bytes, what: str) -> None:
        who = text(address)
        name = port.port.name
        self._events.append(
            Event(kind=kind, text=f"{who} {what}", group=self._group.name, port=name, address=who)
        )

    def _outcome(self, verdict: Verdict) -> Outcome:
        effects = (*self._routes.effects, *self._effects)
        outcome = Outcome(verdict, effects, tuple(self._sends), tuple(self._events))
        if effects:
            self._routes.effects.clear()
            self._effects.clear()
        if self._sends:
            self._sends = []
        if self._events:
            self._events = []
        return outcome

    # -- for other threads: these copy -------------------------------------------------------------------

    def counters(self) -> dict[str, dict[str, int]]:
        """How many frames ended in which verdict, by port."""
        return {
            this.port.name: {
                verdict.label: this.counts[verdict] for verdict in Verdict if this.counts[verdict]
            }
            for this in list(self._ports.values())
        }

    def neighbors(self, now: float) -> list[NeighborInfo]:
        """The known hosts."""
        ports = self._ports
        infos = []
        for entry in list(self._by_address.values()):
            port = ports.get(entry.ifindex)
            if port is None:
                continue
            infos.append(
                NeighborInfo(
                    entry.address,
                    port.port.name,
                    entry.mac,
                    _state(entry, now),
                    max(0.0, now - entry.heard),
                    entry.route_state.value,
                )
            )
        return infos

    def tally(self, now: float) -> Tally:
        """What there is to count."""
        return Tally(
            states=Counter(_state(entry, now) for entry in list(self._by_address.values())),
            late={this.port.name: this.late for this in list(self._ports.values())},
            found=self._found,
            failed=self._failed,
            routes=self._routes.count(),
            announcements=self._announced,
        )

    def noted(self, now: float) -> Noted:
        """What may tell why nothing happens."""
        ports = list(self._ports.values())
        versions = {16: 6, 4: 4}
        asked = {this.port.name: tuple(versions[size] for size in sorted(this.asked)) for this in ports}
        return self._notes.noted(asked, now)

    def routers(self, now: float) -> list[RouterInfo]:
        """The routers whose advertisements are relayed."""
        return self._routers.infos(now)

    def wanted_routes(self) -> frozenset[HostRoute]:
        """The host routes that should be in the kernel."""
        return self._routes.wanted()

    def explain(self, address: bytes, ifindex: int | None, now: float) -> Explanation:
        """How a solicitation for `address` would be decided on port `ifindex`, or on the upstream, when it
        comes from a router: from a link-local address, or with IPv4 from the next hop on that port."""
        port = self._ports.get(ifindex) if ifindex is not None else self._uplink
        if port is None and ifindex is None:
            port = next(iter(self._ports.values()), None)
        if port is None:
            return Explanation(Verdict.NOWHERE, ("the group has no such port in use",))
        asked = "an ARP request" if len(address) == 4 else "a solicitation"
        steps = [f"{asked} for {text(address)} arrives on {port.port.name}"]

        def say(template: str, *values: object) -> None:
            steps.append(template.format(*values))

        verdict = self._judge(port, address, self._likely_asker(port, address), now, say).verdict
        if verdict is Verdict.KERNEL and len(address) == 4:
            # Linux arp_process: it answers from an entry where it would forward to another interface.
            out = self._kernel.route(address, port.port.table)
            if out in {0, port.ifindex}:
                where = f"leaves by {port.port.name} itself" if out else "is the default route, or none"
                steps.append(
                    f"but the kernel's route for it {where}, so it is silent: make one by another port"
                )
                verdict = Verdict.NO_ROUTE
        steps.append(f"verdict: {verdict.label}")
        return Explanation(verdict, tuple(steps))

    def lift(self, _ifindex: int, _now: float) -> Outcome:
        """Leave all as it is: no port is ever held down in this mode."""
        return Outcome(Verdict.NOT_HANDLED)

    def standings(self, _now: float) -> list[Standing]:
        """Tell of no port: all take part in full."""
        return []

    def _likely_asker(self, port: Attached, address: bytes) -> bytes:
        if asker := port.voice(address).ROUTER:
            return asker
        hops = (hop for hop, ports in self._next_hops.items() if port.ifindex in ports)
        return next((hop for hop in hops if len(hop) == len(address)), bytes(len(address)))

    def table_size(self) -> int:
        """How many hosts are known."""
        return len(self._by_address)

    def pending_size(self) -> int:
        """How many targets are being asked for or probed for."""
        return len(self._pending) + len(self._probes)


def _state(entry: Neighbor, now: float) -> str:
    """A known host's state, for people."""
    if entry.claim is not None:
        return "contested"
    if entry.probes:
        return "probing"
    return "reachable" if now < entry.reachable else "stale"

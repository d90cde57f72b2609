"""Checks of packet filters: what they do to Neighbor Discovery, to ARP, and to what the kernel forwards.

Portier's own sockets hear frames before any filter but one of a bridge, so a filter seldom keeps it from
answering.  What it stops is the kernel: its search for the hosts that it forwards to, and the packets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_network
from typing import Final, NamedTuple

from portier.core.doctor.facts import Facts, known
from portier.core.doctor.finding import Check, Finding, note, problem, warning
from portier.core.firewall import (
    PASSED,
    Chain,
    Fate,
    Network,
    Packet,
    Place,
    Ruleset,
    alike,
    fate,
    is_reverse_path,
)
from portier.core.model import Bound, Live, Mode, Port, Role

_LINK_LOCAL: Final = ip_network("fe80::/10")
_SOLICITED_NODES: Final = ip_network("ff02::1:ff00:0/104")
_ALL_NODES: Final = ip_network("ff02::1/128")
_ICMP: Final = 1
_TCP: Final = 6
_UDP: Final = 17
_ICMPV6: Final = 58
_ADVERTISEMENT_OF_ROUTER, _SOLICITATION, _ADVERTISEMENT = 134, 135, 136
_IN: Final = ("ingress", "prerouting", "input")
_OUT: Final = ("output", "postrouting", "egress")
_ARRIVING: Final = ("ingress", "prerouting")  # where such rules stand
_THROUGH: Final = ("ingress", "prerouting", "forward", "postrouting", "egress")
_NETWORKS: Final = 8  # of a group that are tried
_WORDS: Final = {
    _ADVERTISEMENT_OF_ROUTER: "router advertisements",
    _SOLICITATION: "neighbor solicitations",
    _ADVERTISEMENT: "neighbor advertisements",
}
_NAMES: Final = {
    _ADVERTISEMENT_OF_ROUTER: "nd-router-advert",
    _SOLICITATION: "nd-neighbor-solicit",
    _ADVERTISEMENT: "nd-neighbor-advert",
}


class _Hit(NamedTuple):
    """What a filter does to one kind of packet on one port: ``what`` and ``consequence`` in words, ``allow``
    what nft would have to accept."""

    ports: tuple[str, ...]
    what: str
    consequence: str
    allow: str
    fate: Fate


def _bounds(facts: Facts) -> list[Bound]:
    return list(known(facts.setup).bounds.values())


def networks(bound: Bound, version: int) -> list[Network]:
    """Where the hosts of a group have their addresses, by its rules."""
    found: list[Network] = []
    for rule in bound.group.rules:
        if rule.allow and rule.version == version:
            found += bound.live if isinstance(rule.prefix, Live) else [rule.prefix]
    if bound.group.mode is Mode.RELAY and version == 6:
        found += [prefix for port in bound.ports for prefix in port.on_link]
    return [net for net in dict.fromkeys(found) if net.version == version][:_NETWORKS]


def _versions(bound: Bound) -> list[int]:
    return [version for version in (6, 4) if networks(bound, version)]


def _address(packed: bytes | None) -> Network:
    return ip_network(packed) if packed is not None else _LINK_LOCAL


def _discovery(
    port: Port, hosts: list[Network], *, follows_routers: bool
) -> Iterator[tuple[tuple[str, ...], Packet]]:
    """The messages that the kernel must hear and may say on a port, each with the hooks that it passes."""
    heard = Packet("ip6", iif=port.name, oif="", protocol=_ICMPV6, hop_limit=255, state="untracked")
    said = Packet("ip6", iif="", oif=port.name, protocol=_ICMPV6, hop_limit=255, state="untracked")
    own = _address(port.source)
    for kind, source, destination in (
        (_SOLICITATION, _LINK_LOCAL, _SOLICITED_NODES),
        *((_ADVERTISEMENT, source, own) for source in (_LINK_LOCAL, *hosts)),
        *(((_ADVERTISEMENT_OF_ROUTER, _LINK_LOCAL, _ALL_NODES),) if follows_routers else ()),
    ):
        yield _IN, heard._replace(kind=kind, source=source, destination=destination)
    for kind, destination in ((_SOLICITATION, _SOLICITED_NODES), (_ADVERTISEMENT, _LINK_LOCAL)):
        yield _OUT, said._replace(kind=kind, source=own, destination=destination)


def _nd(facts: Facts) -> Iterator[Finding]:
    rules = known(facts.ruleset)
    follow = {link.ifindex for link in known(facts.snapshot).links if link.accept_ra}
    hits = []
    for bound in _bounds(facts):
        hosts = networks(bound, 6)
        for ports in _kinds(rules, bound.ports if hosts else ()):
            port = ports[0]
            follows = port.role is Role.UPSTREAM and port.ifindex in follow
            for hooks, packet in _discovery(port, hosts, follows_routers=follows):
                direction = "coming in" if hooks is _IN else "going out"
                hits.append(
                    _Hit(
                        tuple(each.name for each in ports),
                        f"{_WORDS[packet.kind or 0]} {direction}",
                        "the kernel loses its default route"
                        if packet.kind == _ADVERTISEMENT_OF_ROUTER
                        else "the kernel and the neighbors cannot find each other",
                        f"icmpv6 type {_NAMES[packet.kind or 0]}",
                        fate(rules, hooks, packet),
                    )
                )
    yield from _findings(hits)


def _arp(facts: Facts) -> Iterator[Finding]:
    rules = known(facts.ruleset)
    hits = []
    for bound in _bounds(facts):
        for port in bound.ports if networks(bound, 4) else ():
            for operation, word in ((1, "requests"), (2, "replies")):
                for hooks, direction in ((_IN, "coming in"), (_OUT, "going out")):
                    inward = hooks is _IN
                    packet = Packet(
                        "arp",
                        iif=port.name if inward else "",
                        oif="" if inward else port.name,
                        kind=operation,
                    )
                    hits.append(
                        _Hit(
                            (port.name,),
                            f"ARP {word} {direction}",
                            "the kernel and the neighbors cannot find each other",
                            f"arp operation {word.removesuffix('s').replace('replie', 'reply')}",
                            fate(rules, hooks, packet),
                        )
                    )
    yield from _findings(hits)


def _bridged(facts: Facts) -> Iterator[Finding]:
    """Frames to and from a port that is a bridge pass the bridge's own filters, before Portier hears them."""
    rules = known(facts.ruleset)
    bridges = {link.ifindex for link in known(facts.snapshot).links if link.kind == "bridge"}
    hits = []
    for bound in _bounds(facts):
        for port in bound.ports:
            if port.ifindex not in bridges:
                continue
            for packet, what, allow in _bridge_packets(_versions(bound)):
                for hooks, direction in (
                    (("prerouting", "input"), "coming in"),
                    (("output", "postrouting"), "going out"),
                ):
                    hits.append(
                        _Hit(
                            (port.name,),
                            f"{what} {direction}",
                            "Portier does not hear them" if direction == "coming in" else "nobody hears them",
                            allow,
                            fate(rules, hooks, packet, {"bridge"}),
                        )
                    )
    yield from _findings(hits)


def _bridge_packets(versions: list[int]) -> Iterator[tuple[Packet, str, str]]:
    """Which member a frame passes by is not known."""
    if 6 in versions:
        for kind in (_SOLICITATION, _ADVERTISEMENT):
            packet = Packet("ip6", protocol=_ICMPV6, kind=kind, hop_limit=255)
            yield packet, _WORDS[kind], f"icmpv6 type {_NAMES[kind]}"
    if 4 in versions:
        for operation, word in ((1, "request"), (2, "reply")):
            yield Packet("arp", kind=operation), f"ARP packets ({word})", f"arp operation {word}"


def _forward(facts: Facts) -> Iterator[Finding]:
    rules = known(facts.ruleset)
    for bound in _bounds(facts):
        if bound.group.mode is Mode.RELAY:
            continue  # what is relayed passes no filter of the kernel's
        for version in _versions(bound):
            hosts = networks(bound, version)
            for first, others in _pairs(bound):
                yield from _between(rules, first, others, hosts)


def _kinds(rules: Ruleset, ports: Iterable[Port]) -> Iterator[list[Port]]:
    """Ports, those together that no rule tells from each other: of many containers one is looked at."""
    for role in Role:
        by_name = {port.name: port for port in ports if port.role is role}
        for names in alike(rules, by_name):
            yield [by_name[name] for name in names]


def _pairs(bound: Bound) -> Iterator[tuple[Port, list[Port]]]:
    """The upstream with all downstreams; without one, a downstream with the others."""
    ups = [port for port in bound.ports if port.role is Role.UPSTREAM]
    downs = [port for port in bound.ports if port.role is Role.DOWNSTREAM]
    if ups and downs:
        yield ups[0], downs
    elif len(downs) > 1 and not bound.group.isolate:
        yield downs[0], downs[1:]


class Ways(NamedTuple):
    """What a filter does to packets between two ports: of new connections from outside and from behind, and
    of those that are there."""

    inward: Fate
    outward: Fate
    going_on: Fate


def ways(rules: Ruleset, outside: str, inside: str, hosts: list[Network]) -> Ways:
    """What the filters do between two interfaces to packets of `hosts`, which are on ``inside``."""
    layer = "ip6" if hosts[0].version == 6 else "ip"

    def worst(state: str, *, inward: bool) -> Fate:
        return _gravest(
            _through(
                rules,
                Packet(
                    layer,
                    iif=outside if inward else inside,
                    oif=inside if inward else outside,
                    source=None if inward else net,
                    destination=net if inward else None,
                    state=state,
                ),
            )
            for net in hosts
        )

    going_on = _gravest(worst("established", inward=inward) for inward in (True, False))
    return Ways(worst("new", inward=True), worst("new", inward=False), going_on)


def _but_pings(rules: Ruleset, outside: str, inside: str, hosts: list[Network]) -> Fate:
    """What drops every new connection, of TCP and of UDP, between two interfaces, where something does."""
    layer = "ip6" if hosts[0].version == 6 else "ip"
    found = PASSED
    for protocol in (_TCP, _UDP):
        for net in hosts:
            there = Packet(layer, outside, inside, protocol, destination=net, state="new")
            back = Packet(layer, inside, outside, protocol, source=net, state="new")
            for packet in (there, back):
                found = fate(rules, _THROUGH, packet)
                if not found.dropped:
                    return PASSED
    return found


def _gravest(fates: Iterable[Fate]) -> Fate:
    return max(fates, key=lambda each: {True: 2, None: 1, False: 0}[each.dropped])


def _samples(packet: Packet) -> Iterator[Packet]:
    """The same as a ping, and as the first packet to a web server."""
    six = packet.layer == "ip6"
    yield packet._replace(protocol=_ICMPV6 if six else _ICMP, kind=128 if six else 8)
    yield packet._replace(protocol=_TCP, port=443)


def _through(rules: Ruleset, packet: Packet) -> Fate:
    """What becomes of packets like this one: they pass where a usual one does, and are dropped where none
    passes, of whatever protocol it is."""
    for sample in _samples(packet):
        if fate(rules, _THROUGH, sample).dropped is False:
            return PASSED
    return fate(rules, _THROUGH, packet)


def through(rules: Ruleset, outside: str, inside: str, host: str, router: str | None) -> tuple[Fate, str]:
    """What becomes of a ping from the router to a host on interface ``inside``, and of its answer; with the
    command that lets them pass."""
    target, source = ip_network(host), ip_network(router) if router else None
    six = target.version == 6
    ping = Packet(
        "ip6" if six else "ip",
        outside,
        inside,
        _ICMPV6 if six else _ICMP,
        128 if six else 8,
        source,
        target,
        state="new",
    )
    answer = ping._replace(
        iif=inside,
        oif=outside,
        kind=129 if six else 0,
        source=target,
        destination=source,
        state="established",
    )
    found = _gravest(fate(rules, _THROUGH, packet) for packet in (ping, answer))
    return found, _accept_forward(found.place, outside, [inside]) if found.place else ""


def _between(rules: Ruleset, outside: Port, insides: list[Port], hosts: list[Network]) -> Iterator[Finding]:
    family = f"IPv{hosts[0].version}"
    found: dict[tuple[str, str], tuple[list[str], Place]] = {}
    for same in _kinds(rules, insides):
        way = ways(rules, outside.name, same[0].name, hosts)
        for kind, one in (
            ("all", way.inward if way.outward.dropped and way.inward.dropped else None),
            ("answers", way.going_on if way.going_on.dropped else None),
            ("but pings", _but_pings(rules, outside.name, same[0].name, hosts)),
            ("out", way.outward if way.outward.dropped and not way.inward.dropped else None),
            ("in", way.inward if way.inward.dropped and not way.outward.dropped else None),
            ("?", next((each for each in way if each.dropped is None), None)),
        ):
            if one is not None and one.place is not None:
                names, _ = found.setdefault((kind, str(one.place)), ([], one.place))
                names += [inside.name for inside in same]
                break
    for (kind, _), (names, place) in found.items():
        subject = f"{outside.name} and {', '.join(names)}"
        remedy = _accept_forward(place, outside.name, names)
        evidence = str(place)
        if kind == "all":
            yield problem(subject, f"{family} packets between them are dropped", evidence, remedy)
        elif kind == "answers":
            text = f"{family} packets of connections that are there are dropped between them"
            yield problem(subject, text, evidence, remedy)
        elif kind == "but pings":
            text = f"{family} connections between them are dropped, whoever opens them, though pings pass"
            yield problem(subject, text, evidence, remedy)
        elif kind == "out":
            yield note(subject, f"hosts behind open no {family} connections to outside", evidence, remedy)
        elif kind == "in":
            yield note(
                subject, f"nobody outside opens {family} connections to hosts behind", evidence, remedy
            )
        else:
            text = f"whether {family} packets between them pass depends on more than can be told from here"
            yield note(subject, text, evidence)


def _reverse_path(facts: Facts) -> Iterator[Finding]:
    rules = known(facts.ruleset)
    found: dict[str, tuple[list[str], Place]] = {}
    for bound in _bounds(facts):
        if bound.group.mode is Mode.RELAY:
            continue
        for version in _versions(bound):
            layer = "ip6" if version == 6 else "ip"
            behind = [port for port in bound.ports if port.role is Role.DOWNSTREAM]
            for same in _kinds(rules, behind):
                for sample in _samples(Packet(layer, iif=same[0].name, state="new", strays=True)):
                    strayed = fate(rules, _ARRIVING, sample)
                    place = strayed.place
                    if place is None or not (
                        (place.rule is not None and is_reverse_path(place.rule))
                        or (
                            strayed.dropped
                            and not fate(rules, _ARRIVING, sample._replace(strays=False)).dropped
                        )
                    ):
                        continue
                    ports, _ = found.setdefault(str(place), ([], place))
                    ports += [port.name for port in same if port.name not in ports]
    for evidence, (ports, place) in found.items():
        yield warning(
            ", ".join(ports),
            "a rule drops what comes from hosts to which no route by their own port is known: a host's first "
            "packets, until it is learned and has its host route, and all of them with `routes: false`",
            evidence,
            _insert(place, _interfaces("iifname", ports), [("-i", name) for name in ports]),
        )


def _findings(hits: Iterable[_Hit]) -> Iterator[Finding]:
    """Findings, one for all that the same rule does."""
    found: dict[tuple[bool | None, str, str], tuple[Place, list[str], list[str], list[str]]] = {}
    for hit in hits:
        place = hit.fate.place
        if place is None:
            continue
        key = (hit.fate.dropped, str(place), hit.consequence)
        _, ports, whats, allows = found.setdefault(key, (place, [], [], []))
        for new, items in ((hit.ports, ports), ((hit.what,), whats), ((hit.allow,), allows)):
            items += [item for item in new if item not in items]
    for (dropped, evidence, consequence), (place, ports, whats, allows) in found.items():
        subject = ", ".join(ports)
        if dropped:
            text = f"{' and '.join(whats)} are dropped: {consequence}"
            yield problem(subject, text, evidence, _accept_types(place, allows))
        else:
            text = f"whether {' and '.join(whats)} pass depends on more than can be told from here"
            yield note(subject, text, evidence)


def _accept_types(place: Place, allows: list[str]) -> str:
    field = allows[0].rpartition(" ")[0]
    values = [allow.rpartition(" ")[2] for allow in allows]
    one = values[0] if len(values) == 1 else f"{{ {', '.join(values)} }}"
    numbers = [str(kind) for kind, name in _NAMES.items() if name in values]
    return _insert(place, f"{field} {one}", [("-p icmpv6 --icmpv6-type", number) for number in numbers])


def _accept_forward(place: Place, outside: str, insides: list[str]) -> str:
    match = f"{_interfaces('iifname', [outside, *insides])} {_interfaces('oifname', [outside, *insides])}"
    pairs = [(f"-i {a} -o", b) for name in insides for a, b in ((outside, name), (name, outside))]
    return _insert(place, match, pairs)


def _interfaces(field: str, names: list[str]) -> str:
    quoted = [f'"{name}"' for name in names]
    return f"{field} {quoted[0]}" if len(quoted) == 1 else f"{field} {{ {', '.join(quoted)} }}"


def _insert(place: Place, match: str, options: list[tuple[str, str]]) -> str:
    """The command that accepts what `match` says (`options` in the words of iptables) ahead of what drops
    it."""
    base = place.base
    if base.tool != "nft":
        name = _chain_name(base)
        return " && ".join(
            f"{base.tool} {_table(base)}-I {name} {option} {value} -j ACCEPT" for option, value in options
        )
    return f"nft insert rule {base.family} {base.table} {_chain_name(base)} {match} accept"


def _table(chain: Chain) -> str:
    return "" if chain.table == "filter" else f"-t {chain.table} "


def _chain_name(chain: Chain) -> str:
    """Docker puts its own rules first in FORWARD, and leaves DOCKER-USER to the user."""
    users = any(
        next(iter(s)) == "jump" and s["jump"]["target"] == "DOCKER-USER"
        for rule in chain.rules
        for s in rule.expr
    )
    return "DOCKER-USER" if users else chain.name


CHECKS: Final = (
    Check("firewall-nd", "no packet filter drops Neighbor Discovery on the ports", _nd),
    Check("firewall-arp", "no packet filter drops ARP on the ports", _arp),
    Check("firewall-bridge", "no filter of a bridge that is a port keeps ND or ARP from it", _bridged),
    Check("firewall-forward", "packets between the ports of a group are forwarded", _forward),
    Check("firewall-reverse-path", "no packet filter drops by the reverse path", _reverse_path),
)

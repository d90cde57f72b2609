"""What a packet filter would do with a packet of which not all is known.

A ruleset is what `nft -j` prints, and what `iptables-save` prints put into the same terms.  `fate` walks the
base chains of some hooks with a `Packet`, and every condition of a rule is true, false, or cannot be judged.
So there are three answers: passed, dropped, and not to be told from outside; only what would be dropped
whatever the open conditions say is called dropped.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, Final, NamedTuple

_DEPTH: Final = 16  # jumps in jumps; the kernel allows as many
# Names that nft and ip6tables give to ICMP types, as far as Portier asks.
_TYPES: Final = {
    "icmpv6": {
        "destination-unreachable": 1,
        "packet-too-big": 2,
        "time-exceeded": 3,
        "parameter-problem": 4,
        "echo-request": 128,
        "echo-reply": 129,
        "mld-listener-query": 130,
        "mld-listener-report": 131,
        "mld-listener-done": 132,
        "nd-router-solicit": 133,
        "router-solicitation": 133,
        "nd-router-advert": 134,
        "router-advertisement": 134,
        "nd-neighbor-solicit": 135,
        "neighbour-solicitation": 135,
        "neighbor-solicitation": 135,
        "nd-neighbor-advert": 136,
        "neighbour-advertisement": 136,
        "neighbor-advertisement": 136,
        "nd-redirect": 137,
        "redirect": 137,
        "router-renumbering": 138,
        "ind-neighbor-solicit": 141,
        "ind-neighbor-advert": 142,
        "mld2-listener-report": 143,
    },
    "icmp": {"echo-reply": 0, "echo-request": 8},
}
_PROTOCOLS: Final = {
    "ipv6-icmp": 58, "icmpv6": 58, "icmp": 1, "tcp": 6, "udp": 17, "esp": 50, "sctp": 132, "gre": 47,
}  # fmt: skip
_OPERATIONS: Final = {"request": 1, "reply": 2}
_ETHERTYPES: Final = {"ip": 0x0800, "arp": 0x0806, "ip6": 0x86DD, "vlan": 0x8100, "8021q": 0x8100}
_NFPROTO: Final = {"ipv4": 2, "ip": 2, "ipv6": 10, "ip6": 10}
_ADDRESSES: Final = frozenset({"ip6 saddr", "ip6 daddr", "ip saddr", "ip daddr"})
_INTERFACES: Final = frozenset({"meta iifname", "meta oifname", "meta iif", "meta oif"})
# What is in every frame, so that a protocol that is not the packet's own makes a condition false.
_LAYERS: Final = {"ip6": "ip6", "ip": "ip", "icmpv6": "ip6", "icmp": "ip", "arp": "arp"}
_TRANSPORTS: Final = {"icmpv6": 58, "icmp": 1, "tcp": 6, "udp": 17, "sctp": 132, "udplite": 136, "dccp": 33}
_TERMINAL: Final = frozenset({"accept", "drop", "reject", "return", "jump", "goto", "vmap", "queue"})
_HARMLESS: Final = frozenset({"counter", "log", "comment", "mangle", "set", "notrack", "ct helper", "meter"})

# Families whose chains see a packet, by its own.
_FAMILIES: Final = {
    "ip6": frozenset({"ip6", "inet", "netdev", "bridge"}),
    "ip": frozenset({"ip", "inet", "netdev", "bridge"}),
    "arp": frozenset({"arp", "netdev", "bridge"}),
}

Network = IPv4Network | IPv6Network


# The fields of a `Packet` by nft's names for them.
_FIELDS_OF: Final = {
    "meta iifname": "iif",
    "meta iif": "iif",
    "meta oifname": "oif",
    "meta oif": "oif",
    "meta l4proto": "protocol",
    "ip6 nexthdr": "protocol",
    "ip protocol": "protocol",
    "arp operation": "kind",
    "ip6 saddr": "source",
    "ip saddr": "source",
    "ip6 daddr": "destination",
    "ip daddr": "destination",
    "ip6 hoplimit": "hop_limit",
    "tcp dport": "port",
    "udp dport": "port",
    "th dport": "port",
    "ct state": "state",
}
_TRANSLATED: Final = frozenset({"snat", "dnat"})
_PLAIN: Final = "not translated"  # connections to hosts that have addresses of their own
_ARP_ALWAYS: Final = {"arp htype": 1, "arp hlen": 6, "arp plen": 4}


class Packet(NamedTuple):
    """What is known of a packet.  ``layer`` is "ip6", "ip" or "arp"; ``iif`` and ``oif`` interface names,
    None where not known, "" where there is none; ``protocol`` the number of the upper protocol, ``kind`` its
    ICMP type or the ARP operation; None where not known.  ``source`` and ``destination`` are networks within
    which the addresses lie; ``port`` is the destination's; ``state`` that of connection tracking; ``strays``
    says that the route back to its source leaves by another interface."""

    layer: str
    iif: str | None = None
    oif: str | None = None
    protocol: int | None = None
    kind: int | None = None
    source: Network | None = None
    destination: Network | None = None
    hop_limit: int | None = None
    port: int | None = None
    state: str | None = None
    strays: bool = False

    def fact(self, key: str) -> Any:
        """The value of a field by nft's name for it, None where that is not known, and `_ABSENT` where the
        packet has no such field."""
        protocol, _, name = key.partition(" ")
        if (layer := _LAYERS.get(protocol)) is not None and layer != self.layer:
            return _ABSENT
        if (number := _TRANSPORTS.get(protocol)) is not None and self.protocol not in {None, number}:
            return _ABSENT
        if protocol in {"icmpv6", "icmp"} and name == "type" and self.protocol is not None:
            return self.kind
        if (known := _FIELDS_OF.get(key)) is not None:
            return getattr(self, known)
        if key == "ct status":
            return _PLAIN
        if key == "meta nfproto":
            return _NFPROTO.get(self.layer)
        return _ETHERTYPES[self.layer] if key in {"meta protocol", "ether type"} else _ARP_ALWAYS.get(key)


class _Absent:
    """Stands for a field that a packet does not have."""


_ABSENT: Final = _Absent()


class Rule(NamedTuple):
    """One rule.  ``expr`` are its statements as `nft -j` names them, ``text`` how its tool shows it."""

    expr: tuple[Mapping[str, Any], ...]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A chain.  ``hook`` is "" for one that is only jumped to; ``devices`` are those of an ingress or egress
    hook; ``tool`` is what changes it: "nft", "ip6tables" and so on."""

    family: str
    table: str
    name: str
    hook: str = ""
    priority: int = 0
    policy: str = "accept"
    devices: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    tool: str = "nft"

    def __str__(self) -> str:
        if self.tool != "nft":
            return f"{self.tool} table {self.table}, chain {self.name}"
        return f"nft table {self.family} {self.table}, chain {self.name}"


@dataclass(frozen=True, slots=True)
class Ruleset:
    """All chains there are, and the named sets: the elements by (family, table, name), None for a set whose
    elements come and go."""

    chains: tuple[Chain, ...] = ()
    sets: Mapping[tuple[str, str, str], Sequence[Any] | None] = field(default_factory=dict)
    _by_name: Mapping[tuple[str, str, str, str], Chain] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Kubernetes makes thousands of chains, and a jump to each.
        named = {(chain.tool, chain.family, chain.table, chain.name): chain for chain in self.chains}
        object.__setattr__(self, "_by_name", named)

    def target(self, chain: Chain, name: str) -> Chain | None:
        """The chain to which a jump from another leads."""
        return self._by_name.get((chain.tool, chain.family, chain.table, name))


class Place(NamedTuple):
    """Where something happens to a packet: a base chain, the chain in which the rule stands, and the rule;
    None for the base chain's policy."""

    base: Chain
    chain: Chain
    rule: Rule | None

    def __str__(self) -> str:
        if self.rule is None:
            return f"{self.base}: policy {self.base.policy}"
        return f"{self.chain}: {self.rule.text}"


class Fate(NamedTuple):
    """What becomes of a packet: ``dropped`` is None where that cannot be told; ``place`` is where it is
    dropped, or the first rule that cannot be judged; None where it passes."""

    dropped: bool | None
    place: Place | None


PASSED: Final = Fate(False, None)


class _Walk(NamedTuple):
    """How a chain may end: the verdicts it may come to, each with its place (True drops, None is anybody's
    guess), and whether it may be left without one."""

    verdicts: list[tuple[bool | None, Place]]
    falls: bool


def fate(
    ruleset: Ruleset, hooks: Iterable[str], packet: Packet, families: Iterable[str] | None = None
) -> Fate:
    """What the base chains on `hooks` do with a packet, in their order; with `families` only those."""
    seen = _FAMILIES[packet.layer] if families is None else frozenset(families)
    open_end: Fate | None = None
    for hook in hooks:
        device = packet.iif if hook == "ingress" else packet.oif
        for chain in sorted(ruleset.chains, key=lambda chain: chain.priority):
            if chain.hook != hook or chain.family not in seen or (chain.family == "bridge" and not families):
                continue
            if hook in {"ingress", "egress"} and device not in chain.devices:
                continue
            found = _fate_in(ruleset, chain, packet)
            if found.dropped:
                return found
            if found.dropped is None and open_end is None:
                open_end = found
    return open_end or PASSED


def is_reverse_path(rule: Rule) -> bool:
    """Whether a rule asks by which interface the kernel's route back to the source leaves (``fib ... oif
    missing``, ``rpfilter --invert``)."""
    return any(
        "match" in statement and _route_back(statement["match"], strays=True) for statement in rule.expr
    )


def alike(ruleset: Ruleset, names: Iterable[str]) -> list[list[str]]:
    """Interface names, those together that no rule tells from each other."""
    said = {word for elements in ruleset.sets.values() for word in _words(elements)}
    for chain in ruleset.chains:
        said.update(chain.devices)
        for rule in chain.rules:
            said.update(_words(rule.expr))
    patterns = [word for word in said if word.endswith("*")]
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        matching = [pattern for pattern in patterns if _is_interface(name, pattern)]
        groups.setdefault((name if name in said else "", *matching), []).append(name)
    return list(groups.values())


def _words(value: Any) -> Iterator[str]:
    """All strings in a part of a rule."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _words(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _words(inner)


def _fate_in(ruleset: Ruleset, base: Chain, packet: Packet) -> Fate:
    walk = _walk(ruleset, base, base, packet, 0)
    verdicts = list(walk.verdicts)
    if walk.falls:
        verdicts.append((base.policy == "drop", Place(base, base, None)))
    kinds = {verdict for verdict, _ in verdicts}
    if kinds == {True}:
        return Fate(True, verdicts[0][1])
    if kinds == {False}:
        return PASSED
    return Fate(None, verdicts[0][1])  # of several that may apply, the first is one that may not


def _walk(ruleset: Ruleset, base: Chain, chain: Chain, packet: Packet, depth: int) -> _Walk:
    found: list[tuple[bool | None, Place]] = []
    may_return = False
    for rule in chain.rules:
        holds = _holds(ruleset, chain, rule, packet)
        if holds is False:
            continue
        place = Place(base, chain, rule)
        verdict, target = _verdict(rule, packet)
        if verdict == "":
            continue
        if verdict in {"jump", "goto"}:
            below = ruleset.target(chain, target)
            if below is None or depth >= _DEPTH:
                found.append((None, place))
                continue
            walk = _walk(ruleset, base, below, packet, depth + 1)
            found += walk.verdicts
            if holds and (verdict == "goto" or not walk.falls):
                return _Walk(found, may_return or walk.falls)
            may_return = may_return or (verdict == "goto" and walk.falls)
            continue
        if verdict == "return":
            if holds:
                return _Walk(found, falls=True)
            may_return = True
            continue
        found.append(({"accept": False, "drop": True, "reject": True}.get(verdict), place))
        if holds:
            return _Walk(found, may_return)
    return _Walk(found, falls=True)


def _verdict(rule: Rule, packet: Packet) -> tuple[str, str]:
    """The verdict of a rule that applies, and where it leads; "" for none, "?" for one not to be told."""
    for statement in rule.expr:
        kind = next(iter(statement))
        if kind == "vmap":
            return _mapped(statement["vmap"], packet)
        if kind in _TERMINAL:
            value = statement[kind]
            return kind, value.get("target", "") if isinstance(value, dict) else ""
        if kind == "xt" and (statement["xt"] or {}).get("type") == "target":
            return "?", ""
    return "", ""


def _mapped(vmap: Mapping[str, Any], packet: Packet) -> tuple[str, str]:
    """What an anonymous verdict map says; a named one may say another thing the next moment."""
    data, key = vmap.get("data"), _key(vmap.get("key"))
    if key is None or not isinstance(data, dict) or "set" not in data:
        return "?", ""
    fact = packet.fact(key)
    if isinstance(fact, _Absent):
        return "", ""
    if fact is None:
        return "?", ""
    for value, verdict in data["set"]:
        same = _same(key, fact, value)
        if same is None:
            return "?", ""
        if same:
            kind = next(iter(verdict))
            target = verdict[kind]
            return kind, target.get("target", "") if isinstance(target, dict) else ""
    return "", ""


def _holds(ruleset: Ruleset, chain: Chain, rule: Rule, packet: Packet) -> bool | None:
    """Whether all conditions of a rule are met; None where that depends on what is not known."""
    result: bool | None = True
    for statement in rule.expr:
        kind = next(iter(statement))
        if kind == "match":
            met = _matches(ruleset, chain, statement["match"], packet)
        elif kind == "limit":
            limit = statement["limit"]  # of a named one it is not said here which way round it is
            # A packet now and then is within it.
            met = not limit.get("inv", False) if isinstance(limit, dict) else None
        elif kind in _TERMINAL or kind in _HARMLESS:
            met = True
        elif kind == "xt":
            met = True if (statement["xt"] or {}).get("type") == "target" else None
        else:
            met = None
        if met is False:
            return False
        if met is None:
            result = None
    return result


def _route_back(match: Mapping[str, Any], *, strays: bool) -> bool | None:
    """What comes of a match that asks for the kernel's route back to the source, of a packet that strays or
    does not; None for one that asks for something else.  Where any interface will do, there is a route."""
    left = match["left"]
    fib = left.get("fib", {}) if isinstance(left, dict) else {}
    if fib.get("result") not in {"oif", "oifname", "check"} or "saddr" not in fib.get("flags", ()):
        return None
    missing = strays and "iif" in fib["flags"]
    if match["op"] != "==" or match["right"] not in (False, True, "0", ""):
        return None
    return not missing if match["right"] is True else missing


def _matches(ruleset: Ruleset, chain: Chain, match: Mapping[str, Any], packet: Packet) -> bool | None:
    if (way := _route_back(match, strays=packet.strays)) is not None:
        return way
    if isinstance(match["left"], dict) and "exthdr" in match["left"]:
        return match["right"] is False  # none of the packets has any
    key = _key(match["left"])
    if key is None:
        return None
    fact = packet.fact(key)
    if isinstance(fact, _Absent):
        return False  # nft ends a rule whose field is not there, whatever the operator
    if fact is None:
        return None
    right = match["right"]
    if isinstance(right, str) and right.startswith("@"):
        right = {"set": ruleset.sets.get((chain.family, chain.table, right[1:]))}
        if right["set"] is None:
            return None
    same = _same(key, fact, right)
    if match["op"] in {"==", "in"}:
        return same
    if match["op"] == "!=" and same is not None:
        return not same
    return None


def _key(left: Any) -> str | None:
    """The name that nft has for a field, None for what is more than a field."""
    if not isinstance(left, dict):
        return None
    if "meta" in left:
        return f"meta {left['meta']['key']}"
    if "payload" in left and "protocol" in left["payload"]:
        return f"{left['payload']['protocol']} {left['payload']['field']}"
    if "ct" in left and "dir" not in left["ct"]:
        return f"ct {left['ct']['key']}"
    return None


def _same(key: str, fact: Any, value: Any) -> bool | None:
    """Whether a fact is a value, or one of the values of a set, a range or a prefix."""
    if isinstance(value, dict) and "set" in value:
        value = value["set"]
    if isinstance(value, dict) and "elem" in value:
        value = value["elem"]["val"]
    if isinstance(value, list):
        results = {_same(key, fact, item) for item in value}
        return True if True in results else None if None in results else False
    if key in _ADDRESSES:
        return _within(fact, value)
    if key in _INTERFACES:
        return _is_interface(fact, value) if isinstance(value, str) else None
    if key == "ct status":
        return False if value in _TRANSLATED else None
    if key == "ct state":
        return bool(fact == value) if isinstance(value, str) else None
    if isinstance(value, dict) and "range" in value:
        first, last = (_number(key, bound) for bound in value["range"])
        return None if first is None or last is None else bool(first <= fact <= last)
    number = _number(key, value)
    return None if number is None else bool(fact == number)


def _is_interface(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _within(network: Network, value: Any) -> bool | None:
    """Whether all addresses of a network are among those of a value; None where some are."""
    try:
        if not isinstance(value, dict):
            version, lowest, highest = _span(value)
        elif "range" in value:
            version, lowest, _ = _span(value["range"][0])
            _, _, highest = _span(value["range"][1])
        else:
            version, lowest, highest = _span(f"{value['prefix']['addr']}/{value['prefix']['len']}")
    except (ValueError, TypeError, KeyError):
        return None
    if version != network.version:
        return False
    _, first, last = _span(network)
    if lowest <= first and last <= highest:
        return True
    return False if last < lowest or highest < first else None


@functools.lru_cache(maxsize=65536)  # a rule is looked at for many packets
def _span(text: str | Network) -> tuple[int, int, int]:
    """The version of a network, its first address and its last."""
    network = ip_network(text, strict=False)
    return network.version, int(network.network_address), int(network.broadcast_address)


def _number(key: str, value: Any) -> int | None:
    """A value of a field as its number."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if not isinstance(value, str):
        return None
    protocol, _, name = key.partition(" ")
    names: Mapping[str, int] = {}
    if name == "type" and protocol in _TYPES:
        names = _TYPES[protocol]
    elif name in {"l4proto", "nexthdr"} or key == "ip protocol":
        names = _PROTOCOLS
    elif name == "operation":
        names = _OPERATIONS
    elif name == "nfproto":
        names = _NFPROTO
    elif key in {"meta protocol", "ether type"}:
        names = _ETHERTYPES
    if value in names:
        return names[value]
    try:
        return int(value, 0)
    except ValueError:
        return None


# -- what nft prints -------------------------------------------------------------------------------


def from_nft(objects: Iterable[Mapping[str, Any]], listing: str) -> Ruleset:
    """The ruleset from the objects of ``nft -j list ruleset``, with the rules' words from the ``listing`` of
    ``nft -a list ruleset``."""
    words, devices = _listed(listing)
    chains: dict[tuple[str, str, str], Chain] = {}
    rules: dict[tuple[str, str, str], list[Rule]] = {}
    sets: dict[tuple[str, str, str], Sequence[Any] | None] = {}
    for entry in objects:
        kind = next(iter(entry))
        item = entry[kind]
        if kind == "chain":
            key = (item["family"], item["table"], item["name"])
            chains[key] = Chain(
                family=key[0],
                table=key[1],
                name=key[2],
                # Address translation drops nothing.
                hook=item.get("hook", "") if item.get("type") == "filter" else "",
                priority=int(item.get("prio", 0)),
                policy=item.get("policy", "accept"),
                devices=devices.get(key, ()),
            )
            rules[key] = []
        elif kind == "rule":
            key = (item["family"], item["table"], item["chain"])
            text = words.get((*key, item["handle"]), "a rule that cannot be shown")
            rules[key].append(Rule(tuple(item["expr"]), f"{text} # handle {item['handle']}"))
        elif kind == "set":
            flags = item.get("flags", ())  # one alone is no list
            lasting = not {"timeout", "dynamic"}.intersection([flags] if isinstance(flags, str) else flags)
            sets[item["family"], item["table"], item["name"]] = item.get("elem", []) if lasting else None
    return Ruleset(
        tuple(replace(chain, rules=tuple(rules[key])) for key, chain in chains.items()),
        sets,
    )


_Listing = tuple[dict[tuple[str, str, str, int], str], dict[tuple[str, str, str], tuple[str, ...]]]


def _listed(listing: str) -> _Listing:
    """The rules in words by their place and handle, and the devices of base chains, for which `nft -j` has no
    name before 1.0.7."""
    words: dict[tuple[str, str, str, int], str] = {}
    devices: dict[tuple[str, str, str], tuple[str, ...]] = {}
    family = table = chain = ""
    for line in listing.splitlines():
        text, _, handle = line.strip().partition(" # handle ")
        match text.split():
            case ["table", family, table, "{"]:
                pass
            case ["chain", chain, "{"]:
                pass
            case ["type", _, "hook", *rest]:
                named = " ".join(rest).partition("device")[2].partition(" priority")[0]
                devices[family, table, chain] = tuple(
                    named.removeprefix("s").strip("= {}").replace('"', "").replace(",", " ").split()
                )
            case _ if handle.isdigit():
                words[family, table, chain, int(handle)] = text
    return words, devices


def foreign_tables(objects: Iterable[Mapping[str, Any]]) -> set[tuple[str, str]]:
    """The tables, by family and name, with statements of iptables that `nft` cannot say in its own words."""
    return {
        (entry["rule"]["family"], entry["rule"]["table"])
        for entry in objects
        if "rule" in entry and any("xt" in statement for statement in entry["rule"]["expr"])
    }


# -- what iptables-save prints ---------------------------------------------------------------------

_HOOKS: Final = {
    "PREROUTING": "prerouting",
    "INPUT": "input",
    "FORWARD": "forward",
    "OUTPUT": "output",
    "POSTROUTING": "postrouting",
}
_PRIORITIES: Final = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}
_TARGETS: Final = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "reject", "RETURN": "return"}
_GO_ON: Final = frozenset({"LOG", "NFLOG", "MARK", "CONNMARK", "CT", "NOTRACK", "TCPMSS", "SET", "TRACE"})
# Options with the field that they look at.
_FIELDS: Final = {
    "-i": "meta iifname",
    "-o": "meta oifname",
    "-s": "saddr",
    "-d": "daddr",
    "-p": "meta l4proto",
    "--icmpv6-type": "icmpv6 type",
    "--icmp-type": "icmp type",
    "--ctstate": "ct state",
    "--state": "ct state",
    "--hl-eq": "ip6 hoplimit",
}
_EXTENSIONS: Final = frozenset({"dst", "frag", "hbh", "mh", "rt"})
_SILENT: Final = frozenset(
    {"conntrack", "state", "icmp6", "icmp", "tcp", "udp", "comment", "hl", "limit", "rpfilter"}
)


def from_save(family: str, tool: str, text: str) -> tuple[Chain, ...]:
    """The chains in what ``iptables-save`` prints, for `family` "ip" or "ip6"; `tool` is the command that
    changes them.  Tables of address translation are left out: they drop nothing."""
    table = ""
    policies: dict[tuple[str, str], str] = {}
    rules: dict[tuple[str, str], list[Rule]] = {}
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            name, policy = line[1:].split()[:2]
            policies[table, name] = policy
            rules[table, name] = []
        elif line.startswith("-A "):
            words = shlex.split(line)
            rules[table, words[1]].append(Rule(tuple(_statements(family, words[2:])), line))
    return tuple(
        Chain(
            family=family,
            table=table,
            name=name,
            hook=_HOOKS.get(name, "") if policy != "-" else "",
            priority=_PRIORITIES.get(table, 0),
            policy="drop" if policy == "DROP" else "accept",
            rules=tuple(rules[table, name]),
            tool=tool,
        )
        for (table, name), policy in policies.items()
        if table != "nat"
    )


def _statements(family: str, words: list[str]) -> Iterable[Mapping[str, Any]]:
    """The options of a rule as nft would say them; what has no such form is an ``xt`` match."""
    at, negated = 0, False
    while at < len(words):
        word = words[at]
        value = words[at + 1] if at + 1 < len(words) else ""
        at += 2
        match word:
            case "!":
                negated = True
                at -= 1
                continue
            case "-m":
                if value == "rpfilter":
                    yield _rpfilter(words)
                elif value in _EXTENSIONS:
                    yield {"match": {"op": "==", "left": {"exthdr": {"name": value}}, "right": True}}
                elif value not in _SILENT:
                    yield {"xt": {"type": "match", "name": value}}
            case "-j" if value in _TARGETS:
                yield {_TARGETS[value]: None}
            case "-j" | "-g":
                if value not in _GO_ON:
                    target = {"target": value}
                    yield (
                        {"xt": {"type": "target"}}
                        if value.isupper() and _is_extension(value)
                        else ({"jump": target} if word == "-j" else {"goto": target})
                    )
                break  # what follows are the target's own options
            case _ if word in _FIELDS:
                yield _field(family, _FIELDS[word], value, negated=negated)
            case "--comment" | "--limit" | "--limit-burst" | "--reject-with":
                pass
            case "--invert" | "--loose" | "--validmark" | "--accept-local":
                at -= 1
            case _:
                yield {"xt": {"type": "match", "name": word}}
                if value.startswith("-") or value == "!":
                    at -= 1
        negated = False


def _is_extension(name: str) -> bool:
    """Whether a target that is no chain of the user's is one of those that may end a packet's way."""
    return name in {"QUEUE", "NFQUEUE", "TPROXY", "SYNPROXY", "TARPIT", "TEE", "DNAT", "SNAT", "MASQUERADE"}


def _rpfilter(words: list[str]) -> Mapping[str, Any]:
    flags = ["saddr"] if "--loose" in words else ["saddr", "iif"]
    left = {"fib": {"result": "oif", "flags": flags}}
    return {"match": {"op": "==", "left": left, "right": "--invert" not in words}}


def _field(family: str, field_name: str, value: str, *, negated: bool) -> Mapping[str, Any]:
    right: Any = value
    if field_name in {"saddr", "daddr"}:
        left: Mapping[str, Any] = {"payload": {"protocol": family, "field": field_name}}
    else:
        layer, name = field_name.split()
        if layer == "meta":
            left = {"meta": {"key": name}}
            if name.endswith("ifname") and value.endswith("+"):
                right = f"{value[:-1]}*"
        elif layer == "ct":
            left = {"ct": {"key": name}}
            right = [state.lower() for state in value.split(",")]
        else:
            left = {"payload": {"protocol": layer, "field": name}}
            right = value.partition("/")[0]
    return {"match": {"op": "!=" if negated else "==", "left": left, "right": right}}

"""Checked data to the frozen Config, and the rules between fields.

What the schema cannot say is decided here: what a prefix, a pattern, a duration, an interface name is; which
rules tie; who claims an interface; how defaults and groups merge; and what is refused because it is still to
come.  A combination is an error only where it is certain that it cannot work; what merely looks wrong is a
warning.
"""

from __future__ import annotations

import re
from collections import defaultdict
from enum import StrEnum
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, NamedTuple, TypeVar

from portier.config.nodes import Mapping, Node, Path, Sequence, problem_at
from portier.core.model import (
    Advertisement,
    Announce,
    Answer,
    Config,
    Group,
    HostPattern,
    Limits,
    Live,
    LoopProtection,
    Mode,
    Multicast,
    Network,
    RouterAdvertisements,
    Routes,
    Rule,
    Scope,
    Source,
    Switch,
    Sysctls,
    Timers,
)
from portier.errors import Problem

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|min|h)", re.ASCII)
_UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}
_LONGEST = 720 * 3600.0  # a month; longer is a slip of the pen
_SHORTEST = {"reachable": 0.01, "retransmit": 0.01, "forget": 0.01}  # of the others: 0

_NAME = re.compile(r"(?!\.{1,2}\Z)[^/\s]{1,15}")  # what may name an interface
_GLOB = re.compile(r"[^/\s]{1,255}")  # may be longer than any name that it matches
_GROUP = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)

NO_HOSTS = (
    (IPv6Network("fe80::/10"), "link-local addresses belong to one link, and are never proxied"),
    (IPv6Network("ff00::/8"), "multicast addresses are never proxied"),
    (IPv6Network("::1/128"), "the loopback address is no host's on a link"),
    (IPv6Network("::/128"), "the unspecified address is no host's"),
    (IPv4Network("169.254.0.0/16"), "link-local addresses belong to one link, and are never proxied"),
    (IPv4Network("224.0.0.0/4"), "multicast addresses are never proxied"),
    (IPv4Network("127.0.0.0/8"), "loopback addresses are no host's on a link"),
    (IPv4Network("0.0.0.0/8"), "addresses that begin with 0 are no host's"),
    (IPv4Network("240.0.0.0/4"), "reserved and broadcast addresses are no host's"),
)

# What means nothing in a mode, and why.
_OTHER_MODE = {
    Mode.RELAY: {
        "prefixes": "its ports are one link, and everything IPv6 is relayed between them",
        "answer": "solicitations are relayed, and their targets answer for themselves",
        "isolate": "its ports are one link, whose hosts all see each other",
        "scope": "the kernel routes nothing between its ports",
        "announce": "hosts announce themselves, and that is relayed",
        "advertisement": "Portier makes no advertisements there, it relays those of the hosts",
    },
    Mode.ROUTE: {
        "loop_protection": "what the kernel routes cannot loop so",
        "hold_down": "no port is ever held down",
    },
}
_HARMLESS = {
    "answer": (Answer.RESOLVE,),
    "isolate": (False,),
    "scope": (Scope.HOST,),
    "announce": (False,),
}  # ask for what is so anyway
_IPV4_IN_RELAY = (
    "IPv4 is not relayed in mode relay (RFC 4389 is for IPv6 alone): by ARP it is proxied in mode route"
)


class At(NamedTuple):
    """A value together with where it came from."""

    path: Path
    node: Node
    data: Any

    def fields(self) -> Fields:
        """The values of a mapping that are fit for use."""
        if not isinstance(self.node, Mapping) or not isinstance(self.data, dict):
            return {}
        entries = self.node.entries
        return {key: At((*self.path, key), entries[key].node, data) for key, data in self.data.items()}

    def items(self) -> list[At]:
        """The values of a list that are fit for use; a single value is a list of one."""
        if not isinstance(self.node, Sequence):
            return [self]
        nodes, path = self.node.items, self.path
        return [At((*path, i), nodes[i], data) for i, data in enumerate(self.data) if data is not None]


def within(prefix: Network, other: Network) -> bool:
    """Whether all of a prefix is in the other."""
    return (
        prefix.version == other.version
        and prefix.prefixlen >= other.prefixlen
        and prefix.network_address in other
    )


Fields = dict[str, At]
_Choice = TypeVar("_Choice", bound=StrEnum)


def build(root: Mapping, data: dict[str, Any], problems: list[Problem]) -> tuple[Config, list[Problem]]:
    """The configuration, and warnings about it.  ``problems`` holds what was found so far and is added
    to; the configuration may be used only if it is empty at the end."""
    builder = _Builder(problems)
    whole = At((), root, data)
    top = whole.fields()
    nothing = At((), root, {})
    defaults, groups, control, log, metrics = (
        top.get(key, nothing).fields() for key in ("defaults", "groups", "control", "log", "metrics")
    )
    builder.settings(defaults, {})  # so that a mistake is found even where no group uses it
    built = tuple(builder.group(name, at, defaults) for name, at in groups.items())
    if len(modes := {group.mode for group in built}) == 1:
        builder.check_mode(defaults, *modes)
    if not groups:
        builder.warn(whole, "no groups: nothing is proxied")
    if "listen" in metrics and metrics["listen"].data is not None:
        builder.check_listen(metrics["listen"])
    given = {
        "watch": top.get("watch"),
        "control_group": control.get("group"),
        "log_level": log.get("level"),
        "log_format": log.get("format"),
        "metrics_listen": metrics.get("listen"),
    }
    config = Config(
        groups=built,
        sysctls=_choice(top, "sysctls", Sysctls.MANAGE),
        **{key: at.data for key, at in given.items() if at is not None},
    )
    return config, builder.warnings


def _choice(fields: Fields, key: str, default: _Choice) -> _Choice:
    """The value of an enumeration, which YAML may have made a boolean of."""
    if key not in fields:
        return default
    data, kind = fields[key].data, type(default)
    if isinstance(data, bool):
        words = ("false", "true") if kind is Announce else ("off", "on")
        data = words[data]
    return kind(data)


def _merged(key: str, defaults: Fields, own: Fields) -> Fields:
    """The fields of a map that defaults and group may both give; a value that is no map replaces all."""
    fields: Fields = {}
    for at in (source[key] for source in (defaults, own) if key in source):
        fields = fields | at.fields() if isinstance(at.data, dict) else {}
    return fields


class _Builder:
    """What is found on the way: problems, warnings, and who claims which interface."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        self.warnings: list[Problem] = []
        self.claims: dict[str, tuple[str, At]] = {}
        self.tables: dict[int, tuple[str, bool]] = {}  # -> the first group with it, and whether it shares it
        found = (re.match(r"groups\.([A-Za-z0-9_-]+)", problem.path) for problem in problems)
        self.misshapen = {match[1] for match in found if match}

    def fail(self, at: At, message: str) -> None:
        self.problems.append(problem_at(at.node.place, at.path, message))

    def warn(self, at: At, message: str) -> None:
        self.warnings.append(problem_at(at.node.place, at.path, message))

    def check_listen(self, at: At) -> None:
        """See to it that a program can listen there.  Whether it may, only trying tells."""
        host, _, port = at.data.rpartition(":")
        try:
            address = ip_address(host.strip("[]"))
        except ValueError:
            self.fail(at, f"{host} is not an address")
            return
        if address.is_multicast:
            self.fail(at, f"{host} is a multicast address: nothing can be asked there")
        elif address.version == 6 and address.is_link_local:
            self.fail(at, f"{host} is link-local: name an address that is the same on every interface")
        if not 0 < int(port) < 65536:
            self.fail(at, f"{port} is no port: it is from 1 to 65535")

    # -- groups ----------------------------------------------------------------------------------

    def group(self, name: str, at: At, defaults: Fields) -> Group:
        """One group.  What relates its fields to each other and to other groups is judged only where
        the fields themselves are in order, or one mistake would be told twice."""
        own = at.fields()
        before = len(self.problems)
        if not _GROUP.fullmatch(name):
            self.fail(at, "not a name for a group: it may have letters, digits, _ and - only")
        upstream = self.upstream(own["upstream"]) if "upstream" in own else {}
        downstream = self.patterns(own["downstream"]) if "downstream" in own else {}
        settings = self.settings(defaults, own)
        answer = _choice(defaults | own, "answer", Answer.RESOLVE)
        rules = [(Rule(prefix=Live.UPSTREAM, answer=answer), at)]
        if answer is Answer.KERNEL and "prefixes" not in own:
            self.check_kernel((defaults | own)["answer"], Live.UPSTREAM, {})
        self.check_mode(own, settings["mode"])
        if settings["mode"] is Mode.RELAY:
            rules = []
        elif "prefixes" in own:
            made = ((self.rule(item, answer), item) for item in own["prefixes"].items())
            rules = [(rule, item) for rule, item in made if rule is not None]
        if len(self.problems) == before and name not in self.misshapen:
            self.check_ties(rules)
            self.check_table(name, at, own, settings)
            self.check_ports(name, upstream, downstream)
            self.look(at, own, upstream, downstream, rules)
            if (settings["mode"], settings["router_advertisements"]) == (
                Mode.ROUTE,
                RouterAdvertisements.RELAY,
            ):
                self.look_at_routers(
                    own.get("router_advertisements", at), upstream, rules, settings["advertisement"]
                )
            if settings["mode"] is Mode.RELAY:
                self.look_at_relay(at, upstream, downstream, settings["loop_protection"])
        return Group(
            name=name,
            upstream=tuple(upstream),
            downstream=tuple(downstream),
            rules=tuple(rule for rule, _ in rules),
            isolate="isolate" in (defaults | own) and (defaults | own)["isolate"].data,
            **settings,
        )

    def settings(self, defaults: Fields, own: Fields) -> dict[str, Any]:
        """What defaults may hold too, as arguments of Group."""
        fields = defaults | own
        mode = _choice(fields, "mode", Mode.ROUTE)
        advertisements = _choice(fields, "router_advertisements", RouterAdvertisements.OFF)
        if mode is Mode.RELAY:
            advertisements = RouterAdvertisements.RELAY
        announce = Announce.OFF if mode is Mode.RELAY else _choice(fields, "announce", Announce.ON)
        routes = _merged("routes", defaults, own)
        scope = Scope.HOST if mode is Mode.RELAY else _choice(fields, "scope", Scope.HOST)
        if scope is Scope.GROUP and "routes" in fields and fields["routes"].data is False:
            self.fail(
                fields["scope"], "scope: group routes by the routes of hosts, and routes: false makes none"
            )
        return {
            "mode": mode,
            "router_advertisements": advertisements,
            "routes": None
            if "routes" in fields and fields["routes"].data is False
            else Routes(**{key: at.data for key, at in routes.items()}),
            "announce": announce,
            "multicast": _choice(fields, "multicast", Multicast.GROUPS),
            "scope": scope,
            "loop_protection": _choice(fields, "loop_protection", LoopProtection.STRICT),
            "advertisement": self.advertisement(_merged("advertisement", defaults, own)),
            "limits": Limits(**{key: at.data for key, at in _merged("limits", defaults, own).items()}),
            "timers": self.timers(_merged("timers", defaults, own)),
        }

    def check_table(self, name: str, at: At, own: Fields, settings: dict[str, Any]) -> None:
        """A table that is a group's own is no other's."""
        routes = settings["routes"]
        if routes is None or routes.table == Routes().table:
            return
        alone = settings["scope"] is Scope.GROUP
        owner, shared = self.tables.setdefault(routes.table, (name, not alone))
        if owner != name and (alone or not shared):
            place = own.get("routes", own.get("scope", at))
            self.fail(
                place, f"with scope: group a table is one group's, and {owner} has {routes.table} already"
            )

    def check_mode(self, fields: Fields, mode: Mode) -> None:
        """Tell what means nothing in a mode.  In mode relay that is an error, for what it asks for is a
        narrower policy than the group would have."""
        for key, why in _OTHER_MODE[mode].items():
            at = fields.get(key) or (fields["timers"].fields().get(key) if "timers" in fields else None)
            if at is None or at.data in _HARMLESS.get(key, ()):
                continue
            if mode is Mode.ROUTE:
                self.warn(at, f"{key} means nothing in mode route: {why}")
                continue
            items = at.items() if key == "prefixes" else []
            four = [item for item in items if self.is_ipv4(item)]
            for item in four:
                self.fail(item, _IPV4_IN_RELAY)
            if not items or len(four) < len(items):
                self.fail(at, f"{key} means nothing in mode relay: {why}; remove it, or use mode: route")
        given = fields.get("router_advertisements")
        if mode is Mode.RELAY and given and given.data in {"off", False}:
            self.fail(given, "mode relay always relays Router Advertisements: remove it, or use mode: route")

    def is_ipv4(self, at: At) -> bool:
        """Whether an entry of ``prefixes`` is about IPv4, going by its text alone."""
        fields = at.fields() if isinstance(at.data, dict) else {"allow": at}
        given = fields.get("allow", fields.get("deny"))
        text = given.data if given else ""
        return text == Live.UPSTREAM_IPV4 or ("." in text and ":" not in text)

    def advertisement(self, fields: Fields) -> Advertisement:
        link_layer = None
        if "link_layer" in fields:
            at = fields["link_layer"]
            link_layer = bytes(int(part, 16) for part in re.split("[:-]", at.data.strip()))
            if link_layer[0] & 1 or not any(link_layer):
                self.fail(at, f"{at.data} is no host's: it must be a unicast address")
        return Advertisement(
            router=_choice(fields, "router", Switch.AUTO),
            override=_choice(fields, "override", Switch.AUTO),
            source=_choice(fields, "source", Source.LINK_LOCAL),
            link_layer=link_layer,
        )

    def timers(self, fields: Fields) -> Timers:
        values: dict[str, Any] = {}
        for key, at in fields.items():
            values[key] = at.data if key == "retries" else self.duration(at, _SHORTEST.get(key, 0.0))
        return Timers(**values)

    def duration(self, at: At, shortest: float) -> float:
        found = _DURATION.fullmatch(at.data)
        seconds = float(found[1]) * _UNITS[found[2]] if found else -1.0
        if not shortest <= seconds <= _LONGEST:
            self.fail(at, f"must be from {shortest * 1000:.0f}ms to {_LONGEST / 3600:.0f}h")
        return seconds

    # -- interfaces ------------------------------------------------------------------------------

    def upstream(self, at: At) -> Fields:
        """The candidates, each with its place."""
        names: Fields = {}
        for item in at.items():
            text = item.data
            if text.startswith("!") or any(char in text for char in "*?["):
                self.fail(
                    item, f'"{text}" is a pattern: candidates for the upstream are names, tried in order'
                )
            elif self.interface(item, text):
                names.setdefault(text, item)
        return names

    def patterns(self, at: At) -> Fields:
        """Names, globs and exclusions, each with its place."""
        patterns: Fields = {}
        for item in at.items():
            if self.interface(item, item.data.removeprefix("!")):
                patterns.setdefault(item.data, item)
        if patterns and all(text.startswith("!") for text in patterns):
            self.fail(at, 'nothing but exclusions, so nothing matches: say what should match too, like "*"')
        return patterns

    def interface(self, at: At, text: str) -> bool:
        if any(char in text for char in "*?["):
            if not _GLOB.fullmatch(text):
                self.fail(at, f'"{text}" matches no name: those have no slash and no space')
                return False
        elif not _NAME.fullmatch(text):
            message = "those have 1 to 15 characters, no slash and no space"
            self.fail(at, f'"{text}" is not the name of an interface: {message}')
            return False
        elif text == "lo" and not at.data.startswith("!"):
            self.fail(at, "lo is no link: nothing can be proxied to or from it")
            return False
        return True

    def check_ports(self, name: str, upstream: Fields, downstream: Fields) -> None:
        """An interface belongs to one group, in one place; judged by names, because what a glob matches
        is known only at run time."""
        out = {text[1:] for text in downstream if text.startswith("!")}
        names = {
            text: at
            for text, at in downstream.items()
            if not any(char in text for char in "!*?[") and not any(fnmatchcase(text, glob) for glob in out)
        }
        for text in upstream.keys() & names.keys():
            self.fail(names[text], f"{text} is the upstream of this group: it cannot be a downstream too")
        for text, at in (upstream | names).items():
            owner, place = self.claims.setdefault(text, (name, at))
            if owner != name:
                where = place.node.place
                self.fail(at, f"{text} belongs to the group {owner} already ({where.file}:{where.line})")

    # -- rules -----------------------------------------------------------------------------------

    def rule(self, at: At, answer: Answer) -> Rule | None:
        """One entry of ``prefixes``; None where it was found wrong."""
        before = len(self.problems)
        fields = at.fields() if isinstance(at.data, dict) else {"allow": at}
        allow = "allow" in fields
        given = fields.get("allow", fields.get("deny"))
        prefix = self.prefix(given) if given is not None else None
        if prefix is None or given is None:
            return None
        for never, why in NO_HOSTS:
            if allow and not isinstance(prefix, Live) and within(prefix, never):
                self.fail(given, why)
        if "answer" in fields:
            answer = _choice(fields, "answer", answer)
        if allow and answer is Answer.KERNEL:
            self.check_kernel(fields.get("answer", given), prefix, fields)
        if allow and answer is Answer.ALWAYS and prefix == IPv4Network("0.0.0.0/0"):
            self.fail(given, "answer: always would take every IPv4 address: name the prefixes that are meant")
        host = self.host(fields["host"], prefix) if "host" in fields else None
        downstream = self.patterns(fields["downstream"]) if "downstream" in fields else {}
        askers = self.askers(fields["askers"], prefix) if "askers" in fields else ()
        if len(self.problems) > before:
            return None
        return Rule(
            prefix=prefix, allow=allow, answer=answer, host=host, downstream=tuple(downstream), askers=askers
        )

    def check_kernel(self, at: At, prefix: Network | Live, fields: Fields) -> None:
        """The kernel's own answers are for single addresses, for everybody."""
        if isinstance(prefix, Live) or prefix.prefixlen != prefix.max_prefixlen:
            self.fail(
                at,
                f"answer: kernel is for single addresses, and {prefix} is none: name its addresses one by "
                "one, or let Portier answer for it (resolve, always or routed)",
            )
            return
        if prefix.version == 4 and "downstream" not in fields:
            self.fail(
                at,
                f"answer: kernel for {prefix.network_address} needs downstream: the kernel answers ARP only "
                "for what it routes by another interface",
            )
        for key in fields.keys() & {"host", "askers"}:
            self.fail(fields[key], f"{key} means nothing with answer: kernel, which answers everybody")

    def prefix(self, at: At) -> Network | Live | None:
        if at.data in ("upstream", "upstream-ipv4"):
            return Live(at.data)
        return self.network(at)

    def network(self, at: At) -> Network | None:
        """A prefix, or an address, which is the prefix of full length."""
        text = at.data
        network_type, address_type = (IPv6Network, IPv6Address) if ":" in text else (IPv4Network, IPv4Address)
        address, slash, _ = text.partition("/")
        try:
            network: Network = network_type(text, strict=False)
        except ValueError:
            try:
                full = address_type(address).max_prefixlen
                self.fail(at, f"the length of {text} must be from 0 to {full}")
            except ValueError as error:
                self.fail(at, f'"{address}" is not an address: {error}')
            return None
        if slash and int(network.network_address) != int(address_type(address)):
            full = network.max_prefixlen
            self.fail(
                at, f"{text} has bits set beyond its length: did you mean {network} or {address}/{full}?"
            )
            return None
        return network

    def host(self, at: At, prefix: Network | Live) -> HostPattern | None:
        """``value/mask``; the mask is an address or a number of leading bits."""
        four = isinstance(prefix, IPv4Network) or prefix is Live.UPSTREAM_IPV4
        address_type, bits = (IPv4Address, 32) if four else (IPv6Address, 128)
        value_text, _, mask_text = at.data.partition("/")
        try:
            value = int(address_type(value_text))
            if not mask_text.isdecimal():
                mask = int(address_type(mask_text))
            else:
                ones = int(mask_text)
                mask = ((1 << ones) - 1) << (bits - ones) if ones <= bits else 0
        except ValueError as error:
            self.fail(at, f'"{at.data}" is no pattern value/mask on IPv{4 if four else 6} addresses: {error}')
            return None
        if not mask:
            self.fail(
                at, f"the mask must be an address that is not zero, or a number of bits from 1 to {bits}"
            )
            return None
        if not isinstance(prefix, Live):
            fixed = int(prefix.netmask) & mask
            if (value ^ int(prefix.network_address)) & fixed:
                self.fail(at, f"the pattern matches no address in {prefix}")
                return None
        return HostPattern(value & mask, mask)

    def askers(self, at: At, prefix: Network | Live) -> tuple[Network, ...]:
        version = 4 if isinstance(prefix, IPv4Network) or prefix is Live.UPSTREAM_IPV4 else 6
        networks = []
        for item in at.items():
            network = self.network(item)
            if network is not None and network.version != version:
                self.fail(item, f"{network} asks for no IPv{version} address")
            elif network is not None:
                networks.append(network)
        return tuple(networks)

    def check_ties(self, rules: list[tuple[Rule, At]]) -> None:
        """Two rules tie where prefix and number of mask bits are equal and an address matches both.
        Patterns of one mask tie only when equal, so masks are compared, not rules, pair by pair."""
        alike: dict[tuple[Network | Live, int], dict[int, dict[int, At]]] = defaultdict(dict)
        for rule, at in rules:
            value, mask = rule.host or (0, 0)
            masks = alike[rule.prefix, mask.bit_count()]
            tie = masks.get(mask, {}).get(value)
            for other, values in masks.items():
                if tie is not None or other == mask:
                    continue
                common = mask & other
                tie = next((found for seen, found in values.items() if not (seen ^ value) & common), None)
            if tie is None:
                masks.setdefault(mask, {})[value] = at
                continue
            place = tie.node.place
            message = (
                f"ties with the rule in {place.file}:{place.line}: same prefix, same number of mask bits"
            )
            self.fail(at, message)

    # -- what looks wrong ------------------------------------------------------------------------

    def look_at_relay(self, at: At, upstream: Fields, downstream: Fields, protection: LoopProtection) -> None:
        """Warn where there is nothing to relay to, and where every router would be taken for one that should
        not be there."""
        names = [text for text in downstream if not text.startswith("!")]
        if len(names) + bool(upstream) < 2 and not any(char in text for text in names for char in "*?["):
            self.warn(at, "mode relay with a single port: nothing is relayed")
        if downstream and not upstream and protection is not LoopProtection.OFF:
            self.warn(
                at,
                "mode relay without an upstream: a Router Advertisement that comes in by any port is one too "
                "many, and loop_protection acts on it; name the port towards the router as upstream",
            )

    def look_at_routers(
        self, at: At, upstream: Fields, rules: list[tuple[Rule, At]], advertisement: Advertisement
    ) -> None:
        """Warn of Router Advertisements that are relayed in vain."""
        prefixes = [rule.prefix for rule, _ in rules if rule.allow]
        if not upstream:
            self.warn(at, "router_advertisements: relay does nothing here: the group has no upstream")
        elif not any(
            prefix is Live.UPSTREAM if isinstance(prefix, Live) else prefix.version == 6
            for prefix in prefixes
        ):
            self.warn(at, "no rule allows IPv6: the addresses that hosts make themselves are not proxied")
        if advertisement.router is Switch.OFF:
            self.warn(at, "advertisement.router: off says that the router is none: hosts give it up")

    def look(
        self, at: At, own: Fields, upstream: Fields, downstream: Fields, rules: list[tuple[Rule, At]]
    ) -> None:
        """Warn of what can be meant but probably is not."""
        excluded = [text[1:] for text in downstream if text.startswith("!")]
        wanted = {text: place for text, place in downstream.items() if not text.startswith("!")}
        if not upstream and not downstream:
            self.warn(at, "neither upstream nor downstream: nothing is proxied")
        if not rules and "prefixes" in own:
            self.warn(own["prefixes"], "no prefixes: nothing is proxied; left out, it means [upstream]")
        for rule, place in rules:
            if isinstance(rule.prefix, Live) and not upstream:
                self.warn(place, f"{rule.prefix} stands for nothing here: the group has no upstream")
            for text in rule.downstream:
                if any(char in text for char in "!*?["):
                    continue
                if not any(fnmatchcase(text, glob) for glob in wanted):
                    self.warn(place, f"{text} is no downstream of this group: the rule allows nothing there")
        for name in upstream:
            if any(fnmatchcase(name, glob) for glob in excluded):
                continue
            for glob, place in wanted.items():
                if fnmatchcase(name, glob):
                    self.warn(
                        place, f'{glob} matches the upstream {name} too, which stays upstream: add "!{name}"'
                    )

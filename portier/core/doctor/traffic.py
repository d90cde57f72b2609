"""Checks of what the daemon has seen on the wire since it began."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

from portier.core.doctor.facts import Facts, Refusal, Setup, known, running
from portier.core.doctor.finding import Check, Finding, problem, warning
from portier.core.model import Bound, Live, Mode, Role
from portier.core.outcome import Verdict

PATIENCE: Final = 300.0  # seconds after which somebody should have asked for something
_UNANSWERED: Final = 2  # MAX_MULTICAST_SOLICIT (RFC 4861 section 10), less the first
# How much of an address must be as in a rule's prefix for a question to be about the author's own addresses.
_NEAR: Final = {6: 48, 4: 24}
_SHOWN: Final = 3

_LIMITS: Final = {
    Verdict.PENDING_FULL: "pending",
    Verdict.PORT_LIMIT: "resolutions",
    Verdict.SOURCE_LIMIT: "per_source",
    Verdict.ROUTE_LIMIT: "route_changes",
}
_INVALID: Final = tuple(
    verdict
    for verdict in Verdict
    if Verdict.TRUNCATED <= verdict <= Verdict.BAD_LINK_LAYER and verdict is not Verdict.NOT_ND
)


def _refused_targets(facts: Facts) -> Iterator[Finding]:
    """What somebody asks for in vain.  On a link of many that may be others', and they answer:
    so it must have asked again at once, and the address must be like ours."""
    bounds = known(facts.setup).bounds
    for group, work in running(facts).work.items():
        bound = bounds.get(group)
        if bound is None:
            continue
        for refused in work.refused:
            if refused.again < _UNANSWERED or not _near(refused, bound):
                continue
            target = ip_address(refused.target)
            if refused.verdict == Verdict.ASKER_REFUSED.label:
                why = "the rule for it has `askers` that do not include it"
                remedy = f"add {refused.asker} to `askers`"
            elif refused.verdict == Verdict.NO_RULE.label:
                why, remedy = (
                    "no rule allows it",
                    f"add `{_suggested(target)}` to the prefixes of group {group}",
                )
            else:
                continue  # that is what the rule is for
            yield warning(
                f"group {group}",
                f"{refused.asker} on {refused.port} asks for {target} again and again, and {why}",
                f"asked {refused.again + 1} times or more, by {refused.mac}",
                remedy,
            )


def _suggested(target: IPv4Address | IPv6Address) -> str:
    return str(ip_network((target, 64), strict=False)) if target.version == 6 else f"{target}/32"


def _near(refused: Refusal, bound: Bound) -> bool:
    """Whether a target is like the addresses that the group is for."""
    target = ip_address(refused.target)
    own = [rule.prefix for rule in bound.group.rules if rule.allow and not isinstance(rule.prefix, Live)]
    for network in (*own, *bound.live):
        if network.version == target.version:
            length = min(network.prefixlen, _NEAR[target.version])
            if target in ip_network((network.network_address.packed, length), strict=False):
                return True
    return False


def _nobody_asks(facts: Facts) -> Iterator[Finding]:
    """A provider that routes a prefix to this machine asks for no address in it."""
    daemon = running(facts)
    for bound in known(facts.setup).bounds.values():
        work = daemon.work.get(bound.group.name)
        upstream = next((port for port in bound.ports if port.role is Role.UPSTREAM), None)
        if work is None or upstream is None or bound.group.mode is not Mode.ROUTE:
            continue
        versions = {rule.version for rule in bound.group.rules if rule.allow}
        silent = sorted(versions - set(work.asked.get(upstream.name, ())), reverse=True)
        if not silent or daemon.uptime < PATIENCE:
            continue
        said = " or ".join(f"IPv{version}" for version in silent)
        yield warning(
            upstream.name,
            f"nobody has asked there for any {said} address that group {bound.group.name} allows: either "
            "nobody wants one, or the provider routes the prefix to this machine (then no proxy is needed: "
            "give the prefix to the hosts' link), or something keeps the questions back",
            f"none in {daemon.uptime / 60:.0f} minutes",
            f"portier watch --packets --port {upstream.name}  # and ping a host from another network",
        )


def _rival(facts: Facts) -> Iterator[Finding]:
    """Addresses that two have: another proxy on the link, or a duplicate."""
    ups = _upstreams(known(facts.setup))
    for group, work in running(facts).work.items():
        contested: dict[tuple[str, str], list[str]] = {}
        for dispute in work.contested:
            if not dispute.mac:
                yield problem(
                    dispute.rival_port,
                    f"another node has this machine's own address {dispute.address}",
                    f"{dispute.rival_mac} says so",
                    f"give one of them another address, or unplug {dispute.rival_mac}",
                )
            elif dispute.port in ups and dispute.rival_port not in ups:
                contested.setdefault((dispute.port, dispute.mac), []).append(dispute.address)
            elif dispute.rival_port in ups and dispute.port not in ups:
                contested.setdefault((dispute.rival_port, dispute.rival_mac), []).append(dispute.address)
            else:
                yield warning(
                    f"group {group}",
                    f"two hosts have {dispute.address}",
                    f"{dispute.mac} on {dispute.port} and {dispute.rival_mac} on {dispute.rival_port}",
                    "give one of them another address",
                )
        for (port, mac), addresses in contested.items():
            more = f" and {len(addresses) - _SHOWN} more" if len(addresses) > _SHOWN else ""
            yield problem(
                port,
                f"{mac} answers there for {', '.join(addresses[:_SHOWN])}{more}, which hosts behind have: "
                "another proxy for the same prefix, or a duplicate address",
                "both were heard",
                f"stop the other proxy, or deny what {mac} has",
            )


def _upstreams(setup: Setup) -> frozenset[str]:
    return frozenset(
        port.name for bound in setup.bounds.values() for port in bound.ports if port.role is Role.UPSTREAM
    )


def _limits(facts: Facts) -> Iterator[Finding]:
    for group, work in running(facts).work.items():
        for port, counts in work.counters.items():
            for verdict, key in _LIMITS.items():
                if count := counts.get(verdict.label, 0):
                    yield warning(
                        port,
                        f"solicitations were dropped because of `limits.{key}` of group {group}",
                        f"{count} {verdict.label} since the daemon began",
                        f"portier watch --packets --port {port}",
                    )


def _invalid(facts: Facts) -> Iterator[Finding]:
    """What breaks RFC 4861 (or RFC 826) on an upstream is never answered."""
    ups = _upstreams(known(facts.setup))
    for work in running(facts).work.values():
        for port, counts in work.counters.items():
            wrong = {verdict.label: counts[verdict.label] for verdict in _INVALID if verdict.label in counts}
            if port in ups and wrong:
                yield warning(
                    port,
                    "somebody sends invalid solicitations or advertisements there, which count for nothing",
                    ", ".join(f"{count} {label}" for label, count in wrong.items()),
                    f"portier watch --packets --port {port}",
                )


CHECKS: Final = (
    Check("refused-targets", "nobody asks in vain for what no rule allows", _refused_targets),
    Check("nobody-asks", "somebody asks for what the rules allow", _nobody_asks),
    Check("rival", "nobody else has or answers for the same addresses", _rival),
    Check("limits", "nothing is dropped because of limits", _limits),
    Check("invalid", "nothing invalid is heard on an upstream", _invalid),
)

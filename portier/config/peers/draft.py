"""What a peer's configuration asks for, made into groups and written as YAML.

A peer says: on this interface, answer for these addresses, and look for them there.  Portier has groups: an
interface belongs to one, and has one place in it.  So the interfaces that a file connects make one group; the
one that is behind no other is its upstream, and what is said of several interfaces behind becomes rules with
``downstream``.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv6Address, IPv6Network
from typing import NamedTuple

from portier.config.build import NO_HOSTS, within
from portier.errors import Problem

_COLUMNS = 104  # of comments
_NAME = re.compile(r"(?!(?:\.{1,2}|lo)\Z)[A-Za-z0-9_.@-]{1,15}", re.ASCII)
_BARE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*", re.ASCII)
_SHORTEST, _LONGEST = 10, 720 * 3_600_000  # milliseconds, of the timers that are imported


class Note(NamedTuple):
    """A remark on a line of the file, 0 for the file as a whole.  A ``loud`` one is told on stderr too: the
    user should decide something; the others only say where something went."""

    line: int
    text: str
    loud: bool = True

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}" if self.line else self.text


@dataclass(slots=True, kw_only=True)
class Wish:
    """One rule of a peer: solicitations heard on ``outer`` for ``prefix`` (a network, or "upstream" for what
    is on-link there) are answered, or not, by way of ``inner``.  ``host`` is a pattern value/mask."""

    outer: str
    prefix: IPv6Network | str
    line: int
    allow: bool = True
    answer: str = "resolve"
    inner: tuple[str, ...] = ()
    host: str = ""
    notes: list[Note] = field(default_factory=list)


class Setting(NamedTuple):
    """A setting of a group, ``timers.reachable`` or ``routes``, with its value as YAML."""

    key: str
    value: str
    line: int
    said: str


@dataclass(slots=True)
class Outer:
    """An interface on which the peer listens, and what is said of it."""

    name: str
    line: int
    settings: list[Setting] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


@dataclass(slots=True)
class Draft:
    """All of a peer's file.  ``head`` are settings for the whole file: key, value, line and words."""

    outers: dict[str, Outer] = field(default_factory=dict)
    wishes: list[Wish] = field(default_factory=list)
    defaults: list[Setting] = field(default_factory=list)
    head: list[Setting] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    def outer(self, name: str, line: int) -> Outer:
        """The interface of that name, new where it is not known yet."""
        return self.outers.setdefault(name, Outer(name, line))


class Imported(NamedTuple):
    """The configuration as YAML, and the remarks that the user should read."""

    text: str
    remarks: tuple[Problem, ...]


@dataclass(slots=True)
class _Group:
    name: str
    upstream: str
    downstream: list[str]
    rules: list[Wish]
    settings: list[Setting]
    notes: list[Note]


# -- for the readers -----------------------------------------------------------------------------------


def is_interface(name: str) -> bool:
    """Whether a group can have an interface of that name."""
    return _NAME.fullmatch(name) is not None


def unlabelled(name: str) -> tuple[str, str]:
    """The interface that the kernel takes a name for when it is asked the old way, as by all peers: without
    the label of addresses (``venet0:0``); and what to say of that, "" where there is none."""
    interface, colon, _ = name.partition(":")
    if not colon or not is_interface(interface):
        return name, ""
    return interface, f"{quoted(name)} is a label of addresses: the interface is {interface}"


def never_proxied(prefix: IPv6Network) -> str:
    """Why a prefix cannot be proxied at all; "" where it can."""
    return next((why for never, why in NO_HOSTS if within(prefix, never)), "")


def network(text: str) -> IPv6Network | None:
    """An address or a prefix, bits beyond its length cut off; None where it is neither."""
    address, slash, length = text.partition("/")
    if "." in text or "%" in text or (slash and not (length.isascii() and length.isdecimal())):
        return None
    try:
        return IPv6Network((int(IPv6Address(address)), min(int(length), 128) if slash else 128), strict=False)
    except ValueError:
        return None


def duration(milliseconds: int) -> str:
    """A duration as the configuration has it, "" where it cannot have it."""
    if not _SHORTEST <= milliseconds <= _LONGEST:
        return ""
    for unit, size in (("h", 3_600_000), ("min", 60_000), ("s", 1000)):
        if milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"


def quoted(text: str) -> str:
    """Text of the user's as it may stand in a remark: short, printable, in one line."""
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return f"`{shown[:60]}...`" if len(shown) > 60 else f"`{shown}`"


# -- groups -------------------------------------------------------------------------------------------


def _groups(draft: Draft) -> Iterator[_Group]:
    """The groups, in the order in which the file names their first interfaces."""
    home: dict[str, list[str]] = {}  # interface -> all that it is connected with
    for name in draft.outers:
        home[name] = [name]
    for wish in draft.wishes:
        for inner in wish.inner:
            one, other = home[wish.outer], home.setdefault(inner, [inner])
            if one is not other:
                one += other
                home.update(dict.fromkeys(other, one))
    names: set[str] = set()
    done: list[list[str]] = []
    for name in draft.outers:
        members = home[name]
        if not any(members is other for other in done):
            done.append(members)
            yield _group(draft, members, names)


def _group(draft: Draft, members: list[str], names: set[str]) -> _Group:
    outers = [outer for name, outer in draft.outers.items() if name in members]
    wishes = [wish for wish in draft.wishes if wish.outer in members]
    behind = dict.fromkeys(inner for wish in wishes for inner in wish.inner)
    front = [outer for outer in outers if outer.name not in behind]
    notes = [note for outer in outers for note in outer.notes]
    main = front[0] if front else outers[0]
    upstream = main.name
    if len(front) > 1:
        upstream = ""
        listed = ", ".join(outer.name for outer in front)
        notes.append(
            Note(
                front[1].line,
                f"{listed} have interfaces behind them in common, and an interface belongs to one group: "
                "this group has no upstream, and all its links are proxied to each other, asking first",
            )
        )
    downstream = [*(outer.name for outer in front if not upstream), *behind]
    downstream = [name for name in downstream if name != upstream]
    if any(wish.answer == "routed" and not wish.inner for wish in wishes):
        others = [name for name in (*draft.outers, *_inners(draft)) if name not in downstream]
        downstream += ["*", *(f"!{name}" for name in dict.fromkeys(others))]
        line = next(wish.line for wish in wishes if wish.answer == "routed" and not wish.inner)
        notes.append(
            Note(
                line,
                "the file does not say what is behind: every other interface is taken, and becomes a port "
                "of this group. Name the ones that are meant in `downstream`",
            )
        )
    elif not downstream:
        notes.append(
            Note(
                main.line,
                "the file does not say what is behind, and nothing needs it to answer. With its interface as "
                "`downstream`, Portier sees the hosts there and makes their host routes; and with `answer: "
                "resolve` only hosts that exist are answered for",
                loud=False,
            )
        )
    settings = _settings(main, outers, notes)
    name = re.sub(r"[^A-Za-z0-9_-]", "-", main.name)
    while name in names:
        name += "-"
    names.add(name)
    if not wishes:
        notes.append(Note(main.line, "no rule is left: nothing is proxied here"))
    return _Group(name, upstream, downstream, _merged(wishes, upstream), settings, notes)


def _inners(draft: Draft) -> Iterator[str]:
    return (inner for wish in draft.wishes for inner in wish.inner)


def _settings(main: Outer, outers: Iterable[Outer], notes: list[Note]) -> list[Setting]:
    """One value a key: the first of the group's main interface, else the first of another."""
    found: dict[str, Setting] = {}
    for outer in (main, *(outer for outer in outers if outer is not main)):
        for setting in outer.settings:
            kept = found.setdefault(setting.key, setting)
            if kept is setting and outer is not main:
                said = f"{setting.said}: said of {outer.name} alone, and now of the whole group"
                notes.append(Note(setting.line, said))
            elif kept.value != setting.value:
                said = f"{setting.said}: left out, for the group has one {setting.key}, from line {kept.line}"
                notes.append(Note(setting.line, said))
    if "routes.table" in found and "routes" in found:  # a table says that routes are made
        del found["routes.table" if found["routes"].value == "false" else "routes"]
    return list(found.values())


def _merged(wishes: Iterable[Wish], upstream: str) -> list[Wish]:
    """One rule for each prefix and pattern.  What a peer asks on several interfaces is one rule with all of
    them; what it looks for on the upstream itself is proxied by any rule that is not tied to downstreams."""
    rules: dict[tuple[IPv6Network | str, str], Wish] = {}
    for wish in wishes:
        if upstream in wish.inner:
            wish.inner = ()
            wish.answer = "resolve"
            said = f"hosts on {upstream}, for those behind to find: proxied both ways by one rule"
            wish.notes.append(Note(wish.line, said, loud=False))
        first = rules.setdefault((wish.prefix, wish.host), wish)
        if first is wish:
            continue
        first.notes += wish.notes
        if (first.allow, first.answer) != (wish.allow, wish.answer):
            _settle(first, wish)
        elif first.inner == wish.inner:
            first.notes.append(Note(wish.line, "the same once more", loud=False))
        both = first.allow and first.inner and wish.inner
        first.inner = tuple(dict.fromkeys((*first.inner, *wish.inner))) if both else ()
    return list(rules.values())


def _settle(first: Wish, other: Wish) -> None:
    """Two rules for one prefix that say different things become one."""
    if not (first.allow and other.allow):
        first.allow, first.answer = False, "resolve"
        return
    answers = {first.answer, other.answer}
    first.answer = "always" if "always" in answers else "resolve"
    first.notes.append(
        Note(other.line, f"the same addresses as in line {first.line} in another way: {first.answer} it is")
    )


# -- YAML -----------------------------------------------------------------------------------------------


def write(draft: Draft, peer: str, file: str) -> Imported:
    """The whole, with every remark next to what it is about."""
    groups = list(_groups(draft))
    lines = [f"# Made by `portier import {peer}` from {quoted(file)[1:-1]}; `line N` is a line of that file."]
    lines += _comments(draft.notes, 0)
    lines += ["", "version: 1"]
    if draft.head:
        lines.append("")
        lines += _yaml_settings(draft.head, 0)
    if draft.defaults:
        lines += ["", "defaults:", *_yaml_settings(draft.defaults, 2)]
    lines += ["", "groups:"]
    for group in groups:
        lines += _yaml_group(group)
    notes = [*draft.notes, *(note for group in groups for note in group.notes)]
    notes += [note for group in groups for rule in group.rules for note in rule.notes]
    remarks = {Problem(file, note.line, 1, "", note.text) for note in notes if note.loud}
    return Imported("\n".join(lines) + "\n", tuple(sorted(remarks)))


def _yaml_group(group: _Group) -> Iterator[str]:
    yield f"  {group.name}:"
    yield from _comments(group.notes, 4)
    if group.upstream:
        yield f"    upstream: {_scalar(group.upstream)}"
    if group.downstream:
        yield f"    downstream: {_list(group.downstream)}"
    yield "    prefixes:" if group.rules else "    prefixes: []"
    for rule in group.rules:
        yield from _comments(rule.notes, 6)
        yield f"      - {_rule(rule, group.downstream)}  # line {rule.line}"
    yield from _yaml_settings(group.settings, 4)


def _rule(rule: Wish, downstream: list[str]) -> str:
    fields = [f'{"allow" if rule.allow else "deny"}: "{rule.prefix}"']
    if rule.host:
        fields.append(f'host: "{rule.host}"')
    if rule.allow and rule.answer != "resolve":
        fields.append(f"answer: {rule.answer}")
    if rule.inner and set(rule.inner) != set(downstream):
        fields.append(f"downstream: {_list(rule.inner) if len(rule.inner) > 1 else _scalar(rule.inner[0])}")
    return f"{{{', '.join(fields)}}}"


def _yaml_settings(settings: list[Setting], indent: int) -> Iterator[str]:
    """Settings, those of one map together."""
    margin, opened = " " * indent, ""
    for setting in sorted(settings, key=lambda setting: setting.key.partition(".")[0]):
        above, dot, key = setting.key.rpartition(".")
        if dot and above != opened:
            yield f"{margin}{above}:"
            opened = above
        yield f"{margin}{'  ' if dot else ''}{key}: {setting.value}  # line {setting.line}: {setting.said}"


def _comments(notes: Iterable[Note], indent: int) -> Iterator[str]:
    margin = " " * indent
    for note in dict.fromkeys(notes):
        yield from textwrap.wrap(
            str(note),
            _COLUMNS,
            initial_indent=f"{margin}# ",
            subsequent_indent=f"{margin}#   ",
            break_long_words=False,
            break_on_hyphens=False,
        )


def _scalar(text: str) -> str:
    return text if _BARE.fullmatch(text) else f'"{text}"'


def _list(texts: Iterable[str]) -> str:
    return f"[{', '.join(map(_scalar, texts))}]"

"""The tree that both YAML and TOML are read into, each node with its place in its file.

YAML's own idea of types is not used: a plain scalar is its source text until the schema says what may
stand there (`plain_data`), so that `no`, `0123` and `1e3` stay names where names belong.  Depth and size
are bounded, for both formats alike.  Nothing is known here of what any key means.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping as AnyMapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from portier.errors import Problem

MAX_DEPTH = 16  # the schema needs six levels
MAX_NODES = 1_000_000  # after aliases are written out; 10,000 rules make 60,000
MAX_PROBLEMS = 10_000  # nobody reads on

_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,18})", re.ASCII)
_BARE = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)

Path = tuple[str | int, ...]
Schema = AnyMapping[str, Any]


class Place(NamedTuple):
    """Where something stands: the file, its line and its column, both from 1."""

    file: str
    line: int
    column: int


@dataclass(slots=True)
class Scalar:
    """A single value.  ``quoted`` text is text; what is not quoted is what the schema makes of it,
    unless the file itself gives the type (TOML does): then ``typed`` holds the value, in a tuple."""

    place: Place
    text: str
    quoted: bool
    typed: tuple[Any] | None = None
    size: ClassVar[int] = 1


@dataclass(slots=True)
class Sequence:
    """A list.  ``size`` counts the nodes in it, aliases written out."""

    place: Place
    items: list[Node] = field(default_factory=list)
    size: int = 1


class Entry(NamedTuple):
    """The value under one key, with the place of the key."""

    place: Place
    node: Node


@dataclass(slots=True)
class Mapping:
    """Keys (always text) and values, in the order of the file."""

    place: Place
    entries: dict[str, Entry] = field(default_factory=dict)
    size: int = 1


Node = Scalar | Sequence | Mapping


def problem_at(place: Place, path: Path, message: str) -> Problem:
    """A problem with its path written out, like ``groups.guests.prefixes[1]``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _BARE.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f"[{json.dumps(part)}]"
    return Problem(*place, text, message)


def plain_data(node: Node, schema: Schema) -> Any:
    """The node as Python data, each scalar as the type that the schema allows there, if it can be one."""
    if isinstance(node, Scalar):
        return _scalar(node, schema)
    if isinstance(node, Sequence):
        items = schema.get("items", {})
        return [plain_data(item, items) for item in node.items]
    if "string" in schema.get("type", ()) and (address := _address_with_colons(node)):
        return address
    return {key: plain_data(entry.node, member(schema, key) or {}) for key, entry in node.entries.items()}


def member(schema: Schema, key: str) -> Schema | None:
    """The schema of one key of a mapping, None where the key is not allowed."""
    candidates: dict[str, Schema] = schema.get("properties", {})
    if key in candidates:
        return candidates[key]
    patterns: dict[str, Schema] = schema.get("patternProperties", {})
    return next((found for pattern, found in patterns.items() if re.search(pattern, key)), None)


def _scalar(node: Scalar, schema: Schema) -> Any:
    text = node.text
    if node.typed is not None:
        return node.typed[0]
    if node.quoted:
        return text
    choices, types = schema.get("enum", ()), schema.get("type", ())
    if text in _NULLS:
        return {} if types == "object" else None  # a section with everything in it commented out is empty
    if text in choices:
        return text
    if ("boolean" in types or False in choices) and text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    if "integer" in types and _INTEGER.fullmatch(text):
        return int(text)
    return text


def _address_with_colons(node: Mapping) -> str | None:
    """The address that YAML takes for a key with no value, as tools that read it so write it back:
    ``2001:db8:7::`` becomes ``{'2001:db8:7:': null}``.  No key of ours ends in a colon."""
    if len(node.entries) != 1:
        return None
    ((key, entry),) = node.entries.items()
    if isinstance(entry.node, Scalar) and not entry.node.quoted and entry.node.text in _NULLS:
        try:
            ipaddress.IPv6Address(f"{key}:")
        except ValueError:
            return None
        return f"{key}:"
    return None

"""The shape of the configuration: the published JSON Schema, and its errors told as a user reads them.

The schema decides which keys there are and what type each value has; rules between fields are not its
business (`build` has those).  Whatever is wrong is cut out of the data, so that the rest can still be
judged and every problem comes out at once.
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import jsonschema

from portier.config import schema as schema_text
from portier.config.nodes import (
    MAX_PROBLEMS,
    Mapping,
    Node,
    Path,
    Scalar,
    Schema,
    Sequence,
    member,
    plain_data,
    problem_at,
)
from portier.errors import Problem

_TYPES = {
    "object": "a mapping",
    "array": "a list",
    "string": "text",
    "boolean": "true or false",
    "integer": "a whole number",
    "null": "null",
}


_NOTHING: dict[str, Any] = {"not": {}}  # what the schema says of keys that other keys exclude


@functools.cache
def _validator() -> Any:
    schema = json.loads(schema_text())
    return jsonschema.Draft202012Validator(_inline(schema, schema["$defs"]))


def _inline(part: Any, defs: dict[str, Any]) -> Any:
    """The schema with every reference replaced by what it means (none is recursive), so that neither
    the walk over the nodes nor, for each of 10,000 rules, the validator has to resolve any."""
    if isinstance(part, list):
        return [_inline(item, defs) for item in part]
    if not isinstance(part, dict):
        return part
    meant = _inline(defs[part["$ref"].removeprefix("#/$defs/")], defs) if "$ref" in part else {}
    return meant | {key: _inline(value, defs) for key, value in part.items() if key not in ("$ref", "$defs")}


def check(root: Mapping) -> tuple[dict[str, Any], list[Problem]]:
    """The configuration as plain data without what is wrong in its shape (None stands for it in a
    list), and what was wrong."""
    validator = _validator()
    data = plain_data(root, validator.schema)
    problems: list[Problem] = []
    for error in list(islice(validator.iter_errors(data), MAX_PROBLEMS)):
        path: Path = tuple(error.absolute_path)
        node = _find(root, path)
        if error.validator == "additionalProperties" and isinstance(node, Mapping):
            for key in [key for key in error.instance if member(error.schema, key) is None]:
                about = _about_unknown(key, error.schema, path)
                problems.append(problem_at(node.entries[key].place, (*path, key), about))
                _cut(data, (*path, key))
        else:
            holder = _find(root, path[:-1])
            place = node.place
            if isinstance(holder, Mapping) and path and (error.instance is None or error.schema == _NOTHING):
                place = holder.entries[str(path[-1])].place  # no value to point at, or the key is not welcome
            problems.append(problem_at(place, path, _message(error, node)))
            if error.validator != "required":
                _cut(data, path)
    if len(problems) >= MAX_PROBLEMS:  # what may be left is of any shape
        return {}, problems
    return data, problems


def _cut(data: Any, path: Path) -> None:
    """Take the value at ``path`` out of the data, unless it went with something around it before."""
    *above, last = path
    for part in above:
        data = None if data is None else data.get(part) if isinstance(data, dict) else data[part]
    if isinstance(data, dict):
        data.pop(last, None)
    elif data is not None:
        data[last] = None


def _find(root: Mapping, path: Path) -> Node:
    node: Node = root
    for part in path:
        if isinstance(node, Mapping):
            node = node.entries[str(part)].node
        elif isinstance(node, Sequence):
            node = node.items[int(part)]
    return node


def _about_unknown(key: str, schema: Schema, path: Path) -> str:
    if "patternProperties" in schema:
        return "not a name for a group: it may have letters, digits, _ and - only"
    if path == ("defaults",) and key in ("upstream", "downstream", "prefixes"):
        return f"defaults cannot hold {key}: it belongs into each group"
    known = list(schema["properties"])
    close = difflib.get_close_matches(key.lower().replace("-", "_"), known, 1)
    if elsewhere := next(_below(schema, key, ()), None):
        close.append(elsewhere)
    return (
        f'unknown key; did you mean "{close[0]}"?' if close else f"unknown key; known are {', '.join(known)}"
    )


def _below(schema: Schema, key: str, names: tuple[str, ...]) -> Iterator[str]:
    """Where, further down, a key of that name has its place: ``groups.NAME.upstream``."""
    for name, inner in schema.get("properties", {}).items():
        if name == key and names:
            yield ".".join((*names, name))
        yield from _below(inner, key, (*names, name))
    for inner in schema.get("patternProperties", {}).values():
        yield from _below(inner, key, (*names, "NAME"))


def _message(error: Any, node: Node) -> str:
    schema, instance, kind = error.schema, error.instance, error.validator
    if schema == _NOTHING:
        return "a rule that denies takes no such key"
    if kind == "required":
        return 'the version is missing: add "version: 1"'
    if kind == "anyOf":
        return "a rule needs a prefix: allow or deny"
    if kind == "not":
        return "table 255 (local) is the kernel's own"
    if kind in ("minLength", "minItems"):
        return "must not be empty"
    if kind in ("minimum", "maximum"):
        return f"must be from {schema['minimum']} to {schema['maximum']}"
    if instance is None:
        return "has no value: give it one, or remove the key"
    if kind == "pattern":
        digits = instance.isdigit() and ":" in schema["title"]  # 52:54:00:12:34:56 is a number to YAML 1.1
        hint = "; digits between colons need quotes where this was written" if digits else ""
        return f'"{instance}" is not {schema["title"]}{hint}'
    hint = ""
    if isinstance(node, Scalar) and node.quoted:
        bare = plain_data(Scalar(node.place, node.text, quoted=False), schema)
        hint = "; remove the quotes" if bare != node.text else ""
    return f"must be {_wanted(schema, instance)}{hint}"


def _wanted(schema: Schema, instance: Any) -> str:
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        choices = [json.dumps(choice).strip('"') for choice in schema["enum"]]
        if "off" in choices:  # what YAML makes of on and off is taken, but not advertised
            choices = [choice for choice in choices if choice not in ("true", "false")]
        close = difflib.get_close_matches(str(instance), choices, 1)
        return f"one of {', '.join(choices)}" + (f'; did you mean "{close[0]}"?' if close else "")
    types = schema["type"]
    return str(
        schema.get("title")
        or " or ".join(_TYPES[name] for name in ([types] if isinstance(types, str) else types))
    )

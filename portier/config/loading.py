"""Files to one checked Config: the pipeline, and the merging of main file and drop-ins.

Decides what a drop-in may hold and that a group is defined once.  Every step adds to one list of problems;
only at the end is it raised, so that a user sees all of them at once.
"""

from __future__ import annotations

import collections.abc
from pathlib import Path

from portier.config import build, files, shape, tomltext, yamltext
from portier.config.nodes import Entry, Mapping, Node, Place, Scalar, problem_at
from portier.config.wire import Loaded
from portier.errors import ConfigError, Problem


def load(path: Path, replace: collections.abc.Mapping[Path, Path] | None) -> Loaded:
    """See `portier.config.load`."""
    found = files.find(path, replace)
    problems = found.problems
    root = Mapping(Place(str(found.sources[0].path), 1, 1))
    for source in found.sources:
        is_main = source is found.sources[0]
        tree = _parse(source, problems)
        if is_main and tree is not None:
            root = tree
        elif is_main:  # nothing is known of it, so nothing is missing from it
            root.entries["version"] = Entry(root.place, Scalar(root.place, "1", quoted=False))
        elif tree is not None:
            _merge(root, tree, problems)
    data, misshapen = shape.check(root)
    problems += misshapen
    config, warnings = build.build(root, data, problems)
    if problems:
        raise ConfigError(problems)
    names = tuple(source.path for source in found.sources)
    return Loaded(config, tuple(sorted(found.warnings + warnings)), names, found.digest)


def _parse(source: files.Source, problems: list[Problem]) -> Mapping | None:
    if source.text is None:
        return None
    parse = tomltext.parse if source.path.suffix == ".toml" else yamltext.parse
    start = Place(str(source.path), 1, 1)
    node, found = parse(source.text, start.file)
    problems += found
    if isinstance(node, Mapping):
        return node
    if found:
        return None
    if node is None or _is_nothing(node):
        return Mapping(start)
    problems.append(problem_at(node.place, (), "the file must be a mapping, like `version: 1`"))
    return None


def _is_nothing(node: Node) -> bool:
    return isinstance(node, Scalar) and not node.quoted and node.text in ("", "~", "null")


def _merge(root: Mapping, tree: Mapping, problems: list[Problem]) -> None:
    for key, entry in tree.entries.items():
        if key == "version":
            if not (isinstance(entry.node, Scalar) and entry.node.text == "1"):
                problems.append(problem_at(entry.node.place, (key,), "must be 1"))
        elif key != "groups":
            message = f"a drop-in holds version and groups only: {key} belongs into {root.place.file}"
            problems.append(problem_at(entry.place, (key,), message))
        elif isinstance(entry.node, Mapping):
            _merge_groups(root, entry, problems)
        elif not _is_nothing(entry.node):
            problems.append(problem_at(entry.node.place, (key,), "must be a mapping"))


def _merge_groups(root: Mapping, addition: Entry, problems: list[Problem]) -> None:
    there = root.entries.get("groups")
    if there is None or _is_nothing(there.node):
        there = root.entries["groups"] = Entry(addition.place, Mapping(addition.node.place))
    if not isinstance(there.node, Mapping) or not isinstance(addition.node, Mapping):
        return  # the shape of the main file is wrong here, and it says so itself
    groups = there.node.entries
    for name, entry in addition.node.entries.items():
        if name in groups:
            first = groups[name].place
            message = f"the group is defined in {first.file}:{first.line} already"
            problems.append(problem_at(entry.place, ("groups", name), message))
        else:
            groups[name] = entry

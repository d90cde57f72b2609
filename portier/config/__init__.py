"""Text to a checked, typed, frozen Config, with the place of every error.

One straight pipeline, a module a step: `files` (which files, and their text), `yamltext` and `tomltext`
(text to nodes), `loading` (main file and drop-ins become one tree), `shape` (the JSON Schema), `build` (typed
values, and the rules between fields).  This module is all that others import.  Importing it costs nothing:
the parser and jsonschema are loaded by `load` alone, and a daemon calls `load_in_child`, so that it never
holds them, nor its interpreter lock while they work.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from pathlib import Path

from portier.config import files, wire

__all__ = ["Loaded", "digest", "load", "load_in_child", "schema"]

Loaded = wire.Loaded


def load(path: Path, *, replace: Mapping[Path, Path] | None = None) -> Loaded:
    """Read, check and type the configuration whose main file is ``path``, in this process.

    ``replace`` is files to candidates: the whole is judged as if each candidate were in its file's place.
    Raises ConfigError with every problem there is.
    """
    from portier.config import loading  # noqa: PLC0415  (brings the parser and jsonschema, 20 MB and 0.2 s)

    return loading.load(path, replace)


def load_in_child(path: Path) -> Loaded:
    """The same, done in a short-lived child process: other threads of this one go on undisturbed."""
    return wire.load_in_child(path)


def digest(path: Path) -> str:
    """What ``Loaded.digest`` would be now.  Cheap: reads the files, parses nothing; never raises for
    what is in them or for a file that is missing."""
    return files.find(path).digest


def schema() -> str:
    """The JSON Schema, as `portier schema` prints it.  In a wheel it lies in this package, in a source
    tree in ``schema/``."""
    name = "portier.schema.json"
    packaged = importlib.resources.files(__name__) / name
    if packaged.is_file():
        return packaged.read_text("utf-8")
    return (Path(__file__).parents[2] / "schema" / name).read_text("utf-8")

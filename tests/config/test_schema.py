"""The published schema is valid, explains every key, and agrees with the model."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from portier.config import schema
from portier.core.model import Advertisement, Config, Group, Limits, Routes, Timers

SCHEMA = json.loads(schema())
DEFS = SCHEMA["$defs"]
ROOT = Path(__file__).parents[2]


def keys() -> list[tuple[str, dict[str, Any]]]:
    """Every key that the schema describes, with what it says about it."""
    found = []

    def walk(path: str, part: dict[str, Any]) -> None:
        for name, inner in part.get("properties", {}).items():
            meant = DEFS[inner["$ref"].rpartition("/")[2]] | inner if "$ref" in inner else inner
            found.append((f"{path}.{name}".lstrip("."), meant))
            walk(f"{path}.{name}", meant)

    walk("", SCHEMA)
    walk("groups.NAME", DEFS["group"])
    walk("rule", DEFS["rule"])
    return found


def test_valid() -> None:
    """It is a JSON Schema of draft 2020-12."""
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(("path", "about"), keys())
def test_every_key_is_explained(path: str, about: dict[str, Any]) -> None:
    """An editor can show a sentence for every key; a default that the schema has is in its words too."""
    description = about["description"]
    assert description.endswith(".")
    if about.get("default") is not None and not path.startswith("rule."):
        default = about["default"]
        word = default if isinstance(default, str) else json.dumps(default).replace('"', "")
        assert description.startswith(f"Default {word}"), path


def test_defaults_are_those_of_the_model() -> None:
    """What the schema calls a default is what the model does."""
    units = {"ms": 0.001, "min": 60.0, "s": 1.0, "h": 3600.0}

    def value(text: Any) -> Any:
        for unit, seconds in units.items():
            if isinstance(text, str) and text.endswith(unit) and text[: -len(unit)].isdigit():
                return int(text[: -len(unit)]) * seconds
        return text

    for name, model in (("limits", Limits()), ("timers", Timers()), ("routes", Routes())):
        said = {key: value(about["default"]) for key, about in DEFS[name]["properties"].items()}
        assert said == dataclasses.asdict(model)
    group = Group(name="g")
    for key in ("mode", "router_advertisements", "multicast", "isolate", "scope", "loop_protection"):
        assert DEFS[key]["default"] == getattr(group, key)
    for key in ("router", "override", "source"):
        assert DEFS["advertisement"]["properties"][key]["default"] == getattr(Advertisement(), key)
    assert DEFS["announce"]["default"] is True
    assert group.announce.value == "true"
    assert DEFS["answer"]["default"] == group.rules[0].answer
    top, config = SCHEMA["properties"], Config()
    assert top["watch"]["default"] == config.watch
    assert top["sysctls"]["default"] == config.sysctls
    assert top["control"]["properties"]["group"]["default"] == config.control_group
    assert top["log"]["properties"]["level"]["default"] == config.log_level
    assert top["log"]["properties"]["format"]["default"] == config.log_format
    assert top["metrics"]["properties"]["listen"]["default"] == config.metrics_listen


def test_every_setting_of_the_model_has_a_key() -> None:
    """Nothing of a group can be set in the model alone, and defaults hold what a group holds."""
    fields = {field.name for field in dataclasses.fields(Group)} - {"name", "rules"}
    assert set(DEFS["group"]["properties"]) == fields | {"prefixes", "answer"}
    ports = {"upstream", "downstream", "prefixes"}
    assert set(SCHEMA["properties"]["defaults"]["properties"]) == set(DEFS["group"]["properties"]) - ports


def test_in_the_wheel() -> None:
    """The wheel has the schema where the package looks for it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included["schema/portier.schema.json"] == "portier/config/portier.schema.json"

"""The examples load without a warning, and so do copies of them as other tools write them."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

from portier.config import load, schema
from portier.core.model import Config, Mode

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(path for path in EXAMPLES.rglob("*") if path.suffix in (".yaml", ".toml"))

# Every key there is, with what YAML readers get wrong about names and addresses.
EVERYTHING = """
version: 1
defaults: {routes: {table: 100, metric: 5, protocol: 136}, announce: false}
groups:
  guests:
    upstream: [eth0, wlan0]
    downstream: ["*", "!eth0", "!wlan0", "eth[0-9].1*"]
    mode: route
    prefixes:
      - upstream
      - 2001:db8:7::
      - 2001:db8:8::/64
      - {allow: "2001:db8:9::", answer: always, askers: ["fe80::/10", "2001:db8::"]}
      - {allow: "2001:db8:a::/64", downstream: docker0}
      - {deny: "2001:db8:a::/112"}
      - {allow: upstream, host: "::5054:ff:fe00:0/::ffff:ffff:ff00:0"}
    answer: routed
    router_advertisements: off
    isolate: yes
    advertisement: {router: on, override: off, source: target, link_layer: "52:54:00:12:34:56"}
    limits: {neighbors: 4, per_port: 5, per_host: 6, pending: 7, resolutions: 8, per_source: 9,
             route_changes: 10}
    timers: {reachable: 15s, retransmit: 500ms, retries: 2, negative: 1s, forget: 1h, prefix_grace: 0s}
watch: no
sysctls: check
control: {group: adm}
log: {level: debug, format: json}
metrics: {listen: null}
"""


def loaded(path: Path) -> Config:
    """The Config in a file that has no warnings."""
    found = load(path)
    assert found.warnings == ()
    return found.config


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_example_loads(path: Path) -> None:
    """Every example is right, and has groups; those in mode route have a rule that allows something."""
    config = loaded(path)
    assert config.groups
    routing = [group for group in config.groups if group.mode is Mode.ROUTE]
    assert all(any(rule.allow for rule in group.rules) for group in routing)


def test_toml_twin() -> None:
    """The example in TOML means what its twin in YAML means."""
    assert loaded(EXAMPLES / "guests.toml") == loaded(EXAMPLES / "vms-and-containers.yaml")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_editors_accept_the_examples(path: Path) -> None:
    """An editor that checks the file as plain YAML or TOML against the schema finds nothing wrong."""
    text = path.read_text()
    data = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    jsonschema.Draft202012Validator(json.loads(schema())).validate(data)


def nice_yaml(data: object) -> str:
    """As Ansible's to_nice_yaml writes it."""
    return yaml.dump(data, allow_unicode=True, default_flow_style=False, indent=4)


def nice_yaml_indented(data: object) -> str:
    """As Ansible's to_nice_yaml(indent=2, width=1337, sort_keys=false) writes it: a common setting."""
    return yaml.dump(
        data, allow_unicode=True, default_flow_style=False, indent=2, width=1337, sort_keys=False
    )


def nice_json(data: object) -> str:
    """As Ansible's to_nice_json writes it: JSON is YAML too."""
    return json.dumps(data, indent=4, sort_keys=True)


@pytest.mark.parametrize("render", [nice_yaml, nice_yaml_indented, nice_json])
@pytest.mark.parametrize(
    "text", [*(path.read_text() for path in FILES if path.suffix == ".yaml"), EVERYTHING]
)
def test_rendered_by_ansible(text: str, render: object, tmp_path: Path) -> None:
    """A tool that has read the YAML by its own rules and writes it back changes nothing: booleans for on
    and off, mappings for addresses that end in colons."""
    written, rendered = tmp_path / "written.yaml", tmp_path / "rendered.yaml"
    written.write_text(text)
    rendered.write_text(render(yaml.safe_load(text)))  # type: ignore[operator]
    assert load(rendered).config == load(written).config


def test_variables_of_the_ansible_role_s_example(tmp_path: Path) -> None:
    """What the example playbook sets makes a configuration."""
    playbook = EXAMPLES.parent / "packaging" / "ansible" / "example.yml"
    (play,) = yaml.safe_load(playbook.read_text())
    variables = play["roles"][0]["vars"]
    (tmp_path / "portier.yaml").write_text(nice_yaml(variables["portier_config"]))
    (tmp_path / "portier.d").mkdir()
    for name, content in variables["portier_dropins"].items():
        (tmp_path / "portier.d" / f"{name}.yaml").write_text(nice_yaml(content))
    assert len(loaded(tmp_path / "portier.yaml").groups) == 2


def test_design_sample_is_understood(tmp_path: Path) -> None:
    """Everything that the format will have is accepted in shape; what does not work yet says so."""
    path = tmp_path / "portier.yaml"
    path.write_text(EVERYTHING)
    config = load(path).config
    (group,) = config.groups
    assert group.downstream == ("*", "!eth0", "!wlan0", "eth[0-9].1*")
    assert [str(rule.prefix) for rule in group.rules][:4] == [
        "upstream",
        "2001:db8:7::/128",
        "2001:db8:8::/64",
        "2001:db8:9::/128",
    ]

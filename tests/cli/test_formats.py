"""What programs read: the documents of the formats say what the real daemon says, no more and no less."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import jsonschema
import pytest

from portier.cli import PRINTED, text
from portier.core.model import EventKind, Limits
from portier.core.outcome import Verdict
from portier.system.control import ControlClient
from tests.cli.conftest import ROOT, Portier
from tests.netns.lab import Lab, UnixConnection, wait_for
from tests.netns.scenes import NET, Scene, config, guest, solicit, vps

PATIENCE = 20.0


def schema(name: str) -> dict[str, Any]:
    """The document of a format."""
    found: dict[str, Any] = json.loads((ROOT / "schema" / f"portier.{name}.schema.json").read_text("utf-8"))
    return found


def valid(name: str, value: object) -> None:
    """Hold a value against the document of its format."""
    jsonschema.Draft202012Validator(schema(name)).validate(value)


def parts(value: object) -> Iterator[dict[str, Any]]:
    """All objects within a document."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from parts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from parts(inner)


@pytest.fixture
def scene(lab: Lab) -> Scene:
    """An upstream host, the proxy, two hosts behind it, both families; no daemon yet."""
    made = vps(lab)
    made.u.add("eth0", "192.0.2.1/24")
    made.p.add("eth0", "192.0.2.2/24")
    return made


def told(scene: Scene, *arguments: str) -> Any:
    """What a command prints for programs, which its document allows."""
    done = scene.portier.cli(*arguments, "--json")
    assert not done.stderr
    value = json.loads(done.stdout)
    valid(arguments[0], value)
    return value


def metrics(scene: Scene) -> str:
    """The metrics page."""
    connection = UnixConnection(scene.portier.runtime / "control.sock", PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()


@pytest.mark.parametrize("name", [*PRINTED, "probe"])
def test_documents_are_printed(portier: Portier, name: str) -> None:
    """`portier schema` prints the document of each format, which is a JSON Schema that allows nothing but
    what it describes, and describes all of it; it names version 1 and says what may be added to that."""
    done = portier("schema", name)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document == schema(name)
    jsonschema.Draft202012Validator.check_schema(document)
    assert document["properties"]["version"]["const"] == 1
    assert "keys may be added" in document["description"]
    for part in parts(document):
        if "properties" in part and "type" in part:
            assert part["additionalProperties"] is False
            assert all("description" in value or "$ref" in value for value in part["properties"].values())


def test_a_document_that_is_not_there(portier: Portier) -> None:
    """Another name is wrong usage, and the names there are are said."""
    done = portier("schema", "lift")
    assert done.returncode == 64
    assert "neighbors" in done.stderr


def test_words_are_all_documented() -> None:
    """No verdict, no kind of event and no limit is missing from the documents, and none is there in vain."""
    verdicts = [verdict.label for verdict in Verdict]
    assert schema("status")["$defs"]["verdict"]["enum"] == verdicts
    assert schema("explain")["properties"]["verdict"]["enum"] == [*verdicts, "no-port"]
    assert schema("watch")["properties"]["verdict"]["enum"] == verdicts
    kinds = [kind.value for kind in EventKind]
    assert schema("status")["$defs"]["event"]["properties"]["kind"]["enum"] == kinds
    assert schema("watch")["properties"]["kind"]["enum"] == [*kinds, "packet", "missed"]
    assert list(schema("status")["$defs"]["group"]["properties"]["limits"]["properties"]) == list(
        Limits.__dataclass_fields__
    )


def test_mode_route(scene: Scene) -> None:
    """A healthy daemon for both families, with hosts known and questions that got no answer: status,
    neighbors, explain and plan; each port says what it speaks from, what it answered, and what it did not."""
    rules = f"[{NET}/64, {{deny: '{NET}dead/128'}}, 192.0.2.128/25]"
    scene.start(config(rules, extra="scope: group\nrouter_advertisements: relay", head="watch: false"))
    assert wait_for(lambda: scene.u.ping(guest(1), timeout=1), PATIENCE, "the first host answers")
    scene.u.inject("eth0", solicit(scene.u, f"{NET}dead"))
    scene.u.inject("eth0", solicit(scene.u, f"{NET}77"))
    asker = scene.u.link_local("eth0")

    def refused() -> dict[str, Any]:
        group: dict[str, Any] = told(scene, "status")["groups"][0]
        said = [(one["asker"], one["target"], one["verdict"]) for one in group["refused"]]
        return group if (asker, f"{NET}dead", "denied") in said and group["unfound"] else {}

    group = wait_for(refused, PATIENCE, "the questions without an answer")
    eth = next(port for port in group["ports"] if port["name"] == "eth0")
    assert eth["answers"] >= 1
    assert (eth["source"], eth["source4"]) == (scene.p.link_local("eth0"), "192.0.2.2")
    assert {port["source4"] for port in group["ports"]} == {"192.0.2.2"}, "lent to those that have none"
    assert group["unfound"] == 1
    assert sum(group["states"].values()) == group["neighbors"]
    assert guest(1) in {host["address"] for host in told(scene, "neighbors")["neighbors"]}
    assert told(scene, "explain", guest(1))["verdict"] == "answered"
    assert told(scene, "explain", f"{NET}dead")["verdict"] == "denied"
    assert told(scene, "explain", guest(1), "--on", "nonsense0")["verdict"] == "no-port"
    assert told(scene, "plan") == {"version": 1, "steps": [], "warnings": [], "daemon": True}
    scene.portier.write(config("[2001:db8:77::/64]", downstream="[tap1, later0]", head="watch: false"))
    assert told(scene, "plan")["steps"]


def test_probe(scene: Scene) -> None:
    """What a probe finds, of a host that is there and of an address that no rule allows."""
    scene.start(config())
    for address, code in ((guest(1), 0), ("2001:db8:dead::1", 3)):
        done = scene.portier.cli("doctor", "--probe", address, "--json")
        assert done.returncode == code, done.stdout
        answer = json.loads(done.stdout)
        valid("probe", answer)
        assert answer["works"] is (code == 0)


def test_check(portier: Portier, tmp_path: Path) -> None:
    """What `check` says of a configuration that is right, of one that is wrong and of none."""
    file = tmp_path / "portier.yaml"
    for said, code in ((config(), 0), (config(extra="answer: perhaps\nanswr: no"), 78), ("", 78)):
        file.write_text(said)
        if not said:
            file.unlink()
        done = portier("check", "--json", "-c", str(file), lines=9)
        assert done.returncode == code
        answer = json.loads(done.stdout)
        valid("check", answer)
        assert answer["valid"] is (code == 0)


def test_mode_relay(scene: Scene) -> None:
    """The same for a relay, before and after it forwards."""
    scene.start(
        "version: 1\ngroups: {lan: {mode: relay, upstream: eth0, downstream: [tap1, tap2, later0]}}\n"
    )
    relays = [port["relay"] for port in told(scene, "status")["groups"][0]["ports"]]
    assert None in relays
    assert any(relays)

    def known() -> bool:
        scene.u.ping(guest(1), timeout=1)
        return bool(told(scene, "neighbors")["neighbors"])

    wait_for(known, 2 * PATIENCE, "hosts to be known")
    assert told(scene, "explain", guest(1))["steps"]
    assert told(scene, "status")["groups"][0]["mode"] == "relay"


def test_degraded(scene: Scene) -> None:
    """A daemon whose upstream is gone and whose file is broken: what is wrong is in the format too, and what
    doctor finds."""
    scene.start(config(f"[{NET}/64, upstream]"))
    scene.p.ip("link set eth0 down")
    scene.portier.write("version: 1\ngroups: {lan: {upstraem: eth0}}\n")

    def problems() -> list[str]:
        status = told(scene, "status")
        return status["problems"] if status["config"]["error"] and len(status["problems"]) > 1 else []

    assert wait_for(problems, PATIENCE, "two problems")
    status = told(scene, "status")
    assert not status["healthy"]
    assert status["groups"][0]["upstream"]["active"] is None
    assert not told(scene, "explain", guest(1))["answered"]
    assert told(scene, "doctor")["findings"]


def test_events(scene: Scene) -> None:
    """What happens, with each solicitation and what was missed, line by line; the status tells the same of
    the last events."""
    scene.start(config())
    where = ["--runtime-dir", str(scene.portier.runtime)]
    watching = scene.p.popen(
        [sys.executable, "-m", "portier", "watch", "--json", "--packets", *where], stdout=subprocess.PIPE
    )
    wait_for(lambda: "\nportier_watchers 1.0\n" in metrics(scene), PATIENCE, "the watcher to watch")
    assert wait_for(lambda: scene.u.ping(guest(1), timeout=1), PATIENCE, "the first host answers")
    wait_for(lambda: scene.portier.neighbors().get(guest(1)), PATIENCE, "the first host is known")
    with watching as process:
        assert process.stdout is not None
        seen: set[str] = set()
        while not {"learned", "packet"} <= seen:
            entry = json.loads(process.stdout.readline())
            valid("watch", entry)
            seen.add(entry["kind"])
        process.terminate()
    with_frames = ControlClient(scene.portier.runtime).watch("/v1/events", packets="frames", kind="packet")
    scene.u.inject("eth0", solicit(scene.u, guest(2)))
    entry = next(with_frames)
    valid("watch", entry)
    assert entry["frame"]
    with_frames.close()
    missed = {"version": 1, "time": 1.5, "kind": "missed", "text": "7 lines are missing here"}
    valid("watch", missed | {"what": "lines", "count": 7})
    for wrong in (missed, missed | {"what": "lines", "count": 7, "verdict": "denied"}):
        with pytest.raises(jsonschema.ValidationError):
            valid("watch", wrong)
    events = told(scene, "status")["events"]
    assert any(event["kind"] == "learned" and event["address"] == guest(1) for event in events)


def test_names_do_no_harm(scene: Scene) -> None:
    """An interface may be called almost anything.  Whatever is printed of it, as a page, as a picture or for
    programs, does nothing but show its name; programs get it whole."""
    odd = 'a\x1b[2J"<&\\n'
    scene.p.ip("link set tap2 down", f"link set tap2 name {odd}", f"link set dev {odd} up")
    scene.guests.pop(2)
    text_of = config(downstream='["tap*", "a*"]', head="watch: false")
    scene.daemon = scene.lab.portier(text_of, on=scene.p)
    scene.portier.wait_ports("eth0", "tap1", odd)
    assert odd in {port["name"] for port in told(scene, "status")["groups"][0]["ports"]}
    for arguments in (["status"], ["neighbors"], ["explain", guest(1)], ["status", "--format=dot"]):
        said = scene.portier.cli(*arguments).stdout
        assert said.replace("\n", "").isprintable(), arguments
    assert text.clean(odd) in scene.portier.cli("status").stdout
    drawn = ET.fromstring(scene.portier.cli("status", "--format=svg").stdout)  # noqa: S314  (our own)
    assert text.clean(odd) in [element.text for element in drawn.iter()]
    scene.portier.write(config(head="watch: false"))
    for arguments in (["plan"], ["reload"]):
        steps = scene.portier.cli(*arguments).stdout
        assert text.clean(odd) in steps
        assert steps.replace("\n", "").isprintable(), arguments
    scene.portier.write(text_of)
    assert scene.portier.reload().returncode == 0
    scene.portier.kill9()
    for arguments in (["plan"], ["cleanup"]):
        steps = scene.portier.cli(*arguments).stdout
        assert text.clean(odd) in steps
        assert steps.replace("\n", "").isprintable(), arguments
    log = scene.portier.log.read_text()
    assert text.clean(odd) in log
    assert log.replace("\n", "").isprintable()

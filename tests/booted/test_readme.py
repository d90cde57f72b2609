"""The README's section on installing, on a booted Debian with the package."""

from __future__ import annotations

import json
import os

from tests.booted.machine import Root
from tests.netns.lab import Lab
from tests.situations import docker
from tests.test_readme import BOOTED, README, ROOT, blocks, commands, sections, situation, steady


def test_root_asks_doctor_about_the_service(portier_root: Root, lab: Lab) -> None:
    """The service is another user's, and doctor reads all that it needs of it; only nft is not there."""
    _, config, _ = situation("A VPS with Docker")
    (portier_root.path / "etc/portier.yaml").write_text(config, encoding="utf-8")
    machine = portier_root.boot(docker(lab).proxy)
    shown = json.loads(machine.run(["portier", "doctor", "--json"]).stdout)
    assert shown["findings"] == []
    assert {each["why"] for each in shown["unmade"]} == {
        "nft is not installed (on Debian: apt install nftables)"
    }


def test_installing_is_as_the_readme_has_it(portier_root: Root, lab: Lab) -> None:
    """With the file of the first situation, each command prints what is shown; with
    ``PORTIER_README=write`` what it prints is written there."""
    _, config, _ = situation("A VPS with Docker")
    machine = portier_root.boot(docker(lab).proxy)
    machine.write("/etc/portier.yaml", config)
    for block in blocks("console", dict(sections())[BOOTED]):
        fresh = []
        for _, command, output in commands(block):
            done = machine.run(["sh", "-c", f"{command} 2>&1"], check=False, environment={"COLUMNS": "104"})
            said = done.stdout.rstrip("\n").split("\n") if done.stdout.strip() else []
            fresh += [f"$ {command}", *said]
            if os.environ.get("PORTIER_README") != "write":
                assert steady(said) == steady(output), command
        if os.environ.get("PORTIER_README") == "write":
            text = README.read_text(encoding="utf-8")
            README.write_text(text.replace(block, "\n".join(fresh) + "\n"), encoding="utf-8")


def test_unit_of_the_tree_runs_where_there_is_no_package(root: Root, lab: Lab) -> None:
    """The commands after those of pip, for which the tree itself stands in: there is no network here."""
    _, config, _ = situation("A VPS with Docker")
    (block,) = (each for each in blocks("sh", dict(sections())[BOOTED]) if "pip install" in each)
    for name in ("portier", "schema"):
        root.copy(ROOT / name, f"/opt/portier/lib/{name}")
    root.copy(ROOT / "packaging", "/root/packaging")
    program = root.path / "opt/portier/bin/portier"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nPYTHONPATH=/opt/portier/lib exec python3 -m portier "$@"\n')
    program.chmod(0o755)
    machine = root.boot(docker(lab).proxy)
    machine.write("/etc/portier.yaml", config)
    machine.run(["sh", "-ec", f"cd /root; {block.partition('pip install .')[2]} systemctl start portier"])
    assert machine.run(["portier", "status"]).stdout.startswith("portier is healthy")

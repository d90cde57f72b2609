"""The manual pages say all that the program and the schema say, and are well made."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from portier import config
from portier.cli import COMMANDS
from portier.cli.manual import MANUAL

ROOT = Path(__file__).parent.parent
PAGES = ("portier.8", "portier.yaml.5", "portier-situations.7")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the pages."""
    directory = tmp_path_factory.mktemp("man")
    subprocess.run(
        [sys.executable, ROOT / "packaging/man/generate.py", directory], cwd="/", check=True, timeout=30
    )
    return directory


def rendered(page: Path) -> str:
    """A page as somebody reads it, its lines as long as they want to be."""
    if shutil.which("mandoc") is None:
        pytest.skip("no mandoc here: Debian has it in mandoc")
    done = subprocess.run(
        ["mandoc", "-T", "utf8", "-O", "width=1000", page],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return re.sub(".\b", "", done.stdout)  # bold and underlined, as teletypes did it


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_without_a_warning(pages: Path, name: str) -> None:
    """Neither of the two programs that show manual pages finds anything to complain of."""
    for command in (
        ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", name],
        ["mandoc", "-T", "lint", name],
    ):
        if shutil.which(command[0]) is None or shutil.which("groff") is None:
            pytest.skip(f"no {command[0]} or groff here: Debian has them in man-db, groff and mandoc")
        done = subprocess.run(
            command,
            cwd=pages,
            env=os.environ | {"LC_ALL": "C.UTF-8", "MANROFFSEQ": "", "MANWIDTH": "80"},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        if command[0] == "mandoc":
            assert done.stdout == ""


def keys(schema: dict[str, Any], whole: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The keys that a mapping of the schema may have, with what each is."""
    for key, part in schema.get("properties", {}).items():
        meant = whole["$defs"][part["$ref"].rpartition("/")[2]] | part if "$ref" in part else part
        yield key, meant
        for inner, what in keys(meant, whole):
            yield f"{key}.{inner}", what


def test_every_key_is_explained(pages: Path) -> None:
    """With its description, word by word, which gives the default; and its range where it is a number."""
    text = " ".join(rendered(pages / "portier.yaml.5").split())
    schema = json.loads((ROOT / "schema/portier.schema.json").read_text(encoding="utf-8"))
    found = dict(keys({"properties": schema["properties"] | {"defaults": {}, "groups": {}}}, schema))
    found |= dict(keys(schema["$defs"]["group"], schema)) | dict(keys(schema["$defs"]["rule"], schema))
    assert {"log.level", "timers.hold_down", "routes.metric", "askers", "metrics.listen"} <= found.keys()
    for key, what in found.items():
        assert f" {key}: " in text, key
        if "description" in what:
            assert what["description"].replace("`", "") in text, key
        if "default" in what:
            default = what["default"]
            shown = (
                str(default).lower() if isinstance(default, bool) else "null" if default is None else default
            )
            shown = f"[{', '.join(shown)}]" if isinstance(shown, list) else shown
            assert re.match(f"Default( {re.escape(str(shown))}|: )", what["description"]), key
        if "minimum" in what:
            assert f"{key}: a whole number from {what['minimum']} to {what['maximum']} " in text, key


def test_the_situations_of_the_readme_are_there(pages: Path) -> None:
    """Each with its files and what is typed there, line by line."""
    text = rendered(pages / "portier-situations.7")
    part = (
        (ROOT / "README.md")
        .read_text(encoding="utf-8")
        .partition("\n## Situations\n")[2]
        .partition("\n## ")[0]
    )
    lines = {line.strip() for line in text.split("\n")}
    headings = re.findall(r"^### (.*)$", part, re.MULTILINE)
    assert len(headings) > 5
    assert lines.issuperset(headings)
    for block in re.findall(r"^```\w*\n(.*?)^```$", part, re.MULTILINE | re.DOTALL):
        for line in block.strip().split("\n"):
            assert line.strip() in lines, line


def test_every_command_is_explained(pages: Path) -> None:
    """With its options, what it does and its exit codes."""
    text = " ".join(rendered(pages / "portier.8").split())
    assert MANUAL.keys() == COMMANDS.keys()
    for name, entry in MANUAL.items():
        assert f" {name} " in text, name
        assert entry.text.replace("`", "") in text, name
        for code, what in entry.exits.items():
            assert f"{code} {what}" in text, name
    for option in (
        "-c, --config FILE",
        "--replace FILE=CANDIDATE",
        "--on PORT",
        "ndppd|npd6|pndpd",
        "--strict",
    ):
        assert option in text, option


def test_examples_of_the_pages_are_valid(pages: Path, tmp_path: Path) -> None:
    """Every configuration that a page shows can be loaded."""
    shown = 0
    for name in PAGES:
        source = (pages / name).read_text(encoding="utf-8")
        for example in re.findall(r"^\.EX\n(.*?)^\.EE\n", source, re.MULTILINE | re.DOTALL):
            if not example.startswith("version"):
                continue
            file = tmp_path / f"example{shown}.{'toml' if '=' in example.splitlines()[0] else 'yaml'}"
            file.write_text(example.replace("\\-", "-"), encoding="utf-8")
            config.load(file)
            shown += 1
    assert shown >= 8


def test_package_wants_what_the_project_wants() -> None:
    """The Debian package depends on Debian's packages of the project's dependencies, in these versions."""
    names = {"pyyaml": "python3-yaml"}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (wanted,) = re.findall(r"^dependencies = \[\n(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    dependencies = {
        f"{names.get(name.lower(), f'python3-{name.lower()}')} (>= {version})"
        for name, version in re.findall(r'^ +"([\w-]+)>=([\w.]+)"', wanted, re.MULTILINE)
    }
    control = (ROOT / "packaging/deb/debian/control").read_text(encoding="utf-8")
    assert len(dependencies) == 5
    assert dependencies == set(re.findall(r"python3-\S+ \(>= [\d.]+\)", control.partition("\nDepends:")[2]))

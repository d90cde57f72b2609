"""The README tells the truth: every command in it is run, every file in it checked.

The demo runs the commands; what the README shows of them must be what they print, but for numbers and
what else differs from one run to the next.  `python tests/test_readme.py` writes the present output into
the README.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from portier.cli import COMMANDS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_VARIES = (
    (re.compile(r"fe80::[0-9a-f:]+"), "fe80::x"),
    (re.compile(r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b"), "MAC"),
    (re.compile(r"(?<![\w:.])\d+(?:\.\d+)? (?:ms|s|min|h|d)(?: \d+ (?:s|min|h))?\b"), "TIME"),
    (re.compile(r"(?<![\w:./-])\d+(?:\.\d+)?(?![\w:./])"), "N"),
    (re.compile(r"[ \t]+"), " "),
)
_COUNTERS = re.compile(r"^\s+\S+: \d+ \S+")


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [body for kind, body in _BLOCK.findall(README.read_text(encoding="utf-8")) if kind == language]


def shown() -> dict[str, list[str]]:
    """The commands that the README shows with their output, without the ``$``."""
    found = {}
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *output = part.rstrip("\n").split("\n")
            found[command] = output
    return found


def steady(lines: list[str]) -> list[str]:
    """Lines without what differs from run to run: numbers, link-local and link-layer addresses, which
    verdicts were counted, and events."""
    if "last events" in lines:
        lines = lines[: lines.index("last events")]
    kept = [line for line in lines if line.strip() and not _COUNTERS.match(line)]
    kept = [line for line in kept if not line.startswith("~ sysctl")]  # the kernel decides which are needed
    for pattern, said in _VARIES:
        kept = [pattern.sub(said, line).strip() for line in kept]
    return kept


def played() -> dict[str, list[str]]:
    """What the demo's commands print now; skips where the demo cannot run."""
    done = subprocess.run(
        [sys.executable, "-m", "portier", "demo"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "104"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    sections = re.split(r"^== ", done.stdout, flags=re.MULTILINE)
    found = {}
    for section in sections:
        title, *output = section.rstrip("\n").split("\n")
        if title.startswith("portier "):
            found[title] = [line.removeprefix("    ") for line in output]
    return found


def test_output_is_real() -> None:
    """Each command that the README shows with its output prints that, in the demo's lab."""
    now = played()
    for command, output in shown().items():
        assert command in now, f"the demo does not run `{command}`"
        assert steady(output) == steady(now[command]), command


def test_every_command_is_shown_or_named() -> None:
    """No command is left out of the README."""
    text = README.read_text(encoding="utf-8")
    assert not [
        name for name in COMMANDS if f"portier {name}" not in text and f"packaging/{name}" not in text
    ]


@pytest.mark.parametrize("number", range(len(blocks("yaml"))))
def test_configurations_are_valid(number: int, tmp_path: Path) -> None:
    """Each configuration in the README passes `portier check`."""
    file = tmp_path / "portier.yaml"
    file.write_text(blocks("yaml")[number], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "portier", "check", "-c", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "script", ["packaging/demo", "packaging/test", "packaging/environment.sh", ".ci/run"]
)
def test_scripts_parse(script: str) -> None:
    """The scripts that the README names are there, and are sound shell."""
    shell = "bash" if script.startswith(".ci") else "sh"
    subprocess.run([shell, "-n", script], cwd=ROOT, timeout=60, check=True)
    assert script.endswith(".sh") or os.access(ROOT / script, os.X_OK)


def write() -> None:
    """Put what the demo prints now into the README's console blocks."""
    now = played()
    text = README.read_text(encoding="utf-8")

    def fresh(match: re.Match[str]) -> str:
        if match[1] != "console":
            return match[0]
        commands = re.findall(r"^\$ (.*)$", match[2], flags=re.MULTILINE)
        said = "\n".join("\n".join([f"$ {command}", *now[command]]) for command in commands)
        return f"```console\n{said}\n```"

    README.write_text(_BLOCK.sub(fresh, text), encoding="utf-8")


if __name__ == "__main__":
    write()

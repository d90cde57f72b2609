"""The README tells the truth: every command in it is run, every file in it checked.

Those on installing run on a booted Debian (tests/booted/test_readme.py), those of the situations in labs of
their own (`tests.situations`), the others in the demo; what the README shows of them must be what they print,
but for numbers and what else differs from one run to the next.  `python tests/test_readme.py` writes the
present output into the README.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml

from portier.cli import COMMANDS
from tests.netns.lab import Keeper, UnavailableError
from tests.situations import COMMAND, SITUATIONS, Player, playing

ROOT = Path(__file__).parent.parent
PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
README = ROOT / "README.md"
BOOTED = "Install"  # the section whose commands run in tests/booted/test_readme.py
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_VARIES = (
    (re.compile(r" \(\d+ \w+(, \d+ \w+)*\)|, \d+ (being )?asked for( that nobody has)?"), ""),
    (re.compile(r"fe80::[0-9a-f:]+"), "fe80::x"),
    (re.compile(r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b"), "MAC"),
    (re.compile(r"(?<![\w:.])\d+(?:\.\d+)? (?:ms|s|min|h|d)(?: \d+ (?:s|min|h))?\b"), "TIME"),
    (re.compile(r"\b\d+sec\b|\b\d\d:\d\d:\d\d(?:\.\d+)?\b"), "TIME"),
    (re.compile(r"^BIRD .*"), "BIRD"),
    (re.compile(r"(?<![\w:./-])\d+(?:\.\d+)?(?![\w:./])"), "N"),
    (re.compile(r"[ \t]+"), " "),
)
_COUNTERS = re.compile(r"^ +(asked on|\S+ +[\d,]+( |$))|.* ago \S+ asked on ")


def sections() -> Iterator[tuple[str, str]]:
    """The parts of the README: each heading, and the text up to the next."""
    _, *parts = re.split(r"^##+ (.*)$", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return zip(parts[::2], parts[1::2], strict=True)


def blocks(language: str, text: str = "") -> list[str]:
    """The fenced blocks of a language, of the whole README or of a part."""
    text = text or README.read_text(encoding="utf-8")
    return [body for kind, body in _BLOCK.findall(text) if kind == language]


def commands(block: str) -> Iterator[tuple[str, str, list[str]]]:
    """What a console block shows: the host (``""`` for the one with Portier), the command, the output."""
    said: list[str] = []
    host, typed = "", ""
    for line in block.rstrip("\n").split("\n"):
        if prompt := COMMAND.match(line):
            if typed:
                yield host, typed, said
            host, typed, said = prompt[1] or "", prompt[2], []
        else:
            said.append(line)
    if typed:
        yield host, typed, said


def shown() -> dict[str, list[str]]:
    """The commands that the README shows with their output, and the demo runs."""
    return {
        command: output
        for heading, text in sections()
        if heading not in SITUATIONS and heading != BOOTED
        for block in blocks("console", text)
        for _, command, output in commands(block)
    }


def situation(heading: str) -> tuple[str, str, str]:
    """The text of a situation, the configuration that holds there, and the old daemon's."""
    parts = dict(sections())
    text = parts[heading]
    config = (blocks("yaml", text) or blocks("yaml", parts[next(iter(SITUATIONS))]))[0]
    return text, config, (blocks("text", text) or [""])[0]


def steady(lines: list[str]) -> list[str]:
    """Lines without what differs from run to run: numbers, link-local and link-layer addresses, which
    verdicts were counted, and events."""
    if "last events" in lines:
        lines = lines[: lines.index("last events")]
    kept = [line for line in lines if line.strip() and not _COUNTERS.match(line)]
    kept = [line for line in kept if not line.startswith("~ sysctl")]  # the kernel decides which are needed
    kept = [line for line in kept if not line.startswith("rtt ")]
    # In a user namespace doctor may not look at the processes of other tests, and says so.
    kept = [line for line in kept if not line.startswith("not checked, because process")]
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


@pytest.fixture(scope="module")
def keeper() -> Iterator[Keeper]:
    """The process that holds the namespaces."""
    try:
        keeper = Keeper.start()
    except UnavailableError as error:
        pytest.skip(f"no network namespaces here: {error}")
    yield keeper
    keeper.close()


@pytest.mark.parametrize("heading", SITUATIONS)
def test_situations_are_real(keeper: Keeper, heading: str) -> None:
    """What the README shows of a situation is what comes of it, in a lab with its links and hosts."""
    missing = [tool for tool in ("radvd", "nft", "bird") if shutil.which(tool, path=PATH) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    text, config, old = situation(heading)
    with playing(keeper, heading, config, old) as player:
        for kind, block in _BLOCK.findall(text):
            if kind == "yaml":
                player.save(block)
            for host, command, output in commands(block) if kind == "console" else ():
                assert steady(player.run(command, host)) == steady(output), command


def test_situations_are_those_of_the_examples() -> None:
    """What a situation has the user write is what the example says that it names, or the core of it."""
    for heading in SITUATIONS:
        text, config, _ = situation(heading)
        for name in re.findall(r"`examples/([a-z-]+\.yaml)`", text):
            example = yaml.safe_load((ROOT / "examples" / name).read_text(encoding="utf-8"))
            for group, keys in yaml.safe_load(config)["groups"].items():
                assert keys.items() <= example["groups"][group].items(), (heading, name)


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
    """Put what the demo and the situations print now into the README's console blocks."""
    now = played()

    def from_demo(match: re.Match[str]) -> str:
        if match[1] != "console":
            return match[0]
        typed = [command for _, command, _ in commands(match[2])]
        said = "\n".join("\n".join([f"$ {command}", *now[command]]) for command in typed)
        return f"```console\n{said}\n```"

    def from_situation(player: Player, match: re.Match[str]) -> str:
        lines = []
        if match[1] == "yaml":
            player.save(match[2])
        if match[1] != "console":
            return match[0]
        for host, command, _ in commands(match[2]):
            lines += [f"{host}$ {command}", *player.run(command, host)]
        return "```console\n" + "\n".join(lines) + "\n```"

    written = README.read_text(encoding="utf-8")
    keeper = Keeper.start()
    for heading, text in sections():
        fresh = text
        if heading in SITUATIONS:
            _, config, old = situation(heading)
            with playing(keeper, heading, config, old) as player:
                fresh = _BLOCK.sub(partial(from_situation, player), text)
        elif heading != BOOTED:
            fresh = _BLOCK.sub(from_demo, text)
        written = written.replace(text, fresh)
    keeper.close()
    README.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    write()

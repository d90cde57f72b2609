"""The completions, loaded and used in the real shells, by the keys that somebody types."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# In place of the program: the names of groups for the completions, else what was asked for.
PROGRAM = """\
#!/bin/sh
if [ "$1" = check ] && [ $# = 1 ]; then echo 'group guests, mode route'; else echo "ran <$*>"; fi
"""


class Shell:
    """An interactive shell at a terminal, with the completions loaded."""

    def __init__(self, command: list[str], directory: Path, setup: str) -> None:
        environment = {
            "PATH": f"{directory}:{os.environ['PATH']}",
            "HOME": str(directory),
            "TERM": "dumb",
            "LC_ALL": "C.UTF-8",
        }
        self._terminal, theirs = pty.openpty()
        self._process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            cwd=directory,
            start_new_session=True,
        )
        os.close(theirs)
        self._said = ""
        self._type(f"{setup}\necho set''up\n")
        self._until("setup")

    def run(self, keys: str) -> list[str]:
        """Type the keys and Enter; the arguments that the program got."""
        self._type(f"{keys}\n")
        return self._until("ran <(.*?)>").replace("=", " ").removesuffix("/").split()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)

    def _type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def _until(self, pattern: str) -> str:
        deadline = time.monotonic() + 30
        while not (found := re.search(pattern, self._said)):
            assert time.monotonic() < deadline, f"not said: {pattern}; but {self._said!r}"
            if select.select([self._terminal], [], [], 0.1)[0]:
                self._said += os.read(self._terminal, 65536).decode(errors="replace")
        self._said = self._said[found.end() :]
        return found[found.re.groups]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The completions in a directory as the shells have it, a file, and a program of that name."""
    made = tmp_path_factory.mktemp("completion")
    subprocess.run(
        [sys.executable, ROOT / "packaging/completion/generate.py", made / "completions"],
        cwd="/",
        check=True,
        timeout=30,
    )
    program = made / "portier"
    program.write_text(PROGRAM, encoding="utf-8")
    program.chmod(0o755)
    (made / "old file.conf").touch()
    return made


# How each finds the completions by itself, when it first wants them.
SHELLS = {
    "bash": (
        ["bash", "--norc", "--noprofile", "-i"],
        "BASH_COMPLETION_USER_DIR=$PWD; source /usr/share/bash-completion/bash_completion",
    ),
    "zsh": (["zsh", "-f", "-i"], "fpath=($PWD/completions $fpath); autoload -U compinit; compinit -D -u"),
}


@pytest.fixture(scope="module", params=SHELLS)
def shell(request: pytest.FixtureRequest, directory: Path) -> Iterator[Shell]:
    """One shell after the other."""
    command, setup = SHELLS[request.param]
    if shutil.which(command[0]) is None or not Path("/usr/share/bash-completion/bash_completion").exists():
        pytest.skip(f"no {command[0]} here, or no bash-completion: Debian has them under these names")
    with contextlib.closing(Shell(command, directory, setup)) as shell:
        yield shell


# What of lo is enough to type.
LO = "l" if sum(link.name.startswith("l") for link in Path("/sys/class/net").iterdir()) == 1 else "lo"

TYPED = {
    "portier nei\t": ["neighbors"],
    "portier stat\t--st\t": ["status", "--strict"],
    f"portier explain --o\t{LO}\t2001:db8::5": ["explain", "--on", "lo", "2001:db8::5"],
    "portier watch --address 2001:db8::/64 --gr\tgu\t": [
        "watch",
        "--address",
        "2001:db8::/64",
        "--group",
        "guests",
    ],
    "portier --config=old\tche\t": ["--config", "old", "file.conf", "check"],
    "portier check --repl\told\t": ["check", "--replace", "old", "file.conf"],
    "portier import np\told\t": ["import", "npd6", "old", "file.conf"],
    "portier watch --kind=conf\tl\t --kind lea\t": ["watch", "--kind", "conflict", "--kind", "learned"],
    "portier --runtime-dir compl\t": ["--runtime-dir", "completions"],
    f"portier lift {LO}\t": ["lift", "lo"],
}


@pytest.mark.parametrize("keys", TYPED)
def test_shell_completes(shell: Shell, keys: str) -> None:
    """Commands, options, interfaces, groups, files, in bash and zsh."""
    assert shell.run(keys) == TYPED[keys]


def test_bash_executes_no_name_of_an_interface(directory: Path) -> None:
    """They may hold anything but blanks and slashes, and whoever makes one may not be root."""
    script = r"""
        ls() { printf '%s\n' eth0.7 '$(touch${IFS}made)' '`touch<made`' 'a;b'; }
        . completions/portier
        COMP_WORDS=(portier lift '') COMP_CWORD=2
        _portier
        echo "${COMPREPLY[*]}"
    """
    command = ["bash", "--norc", "--noprofile", "-c", script]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "eth0.7\n"
    assert not (directory / "made").exists()


FISH = {
    "portier nei": ["neighbors"],
    "portier status --st": ["--strict"],
    f"portier explain 2001:db8::5 --on {LO}": ["lo"],
    "portier watch --address 2001:db8::/64 --group=": ["--group=guests"],
    "portier -c old": ["old file.conf"],
    "portier --runtime-dir ch": [],
    "portier import n": ["ndppd", "npd6"],
    "portier watch --kind lo": ["loop", "lost"],
    "portier import npd6 old": ["old file.conf"],
    f"portier lift {LO}": ["lo"],
    "portier reload --js": [],
}


def test_fish_completes(directory: Path) -> None:
    """The same in fish, which tells what it would offer."""
    if shutil.which("fish") is None:
        pytest.skip("no fish here: Debian has it in fish")
    asked = "; ".join(f"echo '> {line}'; complete -C '{line}'" for line in FISH)
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"set -p fish_complete_path $PWD/completions; {asked}"],
        cwd=directory,
        env={"PATH": f"{directory}:{os.environ['PATH']}", "HOME": str(directory), "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    offered = {}
    for part in done.stdout.split("> ")[1:]:
        line, *offers = part.splitlines()
        offered[line] = [offer.partition("\t")[0].replace("\\ ", " ") for offer in offers]
    assert offered == FISH

"""Which files make up the configuration, and their text.

The main file (`.yaml` or `.toml`, not both), then the drop-ins in name order.  Decides which names count,
and refuses what is no bounded UTF-8 text, each with its place.  Nothing is parsed here, so a process that
only wants to know whether the files differ needs no parser.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import pwd
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from portier.errors import Problem

MAX_BYTES = 16 << 20  # of all files together; 10,000 rules are about 1 MB

# Hidden files, what editors and dpkg leave behind, what Ansible writes before it renames.
_IGNORED = (".*", "*~", "*.swp", "*.dpkg-*", "ansible_tmp*", "ansible-tmp*")
# What neither YAML nor TOML lets a file hold, and the characters that the YAML reader uses inside.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue005-\ufffd\U00010000-\U0010ffff]")


@dataclass(slots=True)
class Source:
    """One file: its name as the user knows it, and its text, None where it cannot be had."""

    path: Path
    raw: bytes = b""
    text: str | None = None


@dataclass(slots=True)
class Files:
    """What was found.  ``main`` comes first in ``sources``; ``problems`` are errors, ``warnings`` not."""

    sources: list[Source] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def problem(self, path: Path, message: str, before: str | None = None) -> None:
        """Add an error about a file; ``before`` is the text in front of the place, if it has one."""
        line = column = 0
        if before is not None:
            line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        self.problems.append(Problem(str(path), line, column, "", message))

    @property
    def digest(self) -> str:
        """A fingerprint of the names and contents: equal means that nothing was edited."""
        total = hashlib.sha256()
        for source in self.sources:
            total.update(
                f"{source.path}\0{len(source.raw)}\0".encode("utf-8", "surrogateescape") + source.raw
            )
        return total.hexdigest()


def drop_in_directory(main: Path) -> Path:
    """Where the drop-ins of a main file lie: its name with the suffix replaced by ``.d``."""
    return main.with_suffix(".d") if main.name else main / "portier.d"


def is_drop_in(name: str) -> bool:
    """Whether a file of that name in the drop-in directory is read."""
    return name.endswith((".yaml", ".toml")) and not _ignored(name)


def _ignored(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _IGNORED)


def find(main: Path, replace: Mapping[Path, Path] | None = None) -> Files:
    """Read all files.  ``replace`` is files to candidates: a candidate's content is taken for its file's,
    which need not exist; places still bear the file's name."""
    files = Files()
    content = {_absolute(file): candidate for file, candidate in (replace or {}).items()}
    main = _main(main, content, files)
    paths = [main, *_drop_ins(drop_in_directory(main), content, files)]
    left = MAX_BYTES
    for path in paths:
        source = _read(path, content.pop(_absolute(path), path), left, files)
        if source is not None:
            left -= len(source.raw)
            files.sources.append(source)
    for path in content:
        files.problem(path, f"is no part of the configuration in {main}")
    return files


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100  (a link in a drop-in directory is a name of its own)


def _main(main: Path, content: Mapping[Path, Path], files: Files) -> Path:
    """The main file: the one named, or its twin in the other language where that one alone exists."""
    other = {".yaml": ".toml", ".toml": ".yaml"}.get(main.suffix)
    if other is None:
        return main
    both = [main, main.with_suffix(other)]
    there = [path for path in both if os.path.lexists(path) or _absolute(path) in content]
    if len(there) == 2:
        files.problem(main, f"there is {both[1]} too: remove one of them")
    return there[0] if there else main


def _drop_ins(directory: Path, content: Mapping[Path, Path], files: Files) -> list[Path]:
    names = {path.name for path in content if path.parent == _absolute(directory)}
    try:
        names.update(path.name for path in directory.iterdir())
    except FileNotFoundError:
        pass
    except OSError as error:
        files.problem(directory, _unreadable(error))
    for name in names:
        if name.endswith(".yml") and not _ignored(name):
            about = "is not read: the names of drop-ins end in .yaml or .toml"
            files.warnings.append(Problem(str(directory / name), 0, 0, "", about))
    return [directory / name for name in sorted(names) if is_drop_in(name)]


def _unreadable(error: OSError) -> str:
    """Why a file cannot be read; who may not, where it is not root: the service has a user of its own."""
    who = ""
    if isinstance(error, PermissionError) and (user := os.geteuid()):
        try:
            who = f" by user {pwd.getpwuid(user).pw_name}"
        except KeyError:
            who = f" by user {user}"
    return f"cannot be read{who}: {error.strerror}"


def _read(path: Path, content: Path, left: int, files: Files) -> Source | None:
    """Read one file, at most ``left`` bytes.  None for a drop-in that went while we looked."""
    source = Source(path)
    try:
        # Non-blocking, because opening a FIFO for reading waits for a writer.
        with os.fdopen(os.open(content, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                files.problem(path, "is not a regular file")
                return source
            source.raw = file.read(left + 1)
    except IsADirectoryError:
        files.problem(path, "is a directory, not a file")
        return source
    except FileNotFoundError:
        if files.sources and content == path and not os.path.lexists(path):
            return None
        files.problem(path, "no such file" if content == path else f"no such file as {content}")
        return source
    except OSError as error:
        files.problem(path, _unreadable(error))
        return source
    if len(source.raw) > left:
        files.problem(path, f"too large: all files together may have {MAX_BYTES >> 20} MiB")
        source.raw = b""
        return source
    source.text = _text(path, source.raw, files)
    return source


def _text(path: Path, raw: bytes, files: Files) -> str | None:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8-sig")
        files.problem(path, "the file is not UTF-8", before)
        return None
    if found := _FORBIDDEN.search(text):
        files.problem(path, f"the character U+{ord(found[0]):04X} is not allowed", text[: found.start()])
        return None
    return text

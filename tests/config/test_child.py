"""The configuration comes out of the child process as it went in, and the parent stays clean."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from portier.config import Loaded, load, load_in_child, wire
from portier.errors import ConfigError, Refused

Loads = Callable[..., Loaded]
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").iterdir())


def many_rules(count: int) -> str:
    """A main file with that many rules of all kinds."""
    lines = [
        "version: 1",
        "groups:",
        "  big:",
        "    upstream: eth0",
        "    downstream: docker0",
        "    prefixes:",
    ]
    for i in range(count):
        prefix = f"2001:db8:{i >> 16:x}:{i & 0xFFFF:x}::/64"
        lines.append(
            (
                f"      - {prefix}",
                f'      - {{allow: "{prefix}", answer: always}}',
                f'      - {{allow: "{prefix}", downstream: docker0, askers: ["fe80::/10"]}}',
                f"      - allow: {prefix}\n        host: ::5054:ff:fe00:0/::ffff:ffff:ff00:0",
            )[i % 4]
        )
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_same_as_in_process(path: Path) -> None:
    """A child loads what this process loads."""
    assert load_in_child(path) == load(path)


def test_warnings_and_files(tmp_path: Path) -> None:
    """Warnings, files and fingerprint cross over."""
    main = tmp_path / "portier.yaml"
    main.write_text("version: 1\ngroups: {a: {}}")
    loaded = load_in_child(main)
    assert loaded == load(main)
    assert loaded.warnings


def test_same_problems(tmp_path: Path) -> None:
    """The child's problems are raised here, all of them."""
    main = tmp_path / "portier.yaml"
    main.write_text("version: 2\ngroups: {a: {mode: x}}")
    with pytest.raises(ConfigError) as here:
        load(main)
    with pytest.raises(ConfigError) as there:
        load_in_child(main)
    assert there.value.problems == here.value.problems
    assert len(there.value.problems) == 2


def test_parent_stays_clean(tmp_path: Path) -> None:
    """A process that loads in a child never imports the parser or jsonschema, and the child takes no module
    from the working directory, which may be anybody's."""
    (tmp_path / "portier.yaml").write_text("version: 1\ngroups: {a: {upstream: eth0}}")
    (tmp_path / "yaml.py").write_text("raise SystemExit('taken from the working directory')")
    program = (
        "import sys; from pathlib import Path; import portier.config as config;"
        "loaded = config.load_in_child(Path('portier.yaml')); config.digest(Path('portier.yaml'));"
        "print(loaded.config.groups[0].name, sorted({'yaml', 'jsonschema', 'tomllib'} & set(sys.modules)))"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("a []\n", "")


def test_child_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that cannot do its work is no fault of the file: not a ConfigError, so not for ever."""
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 'Traceback' >&2\necho 'MemoryError' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(Refused, match="could not be loaded: the loader ended with 1: MemoryError"):
        load_in_child(tmp_path / "portier.yaml")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    with pytest.raises(Refused, match=r"could not be loaded: .*No such file"):
        load_in_child(tmp_path / "portier.yaml")


def test_many_rules(loads: Loads, record_property: Callable[[str, object], None]) -> None:
    """10,000 rules cross over in slices with rests between; what it costs is shown, not judged, because it
    depends on the machine and on what else it does."""
    text = many_rules(10_000)
    start = time.perf_counter()
    loaded = loads(text)
    in_process = time.perf_counter() - start
    assert len(loaded.config.groups[0].rules) == 10_000
    data = wire.encode(loaded)
    marks = [time.thread_time()]
    gc.collect()
    gc.disable()
    try:
        assert wire.decode(data, sleep=lambda _: marks.append(time.thread_time())) == loaded
    finally:
        gc.enable()
    longest = max(later - earlier for earlier, later in itertools.pairwise(marks))
    assert len(marks) > 2
    figures = {"load": in_process, "decode": marks[-1] - marks[0], "longest slice": longest}
    for name, seconds in figures.items():
        record_property(name, seconds)
        print(f"10,000 rules, {name}: {seconds * 1000:.1f} ms")

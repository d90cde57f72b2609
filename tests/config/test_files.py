"""Main file and drop-ins: which count, in what order, and what becomes of those that cannot be read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from portier.config import Loaded, digest, load
from portier.errors import ConfigError

Loads = Callable[..., Loaded]
Problems = Callable[..., list[str]]

MAIN = "version: 1\ngroups:\n  main: {upstream: eth0}\n"


def drop_in(name: str) -> str:
    return f"groups: {{{name}: {{upstream: {name}}}}}\n"


def names(loaded: Loaded) -> list[str]:
    return [group.name for group in loaded.config.groups]


def test_order(loads: Loads, tmp_path: Path) -> None:
    """The main file's groups come first, then those of the drop-ins, by the names of the files."""
    loaded = loads(
        "version: 1\ngroups: {z: {}, y: {}}",
        {
            "portier.d/20-b.yaml": drop_in("b"),
            "portier.d/10-c.toml": "version = 1\n[groups.c]\nupstream = 'c'\n",
            "portier.d/3-a.yaml": drop_in("a"),
        },
    )
    assert names(loaded) == ["z", "y", "c", "b", "a"]
    files = ["portier.yaml", "portier.d/10-c.toml", "portier.d/20-b.yaml", "portier.d/3-a.yaml"]
    assert loaded.files == tuple(tmp_path / name for name in files)


@pytest.mark.parametrize(
    "name",
    [
        ".x.yaml",
        ".#x.yaml",
        ".x.yaml.swp",
        "x.yaml~",
        "x.yaml.swp",
        "x.yaml.dpkg-new",
        "x.dpkg-old.yaml",
        ".ansible_tmp3k2jx.yaml",
        "ansible_tmp3k2jx.yaml",
        "x.yaml.12345.2024-01-01@00:00:00~",
        "x.conf",
        "README",
    ],
)
def test_ignored_names(name: str, loads: Loads) -> None:
    """What editors, dpkg and Ansible leave or write in between is not read, nor is anything else."""
    loaded = loads(MAIN, {f"portier.d/{name}": "]["})
    assert names(loaded) == ["main"]
    assert len(loaded.files) == 1


def test_yml_is_told(problems: Problems) -> None:
    """A drop-in whose name nearly counts is not passed over in silence."""
    assert problems(MAIN, {"portier.d/x.yml": drop_in("x")}) == [
        "warning: portier.d/x.yml: is not read: the names of drop-ins end in .yaml or .toml"
    ]


def test_drop_ins_hold_groups_only(problems: Problems) -> None:
    """Everything else belongs into the main file, and a group into one file."""
    assert problems(
        MAIN,
        {
            "portier.d/a.yaml": "version: 2\ndefaults: {}\ngroups: []\n",
            "portier.d/b.yaml": "groups:\n  b: {}\n  main: {}\n",
            "portier.d/c.toml": "log = {}\n[groups.b]\nupstream = 5\n",
            "portier.d/d.yaml": "- x",
        },
    ) == [
        "portier.d/a.yaml:1:10: version: must be 1",
        "portier.d/a.yaml:2:1: defaults: a drop-in holds version and groups only: "  # noqa: ISC004
        "defaults belongs into portier.yaml",
        "portier.d/a.yaml:3:9: groups: must be a mapping",
        "portier.d/b.yaml:3:3: groups.main: the group is defined in portier.yaml:3 already",
        "portier.d/c.toml:1:1: log: a drop-in holds version and groups only: log belongs into portier.yaml",
        "portier.d/c.toml:2:9: groups.b: the group is defined in portier.d/b.yaml:2 already",
        "portier.d/d.yaml:1:1: the file must be a mapping, like `version: 1`",
    ]


def test_empty_drop_ins(loads: Loads) -> None:
    """An empty drop-in, or one with comments only, says nothing; a main file may leave all to drop-ins."""
    more = {"portier.d/a.yaml": "", "portier.d/b.yaml": "# later\n", "portier.d/c.yaml": drop_in("c")}
    assert names(loads("version: 1\ngroups:\n", more)) == ["c"]
    assert names(loads("version: 1\n", {**more, "portier.d/d.toml": "# nothing\n"})) == ["c"]


def test_defaults_reach_drop_ins(loads: Loads) -> None:
    """Groups of drop-ins have the main file's defaults."""
    config = loads("version: 1\ndefaults: {isolate: yes}", {"portier.d/c.yaml": drop_in("c")}).config
    assert config.groups[0].isolate is True


def test_both_languages(problems: Problems) -> None:
    """Two main files are one too many."""
    assert problems(MAIN, {"portier.toml": "version = 1"}) == [
        "portier.yaml: there is portier.toml too: remove one of them"
    ]


def test_toml_where_yaml_was_named(tmp_path: Path) -> None:
    """The default name is that of the YAML file; the TOML file is found where it alone exists."""
    (tmp_path / "portier.toml").write_text("version = 1\n[groups.t]\n")
    (tmp_path / "portier.d").mkdir()
    loaded = load(tmp_path / "portier.yaml")
    assert names(loaded) == ["t"]
    assert loaded.files == (tmp_path / "portier.toml",)


def test_another_name(tmp_path: Path) -> None:
    """For another main file the drop-ins lie in its name with the suffix replaced."""
    main = tmp_path / "lab.conf"
    main.write_text(MAIN)
    (tmp_path / "lab.d").mkdir()
    (tmp_path / "lab.d" / "x.yaml").write_text(drop_in("x"))
    assert names(load(main)) == ["main", "x"]


def refused(main: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(main)
    return str(caught.value)


def test_missing(tmp_path: Path) -> None:
    """A missing main file is an error with one line."""
    assert refused(tmp_path / "portier.yaml") == f"{tmp_path}/portier.yaml: no such file"


def test_unreadable(tmp_path: Path) -> None:
    """Directories, FIFOs, dangling links and link loops are told, and none of them is waited for."""
    main = tmp_path / "portier.yaml"
    main.mkdir()
    assert refused(main) == f"{main}: is a directory, not a file"
    main.rmdir()
    os.mkfifo(main)
    assert refused(main) == f"{main}: is not a regular file"
    main.unlink()
    main.write_text(MAIN)
    drop_ins = tmp_path / "portier.d"
    drop_ins.mkdir()
    (drop_ins / "a.yaml").symlink_to("nowhere")
    (drop_ins / "b.yaml").symlink_to("b.yaml")
    (drop_ins / "c.yaml").mkdir()
    assert refused(main).splitlines() == [
        f"{drop_ins}/a.yaml: no such file",
        f"{drop_ins}/b.yaml: cannot be read: Too many levels of symbolic links",
        f"{drop_ins}/c.yaml: is a directory, not a file",
    ]


def test_drop_in_directory_is_a_file(tmp_path: Path) -> None:
    """A file where the directory should be is told."""
    (tmp_path / "portier.yaml").write_text(MAIN)
    (tmp_path / "portier.d").write_text("")
    assert refused(tmp_path / "portier.yaml") == f"{tmp_path}/portier.d: cannot be read: Not a directory"


def test_not_text(tmp_path: Path) -> None:
    """What is not UTF-8 has the place where it stops being so; a byte order mark is no matter."""
    main = tmp_path / "portier.yaml"
    main.write_bytes(b"version: 1\nlog: {level: \xe9}\n")
    assert refused(main) == f"{main}:2:14: the file is not UTF-8"
    main.write_bytes("version: 1\n# é\nlog: é\x00".encode())
    assert refused(main) == f"{main}:3:7: the character U+0000 is not allowed"
    main.write_bytes(MAIN.encode("utf-16"))
    assert refused(main) == f"{main}:1:1: the file is not UTF-8"
    main.write_bytes(b"\xef\xbb\xbf" + MAIN.encode())
    assert names(load(main)) == ["main"]


def test_huge(tmp_path: Path) -> None:
    """A file without end costs no memory without end."""
    main = tmp_path / "portier.yaml"
    with main.open("wb") as file:
        file.truncate(1 << 40)
    assert refused(main) == f"{main}: too large: all files together may have 16 MiB"


def test_main_file_is_broken_and_so_is_a_drop_in(problems: Problems) -> None:
    """What can be judged without the main file is judged, and nothing is missed that it may hold."""
    first, second = problems("version: 1\n]", {"portier.d/x.yaml": "groups: {x: {mode: bridge}}"})
    assert first == "portier.d/x.yaml:1:20: groups.x.mode: must be one of route, relay"
    assert second.startswith("portier.yaml:2:1: not valid YAML: ")


def test_replace(tmp_path: Path) -> None:
    """A candidate is judged as if it stood where it is meant to stand, with that file's name."""
    main = tmp_path / "portier.yaml"
    main.write_text(MAIN)
    (tmp_path / "portier.d").mkdir()
    old = tmp_path / "portier.d" / "x.yaml"
    old.write_text("broken: [")
    candidate = tmp_path / "candidate"
    candidate.write_text(drop_in("x"))
    assert names(load(main, replace={old: candidate})) == ["main", "x"]
    new = tmp_path / "portier.d" / "new.yaml"
    old.unlink()
    assert names(load(main, replace={new: candidate})) == ["main", "x"]
    candidate.write_text("groups: {main: {}}")
    with pytest.raises(ConfigError, match=rf"{new}:1:10: groups.main: the group is defined in {main}:3"):
        load(main, replace={new: candidate})
    candidate.write_text("version: 1")
    assert names(load(main, replace={main: candidate})) == []
    with pytest.raises(ConfigError, match="is no part of the configuration"):
        load(main, replace={tmp_path / "other.yaml": candidate})
    with pytest.raises(ConfigError, match=f"{main}: no such file as {tmp_path}/gone"):
        load(main, replace={main: tmp_path / "gone"})


def test_a_candidate_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """Of a drop-in too: a misspelt candidate is not judged as if there were none."""
    main = tmp_path / "portier.yaml"
    main.write_text("version: 1\n")
    (tmp_path / "portier.d").mkdir()
    gone = tmp_path / "gone"
    with pytest.raises(ConfigError, match=f"10-x.yaml: no such file as {gone}"):
        load(main, replace={tmp_path / "portier.d" / "10-x.yaml": gone})


def test_replace_several(tmp_path: Path) -> None:
    """A group may move from one file to another: what neither candidate may be alone, both may be together,
    and an empty one is as good as no drop-in."""
    main, drop_ins = tmp_path / "portier.yaml", tmp_path / "portier.d"
    one, two = drop_ins / "one.yaml", drop_ins / "two.yaml"
    drop_ins.mkdir()
    main.write_text(MAIN)
    one.write_text(drop_in("x"))
    bare, moved, empty = (tmp_path / name for name in ("bare", "moved", "empty"))
    bare.write_text("version: 1")
    moved.write_text(drop_in("main"))
    empty.touch()
    with pytest.raises(ConfigError, match="the group is defined in"):
        load(main, replace={two: moved})
    assert names(load(main, replace={main: bare, two: moved})) == ["x", "main"]
    assert names(load(main, replace={main: bare, one: empty, two: moved})) == ["main"]


def test_replace_by_a_relative_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File and candidate may be named from the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("portier.yaml").write_text("x")
    Path("candidate").write_text(MAIN)
    assert names(load(tmp_path / "portier.yaml", replace={Path("portier.yaml"): Path("candidate")})) == [
        "main"
    ]


def test_digest(loads: Loads, tmp_path: Path) -> None:
    """The fingerprint tells whether anything was edited, without parsing, and never raises."""
    main = tmp_path / "portier.yaml"
    missing = digest(main)
    loaded = loads(MAIN, {"portier.d/a.yaml": drop_in("a")})
    assert loaded.digest == digest(main) != missing
    (tmp_path / "portier.d" / ".hidden").write_text("x")
    assert loaded.digest == digest(main)
    (tmp_path / "portier.d" / "a.yaml").rename(tmp_path / "portier.d" / "b.yaml")
    moved = digest(main)
    assert moved != loaded.digest
    (tmp_path / "portier.d" / "b.yaml").write_bytes(b"\xff")
    assert digest(main) not in (moved, loaded.digest)

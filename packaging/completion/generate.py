"""Makes the completions of bash, zsh and fish: generate.py OUTDIR.

From the same argparse parser that the program has; nothing of Portier runs while somebody completes, but
where the names of groups are asked for.  (argcomplete starts the program at every key, and shtab knows no
fish.)
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from portier.cli import COMMANDS, make_parser  # from this tree, whatever is installed
from portier.core.model import EventKind
from portier.runtime.feed import PACKET

# What is completed for a value, by its name in the help; nothing for another name.
KINDS = {"FILE": "file", "FILE=CANDIDATE": "file", "DIR": "directory", "PORT": "port", "GROUP": "group"}
WORDS = {"KIND": (*EventKind, PACKET)}
GROUPS = r"portier check 2>/dev/null | sed -n 's/^group \([^,]*\),.*/\1/p'"
MADE = "# Made by packaging/completion/generate.py from the program's own parser."


@dataclass(frozen=True, slots=True)
class Argument:
    """An option (it has ``names``) or an argument by its place.  ``kind`` is one of `KINDS`, or "none"; words
    to choose from come instead of it; an option that takes no value has neither."""

    names: tuple[str, ...]
    about: str
    kind: str
    words: tuple[str, ...]
    repeated: bool


@dataclass(frozen=True, slots=True)
class Command:
    """A command; the empty name stands for the program before any command."""

    name: str
    about: str
    options: tuple[Argument, ...]
    arguments: tuple[Argument, ...]


def _argument(action: argparse.Action) -> Argument:
    words = tuple(map(str, action.choices or WORDS.get(str(action.metavar), ())))
    kind = "" if action.nargs == 0 or words else KINDS.get(str(action.metavar), "none")
    # argparse has no public name for actions that append.
    repeated = isinstance(action, argparse._AppendAction)  # noqa: SLF001
    return Argument(tuple(action.option_strings), action.help or "", kind, words, repeated)


def _command(name: str, about: str, parser: argparse.ArgumentParser) -> Command:
    actions = [action for action in parser._actions if action.dest != "command"]  # noqa: SLF001
    made = [_argument(action) for action in actions]
    return Command(
        name,
        about,
        tuple(argument for argument in made if argument.names),
        tuple(argument for argument in made if not argument.names),
    )


def commands() -> tuple[Command, list[Command]]:
    """The program before its command, and every command."""
    parser = make_parser()
    (choice,) = (action for action in parser._actions if action.dest == "command")  # noqa: SLF001
    each = [_command(name, COMMANDS[name], made) for name, made in dict(choice.choices or {}).items()]
    return _command("", "", parser), each


def _common(each: list[Command]) -> list[Argument]:
    """The options that every command has."""
    return [option for option in each[0].options if all(option in command.options for command in each)]


def _own(command: Command, common: list[Argument]) -> list[Argument]:
    return [option for option in command.options if option not in common]


def _with_values(whole: Command, each: list[Command]) -> Iterator[tuple[str, str, Argument]]:
    """The options that take a value: the command (* for the options that all have), the name, the option."""
    common = _common(each)
    for name, options in (
        ("*", common),
        *((command.name, _own(command, common)) for command in (whole, *each)),
    ):
        for option in options:
            if option.kind or option.words:
                for spelling in option.names:
                    yield name, spelling, option


def _indented(lines: Iterable[str], width: int) -> str:
    return textwrap.indent("\n".join(lines), " " * width)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# -- bash ------------------------------------------------------------------------------------------------

BASH = """\
# Completion of portier for bash.
{made}

_portier() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} command='' argument=0 want='' i
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$command ${{COMP_WORDS[i]}}" in
{values}
        *' -'*) continue ;;
        ' '*) command=${{COMP_WORDS[i]}}; continue ;;
        *) ((argument += 1)); continue ;;
        esac
        [[ ${{COMP_WORDS[i + 1]}} != = ]] || ((i += 1)) # for bash --config=FILE is three words
        ((i += 1))
    done
    [[ $cur != = ]] || cur=
    if ((i == COMP_CWORD)); then # not the value of an option
        want=
        if [[ $cur == -* ]]; then
            case $command in
{options}
            esac
        else
            case "$command $argument" in
{arguments}
            esac
        fi
    fi
    case $want in
    file)
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        ;;
    directory)
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -d -- "$cur")
        ;;
    port) # compgen expands its words, and the line is executed: no name may be more than a name
        mapfile -t COMPREPLY < <(compgen -W "$(ls /sys/class/net | grep -x '[[:alnum:]_.@+-]*')" -- "$cur")
        ;;
    group) mapfile -t COMPREPLY < <(compgen -W "$({groups})" -- "$cur") ;;
    none) ;;
    *) mapfile -t COMPREPLY < <(compgen -W "$want" -- "$cur") ;;
    esac
}}

complete -F _portier portier
"""


def _wanted(argument: Argument) -> str:
    return _quoted(" ".join(argument.words)) if argument.words else argument.kind


def _names(command: Command) -> list[str]:
    return [name for option in command.options for name in option.names]


def _pattern(command: str, option: str) -> str:
    """What matches an option after its command; a star for any command is no literal star."""
    return f"*{_quoted(f' {option}')}" if command == "*" else _quoted(f"{command} {option}")


def bash() -> str:
    """Completion for bash."""
    whole, each = commands()
    values = [
        f"{_pattern(name, option)}) want={_wanted(argument)} ;;"
        for name, option, argument in _with_values(whole, each)
    ]
    options = [
        f"{_quoted(command.name)}) want={_quoted(' '.join(_names(command)))} ;;" for command in (whole, *each)
    ]
    arguments = [f"' 0') want={_quoted(' '.join(command.name for command in each))} ;;"]
    arguments += [
        f"{_quoted(f'{command.name} {place}')}) want={_wanted(argument)} ;;"
        for command in each
        for place, argument in enumerate(command.arguments)
    ]
    return BASH.format(
        made=MADE,
        values=_indented(values, 8),
        options=_indented(options, 12),
        arguments=_indented(arguments, 12),
        groups=GROUPS,
    )


# -- zsh -------------------------------------------------------------------------------------------------

ZSH = """\
#compdef portier
# Completion of portier for zsh.
{made}

(( $+functions[_portier_ports] )) || _portier_ports() {{
    local -a ports=(/sys/class/net/*(N:t))
    _wanted interfaces expl interface compadd -a ports
}}

(( $+functions[_portier_groups] )) || _portier_groups() {{
    local -a groups=(${{(f)"$({groups})"}})
    _wanted groups expl group compadd -a groups
}}

_portier() {{
    local curcontext=$curcontext state line expl ret=1
    local -A opt_args
    local -a commands=(
{commands}
    )
    local -a common=(
{options}
    )
    _arguments -C $common {version}'1:command:->command' '*::argument:->argument' && ret=0
    case $state in
    command) _describe -t commands command commands && ret=0 ;;
    argument)
        case $words[1] in
{arguments}
        esac
        ;;
    esac
    return ret
}}

_portier "$@"
"""
ZSH_KINDS = {
    "file": "_files",
    "directory": "_files -/",
    "port": "_portier_ports",
    "group": "_portier_groups",
    "none": "( )",
}


def _zsh_value(argument: Argument) -> str:
    if argument.words:
        return f"({' '.join(argument.words)})"
    return ZSH_KINDS[argument.kind]


def _zsh_text(text: str) -> str:
    """A text that means nothing to _arguments."""
    for character in "\\:[]":
        text = text.replace(character, f"\\{character}")
    return text


def _zsh_options(options: Iterable[Argument]) -> Iterator[str]:
    for option in options:
        value = f":value:{_zsh_value(option)}" if option.kind or option.words else ""
        others = "*" if option.repeated else f"({' '.join(option.names)})"
        for name in option.names:
            # --name= takes its value after = or as the next word, -n only as the next word
            sign = "=" if value and name.startswith("--") else ""
            yield _quoted(f"{others}{name}{sign}[{_zsh_text(option.about)}]{value}")


def zsh() -> str:
    """Completion for zsh."""
    whole, each = commands()
    common = _common(each)
    arguments = []
    for command in each:
        words = [*_zsh_options(_own(command, common))]
        words += [_quoted(f":{_zsh_text(a.about)}:{_zsh_value(a)}") for a in command.arguments]
        arguments.append(
            f"{command.name}) _arguments $common{''.join(f' {word}' for word in words)} && ret=0 ;;"
        )
    return ZSH.format(
        made=MADE,
        groups=GROUPS,
        commands=_indented((_quoted(f"{command.name}:{_zsh_text(command.about)}") for command in each), 8),
        options=_indented(_zsh_options(common), 8),
        version="".join(f"{word} " for word in _zsh_options(_own(whole, common))),
        arguments=_indented(arguments, 8),
    )


# -- fish ------------------------------------------------------------------------------------------------

FISH = """\
# Completion of portier for fish.
{made}

# The command and how many arguments it has so far.
function __portier_place
    set -l words (commandline -opc)
    set -l command
    set -l argument 0
    set -e words[1]
    while set -q words[1]
        switch "$command $words[1]"
            case {values}
                set -e words[1]
            case '* -*'
            case ' *'
                set command $words[1]
            case '*'
                set argument (math $argument + 1)
        end
        set -e words[1]
    end
    echo "$command $argument"
end

function __portier_ports
    path basename /sys/class/net/*
end

function __portier_groups
    {groups}
end

complete -c portier -f
{lines}
"""
FISH_KINDS = {
    "file": "-r -F",
    "directory": "-x -a '(__fish_complete_directories)'",
    "port": "-x -a '(__portier_ports)'",
    "group": "-x -a '(__portier_groups)'",
    "none": "-x",
    "": "",
}


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _fish_value(argument: Argument) -> str:
    return f"-x -a {_fish_quoted(' '.join(argument.words))}" if argument.words else FISH_KINDS[argument.kind]


def _fish_line(condition: str, names: Iterable[str], value: str, about: str) -> str:
    words = [f"-{'l' if name.startswith('--') else 's'} {name.lstrip('-')}" for name in names]
    return " ".join(
        filter(None, ["complete -c portier", condition, *words, value, f"-d {_fish_quoted(about)}"])
    )


def fish() -> str:
    """Completion for fish."""
    whole, each = commands()
    common = _common(each)
    lines = [
        _fish_line("-n 'test (__portier_place) = \" 0\"'", (), f"-a {command.name}", command.about)
        for command in each
    ]
    lines += [_fish_line("", option.names, _fish_value(option), option.about) for option in common]
    for command in (whole, *each):
        lines += [
            _fish_line(
                f"-n 'string match -q \"{command.name} *\" (__portier_place)'",
                option.names,
                _fish_value(option),
                option.about,
            )
            for option in _own(command, common)
        ]
        lines += [
            _fish_line(
                f"-n 'test (__portier_place) = \"{command.name} {place}\"'",
                (),
                _fish_value(argument),
                argument.about,
            )
            for place, argument in enumerate(command.arguments)
        ]
    values = [f"{name} {option}" for name, option, _ in _with_values(whole, each)]
    return FISH.format(
        made=MADE, values=" ".join(map(_quoted, values)), groups=GROUPS, lines="\n".join(lines)
    )


def main() -> None:
    """Write the completions, by the names that the shells look for."""
    (directory,) = map(Path, sys.argv[1:])
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in (("portier", bash()), ("_portier", zsh()), ("portier.fish", fish())):
        (directory / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

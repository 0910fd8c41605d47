"""The reference of all commands, from the program's own tree: `python -m sdhub.cli.reference` prints docs/cli.md.

Only texts that are sdhub's own are taken from it, none that typer or click makes up: their versions differ.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

HEAD = """# Commands

Made from the program's own help by `make format`; `make lint` fails where it is not what the program says.
`sdhub COMMAND --help` shows the same. Exit codes: 0 done, 1 the work failed, 2 the call is wrong, 3 refused,
130 interrupted.
"""
OWN = {"help", "install_completion", "show_completion"}  # names of options that are not ours


def reference() -> str:
    """All commands in Markdown, ending in a newline."""
    from typer.main import get_command

    from sdhub.cli.app import app

    return "\n".join([HEAD, *_commands(get_command(app), "sdhub")]).rstrip("\n") + "\n"


def _commands(command: Any, name: str) -> Iterator[str]:
    """A command and those below it."""
    if command.callback is not None and name != "sdhub":
        yield from _command(command, name)
    for each, below in getattr(command, "commands", {}).items():
        yield from _commands(below, f"{name} {each}")


def _command(command: Any, name: str) -> Iterator[str]:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and each.name not in OWN]
    words = [name, *map(_word, arguments), *(["[OPTIONS]"] if options else [])]
    yield f"## {name}\n\n```text\n{' '.join(words)}\n```\n\n{inspect.cleandoc(command.help or '')}\n"
    rows = [(f"`{_word(each)}`", each) for each in arguments]
    rows += [(_flags(each), each) for each in options]
    if rows:
        lines = [f"| {shown} | {_cell(each.help or '')}{_default(each)} |" for shown, each in rows]
        yield "\n".join(["| | |", "|---|---|", *lines, ""])
    lines = re.findall(r"\[bold\](.*?)\[/bold\]", command.epilog or "")
    if lines:
        yield "\n".join(["```sh", *(line.replace("\\[", "[") for line in lines), "```", ""])


def _word(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper()).strip("[]")


def _flags(option: Any) -> str:
    names = sorted([*option.opts, *option.secondary_opts], key=lambda each: (not each.startswith("--"), each))
    value = "" if option.is_flag else f" {option.metavar or option.name.upper()}"
    return f"`{', '.join(names)}{value}`".replace("|", "\\|")


def _default(option: Any) -> str:
    """A default that says something, where the help does not say it."""
    value = option.default
    plain = isinstance(value, (str, int, float)) and not isinstance(value, bool) and value != ""
    return f" Default: {value}." if plain and option.param_type_name == "option" else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(reference())

"""The Python of the guides runs as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sdhub.cli.reference import reference

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCKS = [
    pytest.param(block, id=f"{path.stem}-{number}")
    for path in (DOCS / "compression.md", DOCS / "python.md")
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_python_of_the_guides_runs(block: str) -> None:
    exec(compile(block, "guide", "exec"), {"__name__": "guide"})


COMMANDS = sorted(
    {
        line.strip()
        for path in (ROOT / "README.md", *sorted(DOCS.glob("*.md")))
        for block in re.findall(r"```(?:sh|)\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
        for line in block.splitlines()
        if line.strip().startswith("sdhub ") and not set("[…") & set(line.partition("#")[0].partition('"')[0])
    }
)


def test_there_are_commands_in_the_guides():
    assert len(COMMANDS) > 25


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_of_the_guides_are_calls_that_the_program_takes(line, tmp_path, monkeypatch):
    """Each is parsed by the program itself, with the files that it names in place."""
    import typer

    from sdhub.cli.app import app

    monkeypatch.chdir(tmp_path)
    for name in ("mine.json", "mixed.json"):
        (tmp_path / name).write_text("{}")
    for name in ("out", "DIR", "FOLDER"):
        (tmp_path / name).mkdir()
    words = shlex.split(re.sub(r"\s{2,}\S.*", "", line), comments=True)[1:]
    if ">" in words:
        words = words[: words.index(">")]
    command, name = typer.main.get_command(app), "sdhub"
    context = None
    while words and getattr(command, "commands", None) and words[0] in command.commands:
        name, words = words[0], words[1:]
        command = command.commands[name]
    context = command.make_context(name, list(words))
    assert context.params


def test_the_reference_of_commands_is_what_the_program_says():
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == reference()


def test_the_reference_has_every_command_and_option():
    import typer

    from sdhub.cli.app import app

    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    sections = {part.partition("\n")[0]: part for part in text.split("\n## ")[1:]}

    seen = set()

    def look(command, name):
        if getattr(command, "commands", None):
            for each, below in command.commands.items():
                look(below, f"{name} {each}")
            return
        seen.add(name)
        for each in command.params:
            if each.param_type_name == "option" and each.name != "help":
                assert all(flag in sections[name] for flag in each.opts), (name, each.opts)

    look(typer.main.get_command(app), "sdhub")
    assert seen | {"sdhub cache"} == set(sections)  # a command, and a group of commands

"""Every command that the program prints is one that works: parsed by the program itself, and run as printed."""

from __future__ import annotations

import ast
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.main import get_command

from sdhub.checkpoint.source import parse_source
from sdhub.cli.app import app
from sdhub.core import nextsteps
from sdhub.demo import emoji_sd
from sdhub.hub.pages.handlers import RUN_SPACES
from tests.checkpoint.tiny import skeleton
from tests.runs import environment, sdhub

PACKAGE = Path(nextsteps.__file__).parents[1]
PROGRAM = get_command(app)
LOCAL = "http://127.0.0.1:8420/me/model"
OTHER = "http://127.0.0.1:5123/me/model"
HUB_FILE = parse_source("org/name/sub/file.safetensors@v1")
PRINTED = [
    nextsteps.schema(),
    nextsteps.cache(),
    nextsteps.serve(),
    nextsteps.serve(LOCAL),
    nextsteps.serve(OTHER),
    nextsteps.serve_spaces(),
    nextsteps.serve_jobs(),
    nextsteps.follow("6927b3c4d5e6f7a8b9c0d1e2", "me"),
    nextsteps.follow("6927b3c4d5e6f7a8b9c0d1e2", "me", "local"),
    nextsteps.cancel("6927b3c4d5e6f7a8b9c0d1e2", "me", "local"),
    nextsteps.serve_spaces(OTHER),
    nextsteps.generate("demo/emoji-sd-openvino-int8", "red heart", "heart.png", "local"),
    nextsteps.generate(Path("an odd 'name'/out"), "a prompt", "picture.png"),
    nextsteps.publish_own(),
    nextsteps.publish_recipe("demo", Path("my recipe.json")),
    nextsteps.publish_recipe("./a file.safetensors", Path("r.json"), ["style.safetensors:0.8", "b/c"], "org/cfg"),
    nextsteps.inspect(),
    nextsteps.inspect(parse_source("org/name@v1").text),
    nextsteps.inspect(HUB_FILE.text),
    nextsteps.deploy(),
    nextsteps.deploy_private(),
    RUN_SPACES.partition(": ")[2],
]


def called(node):
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None


def trees():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


EXAMPLES = sorted(
    text.value
    for _, tree in trees()
    for node in ast.walk(tree)
    if called(node) == "examples"
    for text in node.args
    if isinstance(text, ast.Constant) and text.value.startswith("sdhub")
)


def parse(line):
    """The words of a line through the program's own parser: command, options, arguments; nothing is run."""
    name, *words = shlex.split(line.partition(" > ")[0])
    assert name == "sdhub"
    command, parent = PROGRAM, None
    while hasattr(command, "commands"):
        context = command.make_context(command.name, words, parent=parent)
        rest = [*getattr(context, "_protected_args", []), *context.args]
        if not rest:
            assert command.invoke_without_command
            return
        _, command, words = command.resolve_command(context, rest)
        parent = context
    command.make_context(command.name, words, parent=parent)


@pytest.mark.parametrize("line", PRINTED + EXAMPLES)
def test_the_program_takes_what_it_prints(line, tmp_path, monkeypatch):
    assert EXAMPLES
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    parse(line)


@pytest.mark.parametrize("line", ["sdhub serve", "sdhub inspect", "sdhub inspect demo --foo", "sdhub hub"])
def test_what_it_does_not_take_is_noticed(line):
    with pytest.raises((Exception, SystemExit)):
        parse(line)


def test_no_message_names_a_command_of_its_own():
    """All come from `nextsteps`, but for the examples of the help texts."""
    pattern = re.compile(rf"\bsdhub ({'|'.join(PROGRAM.commands)})\b")
    found = []
    for path, tree in trees():
        allowed = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                allowed.add(id(node.value))  # a docstring
            elif called(node) == "examples":
                allowed |= {id(each) for each in node.args}
        found += [
            f"{path.relative_to(PACKAGE)}: {node.value}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in allowed
            and pattern.search(node.value)
            and path.name != "nextsteps.py"
            and path.relative_to(PACKAGE).parts[0] != "hub"  # knows nothing of the rest
        ]
    assert not found


@pytest.mark.parametrize("text", ["org/name", "org/name@v1", "org/name/sub/file.safetensors@v1", "demo"])
def test_inspect_names_the_source_that_was_named(text):
    line = nextsteps.inspect(parse_source(text).text)
    assert shlex.split(line) == ["sdhub", "inspect", text]


def test_inspect_finds_a_folder_from_anywhere(tmp_path):
    source = parse_source(str(skeleton(tmp_path / "a folder")))
    assert parse_source(shlex.split(nextsteps.inspect(source.text))[2]) == source


def as_printed(line):
    """A line for the shell, with the program of this environment."""
    return f"{shlex.quote(sys.executable)} -m {line}"


def test_commands_run_as_they_are_printed(tmp_path):
    for line in (nextsteps.schema(), nextsteps.cache(), nextsteps.inspect(parse_source(str(emoji_sd())).text)):
        done = subprocess.run(
            as_printed(line), shell=True, env=environment(tmp_path), capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr


@contextmanager
def started(line, home):
    process = subprocess.Popen(
        f"exec {as_printed(line)}",
        shell=True,
        env=environment(home) | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert "The embedded Hub is at" in process.stdout.readline()
        yield
    finally:
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 0
        process.stdout.close()


def test_the_command_that_is_printed_opens_the_pages_that_are_printed(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    said = sdhub("push", str(folder), "demo/mine", "--hub", "local", home=tmp_path).stdout
    line = re.search(r"Open these pages with: +(sdhub .*)", said)[1]
    first, *_ = said.splitlines()
    assert "http" not in first  # that Hub has ended
    (url,) = re.findall(r"^  (http\S+)$", said, re.MULTILINE)
    with started(line, tmp_path), urllib.request.urlopen(url) as answer:
        assert "demo/mine" in answer.read().decode()


@pytest.mark.parametrize(
    ("called", "on_path", "name"),
    [
        (".venv/bin/sdhub", "", ".venv/bin/sdhub"),
        ("an odd place/sdhub", "", "'an odd place/sdhub'"),
        (".venv/bin/sdhub", ".venv/bin", "sdhub"),
        (".venv/bin/sdhub", "an odd place", ".venv/bin/sdhub"),
        ("sdhub/__main__.py", "", "sdhub"),
        ("-c", "", "sdhub"),
    ],
)
def test_the_program_is_called_as_it_was(called, on_path, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (".venv/bin", "an odd place"):
        Path(folder).mkdir(parents=True)
        (Path(folder) / "sdhub").write_text("#!/bin/sh\n")
        (Path(folder) / "sdhub").chmod(0o755)
    monkeypatch.setattr(sys, "argv", [called])
    monkeypatch.setenv("PATH", str(tmp_path / on_path) if on_path else "/nowhere")
    assert nextsteps.inspect("demo") == f"{name} inspect demo"


def test_a_clone_s_own_program_names_itself(tmp_path):
    """As a stranger calls it who has only cloned and made the environment."""
    script = tmp_path / "bin" / "sdhub"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nfrom sdhub.cli import main\nmain()\n")
    script.chmod(0o755)
    recipe = tmp_path / "bad.json"
    recipe.write_text("{}")
    line = "bin/sdhub recipe check bad.json"
    done = subprocess.run(
        line, shell=True, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert "hint: see: bin/sdhub recipe schema\n" in done.stderr
    hint = done.stderr.partition("hint: see: ")[2].strip()
    again = subprocess.run(
        hint, shell=True, cwd=tmp_path, env=environment(tmp_path), capture_output=True, check=False
    )
    assert again.returncode == 0

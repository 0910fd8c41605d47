"""Every command and every Python block of the guides runs as it stands there.

On a Hub that has what the guides name, in a folder for each guide. What takes seconds runs with all tests; the
rest with `make test-guides`. The commands of spaces.md run in `tests/spaces/test_journey.py`, those of gpu.md
where there is a GPU.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from sdhub.cli.reference import reference
from tests.guides import DOCS, GUIDES, ROOT, Piece, blocks, commands, furnish
from tests.hubs import running_hub
from tests.runs import environment

ELSEWHERE = {"spaces.md", "gpu.md"}  # tests/spaces/test_journey.py; a GPU is needed
OTHER_BLOCKS = {"yaml", "json", ""}  # a workflow, a recipe; layouts and drawings
QUICK = re.compile(r"sdhub (inspect|plan|recipe (show|check)|cache|watch --show|compile)\b|sed |pip ")
QUICK_BLOCKS = {"compression", "python"}
STAYS = {  # until Ctrl-C: what says that it is at work
    r"(\S*/)?sdhub hub serve": "The embedded Hub is at",
    r"sdhub watch (?!.*--(once|show))": "Watching; Ctrl-C ends it.",
}
REFUSED = {  # what cannot be here: the exit code, and the line that says why
    r"sdhub compile ": (2, "xcrun is not here"),
    r"sdhub watch .*--dispatch github": (2, "there is no token for GitHub"),
}
PORT = 8420
SECONDS = 900


def costly(piece: Piece) -> bool:
    if piece.language == "python":
        return piece.guide.stem not in QUICK_BLOCKS
    return not QUICK.match(piece.text)


def pieces(language: str) -> list:
    found = [
        each
        for guide in GUIDES
        if guide.name not in ELSEWHERE
        for each in (commands(guide) if language == "sh" else blocks(guide))
        if each.language == language
    ]
    return [pytest.param(each, id=str(each), marks=[pytest.mark.guides] * costly(each)) for each in found]


def test_every_block_is_run_or_shows_no_command():
    for guide in GUIDES:
        for block in blocks(guide):
            if block.language in OTHER_BLOCKS:
                assert not re.search(r"^(\S+=\S+ )*(sdhub|python|make|pip|hf) ", block.text, re.MULTILINE), block
            else:
                assert block.language in ("sh", "python"), block


def test_links_lead_to_files():
    for guide in (*GUIDES, ROOT / "CONTRIBUTING.md"):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", guide.read_text(encoding="utf-8")):
            assert (guide.parent / link).exists(), f"{guide.name}: {link}"


def test_options_that_the_guides_name_are_options():
    from typer.main import get_command

    from sdhub.cli.app import app

    known, commands = (
        {"--help", "--ready-file", "--with"},
        [get_command(app)],
    )  # of every command, of the Hub's own program, and of uv
    while commands:
        command = commands.pop()
        known |= {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
        commands += getattr(command, "commands", {}).values()
    for guide in GUIDES:
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", guide.read_text(encoding="utf-8")))
        assert named <= known, f"{guide.name}: {named - known}"


class World:
    """A user at a terminal: a home, a folder for each guide, and the Hub at `url`."""

    def __init__(self, root: Path, url: str) -> None:
        self.root, self.url = root, url
        pip = root / "bin" / "pip"  # that of this environment, which need not have a script of its own
        pip.parent.mkdir()
        pip.write_text(f'#!/bin/sh\nexec {sys.executable} -m pip "$@"\n')
        pip.chmod(0o755)
        self.variables = environment(root / "home", url) | {
            "PATH": os.pathsep.join([str(pip.parent), str(Path(sys.prefix) / "bin"), os.environ["PATH"]]),
            "PYTHONPATH": str(ROOT),
            "PIP_NO_INDEX": "1",  # the environment has what the guide installs
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        }
        self.serving: subprocess.Popen | None = None

    def folder(self, guide: Path) -> Path:
        """Where a guide's commands are given, as after its first lines: an environment, a checkout, files."""
        place = self.root / "places" / guide.stem
        if place.exists():
            return place
        place.mkdir(parents=True)
        for name in ("Makefile", "pyproject.toml"):
            shutil.copyfile(ROOT / name, place / name)
        (place / ".venv").mkdir()
        for each in Path(sys.prefix).iterdir():
            if each.name != ".installed":
                (place / ".venv" / each.name).symlink_to(each)
        (place / ".venv" / ".installed").touch()
        (place / "my_script.py").write_text(
            "from huggingface_hub import HfApi, whoami\n\n"
            "assert whoami()['name']\n"
            "print([each.id for each in HfApi().list_models()])\n"
        )
        return place

    def start(self, piece: Piece) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", "-c", f"exec {piece.text}" if stays(piece) else piece.text],
            cwd=self.folder(piece.guide),
            env=self.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def await_file(self, repo: str, name: str) -> None:
        """Until a repository of the Hub has the file."""
        api, end = HfApi(self.url, token="local"), time.monotonic() + SECONDS
        while not (api.repo_exists(repo) and api.file_exists(repo, name)):
            assert time.monotonic() < end, f"{repo} has no {name} yet"
            time.sleep(1)

    def leave(self) -> None:
        """Ctrl-C to what is served."""
        if self.serving is not None:
            os.killpg(self.serving.pid, signal.SIGINT)
            said, _ = self.serving.communicate(timeout=120)
            assert "Traceback" not in said
            self.serving = None


def stays(piece: Piece) -> str | None:
    return next((word for pattern, word in STAYS.items() if re.match(pattern, piece.text)), None)


def until(process: subprocess.Popen, word: str) -> str:
    """What it said until `word`; the word is in it, or the process has ended."""
    said, end = "", time.monotonic() + SECONDS
    for line in process.stdout:
        said += line
        if word in said or time.monotonic() > end:
            break
    return said


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("guides")
    with running_hub(root / "hub", "--spaces", "present", "--jobs") as url:
        furnish(url, root / "sources")
        made = World(root, url)
        yield made
        made.leave()


@pytest.mark.parametrize("piece", pieces("sh"))
def test_commands_of_the_guides_run(piece, world):
    word = stays(piece)
    if word and "hub serve" in piece.text:
        world.leave()
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", PORT)):
                pytest.skip(f"another program has port {PORT}")
    process = world.start(piece)
    if word:
        said = until(process, word)
        assert word in said, said
        if "hub serve" in piece.text:
            world.serving = process
            return
        world.await_file("me/style-openvino-int8", "sdhub.json")
        os.killpg(process.pid, signal.SIGINT)
        assert "Traceback" not in process.communicate(timeout=120)[0]
        assert process.returncode == 130
        return
    said, _ = process.communicate(timeout=SECONDS)
    code, line = next((each for pattern, each in REFUSED.items() if re.match(pattern, piece.text)), (0, ""))
    assert process.returncode == code, said
    assert line in said
    assert "Traceback" not in said and "a-token-nobody-may-see" not in said


@pytest.mark.parametrize("piece", pieces("python"))
def test_python_of_the_guides_runs(piece, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDHUB_HOME", str(tmp_path / "home"))
    exec(compile(piece.text, str(piece), "exec"), {"__name__": "guide"})


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

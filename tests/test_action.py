"""The action and the workflows: valid, without findings, and the action's steps as a runner runs them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.hubs import running_hub

ROOT = Path(__file__).parents[1]
ACTION = ROOT / ".github" / "actions" / "publish" / "action.yml"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
EXPRESSION = re.compile(r"\$\{\{\s*(.+?)\s*\}\}")


def tool(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed: pip install -e '.[dev]'")
    return found


def document(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


def every_step() -> list[tuple[str, dict[str, Any]]]:
    steps = [("action.yml", step) for step in document(ACTION)["runs"]["steps"]]
    for path in WORKFLOWS:
        for job in document(path)["jobs"].values():
            steps += [(path.name, step) for step in job["steps"]]
    return steps


def test_they_fit_their_schemas():
    check = tool("check-jsonschema")
    for schema, paths in (("vendor.github-workflows", WORKFLOWS), ("vendor.github-actions", [ACTION])):
        done = subprocess.run(
            [check, "--builtin-schema", schema, *map(str, paths)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout


def test_the_guide_shows_a_workflow_that_fits(tmp_path):
    guide = (ROOT / "docs" / "action.md").read_text()
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)):
        path = tmp_path / f"{number}.yml"
        path.write_text(block)
        command = [tool("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
        given = yaml.safe_load(block)["jobs"]["publish"]["steps"][0]["with"]
        assert set(given) <= set(document(ACTION)["inputs"])
    inputs = set(re.findall(r"`([a-z-]+)`", guide.partition("| input |")[2].partition("| output |")[0]))
    assert set(document(ACTION)["inputs"]) <= inputs


def test_zizmor_has_no_findings():
    command = [tool("zizmor"), "--offline", "--no-progress", "--format", "json", str(ROOT / ".github")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert json.loads(done.stdout) == [], done.stdout


def test_everything_used_is_pinned_by_its_commit():
    used = [(where, step["uses"]) for where, step in every_step() if "uses" in step]
    assert len(used) > 10
    for where, uses in used:
        own = uses.startswith("$/.github/actions/")
        assert own or re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", uses), f"{where}: {uses}"


def test_no_script_holds_an_expression():
    """What is put into a script by `${{ }}` is run as a part of it."""
    for where, step in every_step():
        assert "${{" not in step.get("run", ""), f"{where}: {step.get('name')}"


def test_permissions_are_none_unless_said():
    for path in WORKFLOWS:
        loaded = document(path)
        assert loaded["permissions"] == {}, path.name
        for name, job in loaded["jobs"].items():
            assert set(job["permissions"]) <= {"contents", "id-token"}, f"{path.name}: {name}"
            assert job["permissions"].get("contents") in {None, "read"}
            assert job["timeout-minutes"]


def test_the_matrix_of_ci():
    matrix = document(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.10", "3.11", "3.12", "3.13"]
    assert {name.partition("-")[0] for name in matrix["system"]} == {"ubuntu", "macos"}


class Runner:
    """Runs the steps of the action in order, as GitHub's runner does: bash, `env`, output files.

    Steps that use other actions are not run. The Python that the install step would make is the present one.
    """

    def __init__(self, folder: Path, hub: str) -> None:
        self.folder = folder
        self.workspace = folder / "workspace"
        self.temp = folder / "temp"
        for path in (self.workspace, self.temp / "sdhub-venv" / "bin"):
            path.mkdir(parents=True)
        python = self.temp / "sdhub-venv" / "bin" / "python"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        self.hub = hub
        self.outputs: dict[str, dict[str, str]] = {}
        self.log = ""
        self.summary = folder / "summary"
        self.summary.touch()

    def run(self, inputs: dict[str, str], *, install: bool = False, **variables: str) -> int:
        """The exit code of the first step that fails, else 0."""
        loaded = document(ACTION)
        given = {name: spec.get("default", "") for name, spec in loaded["inputs"].items()} | inputs
        for step in loaded["runs"]["steps"]:
            if "run" not in step or (step["name"] == "Install sdhub" and not install):
                continue
            if "if" in step and not self.holds(step["if"]):
                continue
            code = self.step(step, given, variables)
            if code:
                return code
        return 0

    def holds(self, condition: str) -> bool:
        if condition.startswith("runner.os == 'macOS' && "):
            return False
        step, output, value = re.fullmatch(r"steps\.(\w+)\.outputs\.(\w+) == '(\w+)'", condition).groups()
        return self.outputs.get(step, {}).get(output) == value

    def step(self, step: dict[str, Any], inputs: dict[str, str], variables: dict[str, str]) -> int:
        def value(match: re.Match[str]) -> str:
            scope, _, name = match[1].partition(".")
            return inputs[name] if scope == "inputs" else {"runner.temp": str(self.temp)}[match[1]]

        script = self.folder / "script.sh"
        script.write_text(step["run"])
        output = self.folder / "output"
        output.write_text("")
        environment = {
            name: os.environ[name] for name in ("PATH", "LANG", "OMP_NUM_THREADS") if name in os.environ
        }
        environment |= {
            "HOME": str(self.folder),
            "HF_HOME": str(self.folder / "hf"),
            "HF_ENDPOINT": self.hub,
            "GITHUB_ACTION_PATH": str(ACTION.parent),
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(self.summary),
            "GITHUB_PATH": str(self.folder / "path"),
            "GITHUB_WORKSPACE": str(self.workspace),
            "RUNNER_TEMP": str(self.temp),
            "RUNNER_OS": "Linux",
            **variables,
            **{name: EXPRESSION.sub(value, text) for name, text in step.get("env", {}).items()},
        }
        command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", str(script)]
        done = subprocess.run(
            command,
            cwd=self.workspace,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.log += done.stdout
        if "id" in step:
            self.outputs[step["id"]] = parse_outputs(output.read_text())
        return done.returncode


def parse_outputs(text: str) -> dict[str, str]:
    """The outputs of a step, read as the runner reads them."""
    outputs, lines = {}, iter(text.split("\n"))
    for line in lines:
        if not line:
            continue
        name, between, mark = re.fullmatch(r"([^=<]+)(=|<<)(.*)", line).groups()
        if between == "=":
            outputs[name] = mark
            continue
        inside = []
        for follow in lines:
            if follow == mark:
                break
            inside.append(follow)
        outputs[name] = "\n".join(inside)
    return outputs


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with running_hub(tmp_path_factory.mktemp("hub") / "data") as url:
        yield url


@pytest.fixture
def runner(tmp_path, hub):
    return Runner(tmp_path / "runner", hub)


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


HOSTILE = [
    "$(touch pwned)",
    "`touch pwned`",
    '"; touch pwned; echo "',
    "demo; touch pwned",
    "demo\ntouch pwned",
    "demo\nresult=evil",
    "--help",
    "-o/tmp/pwned",
    "../../etc/passwd",
    "/etc",
    "a/b\x1b[31m",
    "a/b::set-output name=go::true",
    "${{ github.token }}",
    "x" * 5000,
    "",
]


@pytest.mark.parametrize(
    "name", ["source", "variants", "namespace", "recipe", "license", "hub", "create-pr", "space"]
)
def test_hostile_inputs_are_refused_and_run_nothing(name, runner):
    """All of them in one process for each input, with the functions of the step; one through the shell."""
    script = f"""
import importlib.util, json, os, sys
spec = importlib.util.spec_from_file_location("run", {str(ACTION.parent / "run.py")!r})
module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
for text in json.loads(sys.stdin.read()):
    os.environ["SDHUB_SOURCE"] = "demo"
    os.environ["SDHUB_" + {name.upper().replace("-", "_")!r}] = text
    try:
        print(json.dumps(module.read_inputs()[{name!r}]))
    except module.Refused:
        print("refused")
"""
    values = [text for text in HOSTILE if text]
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], input=json.dumps(values), capture_output=True, text=True, check=True
    )
    taken = [text for text, said in zip(values, done.stdout.splitlines(), strict=True) if said != "refused"]
    assert taken == (["demo\ntouch pwned"] if name == "variants" else [])  # three words, which name no variant
    before = everything(runner.folder)
    assert runner.run({"source": "demo", name: HOSTILE[0]}) == 2
    assert "::error::" in runner.log
    assert everything(runner.folder) - before <= {"script.sh", "output"}
    assert runner.outputs == {"look": {}}


def test_what_is_printed_is_no_command(runner, hub):
    """A repository on the Hub has the last word in an error; the runner reads none of it."""
    assert runner.run({"source": "nobody/nothing"}) == 2
    lines = runner.log.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("::stop-commands::"))
    mark = lines[begin].removeprefix("::stop-commands::")
    end = lines.index(f"::{mark}::")
    assert any("nobody/nothing" in line for line in lines[begin:end])
    assert all(not line.startswith("::") for line in lines[begin + 1 : end])


def test_a_source_that_is_too_big_is_told_early(runner):
    assert runner.run({"source": "demo", "namespace": "acme"}, SDHUB_MEMORY=str(64 * 2**20)) == 1
    assert "GB of memory" in runner.log
    assert "larger runner" in runner.log
    assert not (runner.temp / "sdhub" / "work").exists()


def test_the_install_step_takes_torch_for_cpus(runner, tmp_path):
    """Run with a `python` that only notes what it is asked for."""
    fake = tmp_path / "bin"
    fake.mkdir()
    noted = tmp_path / "noted"
    python = fake / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {noted}\n')
    python.chmod(0o755)
    shutil.copy(python, runner.temp / "sdhub-venv" / "bin" / "python")
    step = next(each for each in document(ACTION)["runs"]["steps"] if each.get("name") == "Install sdhub")
    path = {"PATH": f"{fake}:{os.environ['PATH']}"}
    assert runner.step(step, {"backends": "openvino coreml"}, path) == 0, runner.log
    lines = noted.read_text().splitlines()
    assert lines[0].startswith("-m venv")
    assert "https://download.pytorch.org/whl/cpu torch torchvision" in lines[1]
    assert f"sdhub[openvino,coreml] @ file://{ROOT}" in lines[2]
    for hostile in ("openvino] evil", "$(touch pwned)", "openvino; touch pwned", "--index-url=x", ""):
        assert runner.step(step, {"backends": hostile}, path) == 2
    assert len(noted.read_text().splitlines()) == 3


def test_the_summary_shows_strangers_words_as_they_are():
    import importlib.util

    spec = importlib.util.spec_from_file_location("run", ACTION.parent / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    evil = "a`b|c\n<img src=x onerror=alert(1)>\n| x |"
    shown = module.report(
        {
            "source": {"id": evil, "sha": "0" * 40},
            "variants": [
                {
                    "name": "openvino-int8",
                    "status": "failed",
                    "reason": evil,
                    "url": None,
                    "pull_request": None,
                    "commit": None,
                    "bytes": None,
                    "evidence": None,
                }
            ],
        }
    )
    from markdown_it import MarkdownIt

    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(shown)
    inside = [child for token in tokens for child in token.children or ()]
    assert not any(token.type.startswith("html") for token in [*tokens, *inside])
    assert sum(token.type == "tr_open" for token in tokens) == 2

"""The steps of the action: `look` (is it fit, is it too big?), `publish` and `compile`.

Inputs come as environment variables and become arguments of a process, never a part of a script. What strangers
wrote is printed where the runner takes no commands, and goes into outputs and summary with its marks escaped.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

GB = 1e9
DISK_COPIES = 3  # a variant, its repository with packages, and what is downloaded to check
RESERVE = 2 * GB
MAX_TEXT = 400
ID = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}"
FORMS = {
    "source": rf"demo|{ID}/{ID}(@[A-Za-z0-9][A-Za-z0-9._/+-]{{0,254}})?",
    "namespace": rf"({ID})?",
    "variants": r"([a-z0-9][a-z0-9.-]{0,63}([\s,]+|$))*",
    "recipe": r"([A-Za-z0-9_][A-Za-z0-9._/ -]{0,199})?",
    "license": r"([A-Za-z0-9][A-Za-z0-9.+-]{0,63})?",
    "hub": r"(local|https?://[A-Za-z0-9.:\[\]/_-]{1,200})?",
}
FLAGS = ("create-pr", "private", "space", "skip-published", "ignore-size")


class Refused(Exception):
    """One line for the log, with the exit code; `said` is what was printed before it."""

    def __init__(self, message: str, code: int = 2, said: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.said = said


def look() -> None:
    """Check the inputs, plan, and say early when the source is too big; writes `go` and `cache`."""
    inputs = read_inputs()
    plan = json.loads(run_sdhub(plan_arguments(inputs)))
    variants = plan["variants"]
    if inputs["skip-published"]:
        variants = [each for each in variants if not is_published(plan, each, inputs)]
    go = bool(variants)
    if go and not inputs["ignore-size"]:
        check_size(plan, variants)
    inputs["variants"] = [] if inputs["recipe"] else [each["name"] for each in variants]
    inputs_file().write_text(json.dumps(inputs))
    name = json.dumps([plan["source"], plan["sha"], os.environ.get("RUNNER_OS")])
    output("go", str(go).lower())
    output("cache", f"sdhub-work-{hashlib.sha256(name.encode()).hexdigest()[:32]}")
    if not go:
        summary(f"All variants of {code(plan['source'])} are published already.\n")


def publish() -> None:
    """Run `sdhub publish`; writes `result`, `repositories`, `space` and the summary."""
    inputs = json.loads(inputs_file().read_text())
    failed = None
    try:
        said = run_sdhub(publish_arguments(inputs))
    except Refused as error:
        failed, said = error, error.said
    if said.strip():
        result = json.loads(said)
        result_file().write_text(said)
        output("result", json.dumps(result, separators=(",", ":")))
        output("repositories", json.dumps([each["url"] for each in result["variants"] if each["url"]]))
        output("space", (result.get("space") or {}).get("url") or "")
        summary(report(result))
    if failed:
        raise failed


def compile_bundles() -> None:
    """Run `sdhub compile` for each Core ML variant that was published or proposed."""
    inputs, result = json.loads(inputs_file().read_text()), json.loads(result_file().read_text())
    for each in result["variants"]:
        if each["name"].startswith("coreml-") and each["status"] in {"published", "unchanged"}:
            hub = ["--hub", inputs["hub"]] if inputs["hub"] else []
            run_sdhub(["compile", "--json", *hub, "--", each["repo"]])


def read_inputs() -> dict[str, Any]:
    """The inputs, each of the form it has to have. Raises Refused."""
    inputs: dict[str, Any] = {}
    for name, form in FORMS.items():
        text = os.environ.get(f"SDHUB_{name.upper()}", "").strip()
        if len(text) > MAX_TEXT or not re.fullmatch(form, text):
            raise Refused(f"the input {name} is not as it should be: {text[:80]!r}")
        inputs[name] = text
    if ".." in inputs["recipe"]:
        raise Refused("the recipe is a file of this repository")
    for name in FLAGS:
        text = os.environ.get(f"SDHUB_{name.upper().replace('-', '_')}", "").strip() or "false"
        if text not in {"true", "false"}:
            raise Refused(f"the input {name} is true or false, not {text[:80]!r}")
        inputs[name] = text == "true"
    return inputs


def plan_arguments(inputs: dict[str, Any]) -> list[str]:
    """Of `sdhub plan`."""
    return ["plan", "--json", *_what(inputs, inputs["variants"].replace(",", " ").split()), "--", inputs["source"]]


def publish_arguments(inputs: dict[str, Any]) -> list[str]:
    """Of `sdhub publish`."""
    arguments = ["publish", "--json", "--yes", *_what(inputs, inputs["variants"])]
    for name in ("license", "hub"):
        if inputs[name]:
            arguments += [f"--{name}", inputs[name]]
    arguments += [f"--{name}" for name in ("create-pr", "private", "space") if inputs[name]]
    return [*arguments, "--", inputs["source"]]


def _what(inputs: dict[str, Any], variants: list[str]) -> list[str]:
    arguments = [word for name in variants for word in ("--variant", name)]
    if inputs["recipe"]:
        arguments += ["--recipe", inputs["recipe"]]
    if inputs["namespace"]:
        arguments += ["--to", inputs["namespace"]]
    return arguments


def is_published(plan: dict[str, Any], variant: dict[str, Any], inputs: dict[str, Any]) -> bool:
    """Whether the Hub has this recipe of this commit; no where that cannot be told."""
    from sdhub.core.endpoint import endpoint
    from sdhub.core.errors import SdhubError
    from sdhub.core.hub import Hub
    from sdhub.watching.orders import Task
    from sdhub.watching.published import is_published as asked

    sha, repo = plan["sha"], variant["repo"]
    if not sha or repo.startswith("NAMESPACE/") or inputs["hub"] == "local":
        return False
    hub = endpoint(inputs["hub"] or None)
    backend = variant["name"].partition("-")[0]
    task = Task(plan["source"], sha, variant["recipe_sha256"], variant["name"], backend, repo)
    try:
        return asked(task, Hub(hub.url, os.environ.get("SDHUB_TOKEN") or None))
    except SdhubError:
        return False


def check_size(plan: dict[str, Any], variants: list[dict[str, Any]]) -> None:
    """Raises Refused where disk or memory of this runner will not do."""
    home = Path(os.environ["SDHUB_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    disk = plan["download"]["bytes"] + DISK_COPIES * sum(each["bytes"] for each in variants) + RESERVE
    memory = max(each["peak_bytes"] for each in variants)
    free, there = shutil.disk_usage(home).free, total_memory()
    way_out = "take a larger runner, or send it to HF Jobs (sdhub watch --on hf-jobs)"
    if disk > free:
        raise Refused(f"it takes about {disk / GB:.0f} GB of disk, and {free / GB:.0f} GB are free: {way_out}", 1)
    if memory > there:
        raise Refused(
            f"it takes about {memory / GB:.0f} GB of memory, and there are {there / GB:.0f} GB: {way_out}", 1
        )


def total_memory() -> int:
    """Bytes of memory; `SDHUB_MEMORY` says otherwise."""
    said = os.environ.get("SDHUB_MEMORY", "")
    return int(said) if said.isdigit() else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def run_sdhub(arguments: list[str]) -> str:
    """What `sdhub` prints on standard output; its progress goes to the log. Raises Refused."""
    environment = {name: value for name, value in os.environ.items() if name != "SDHUB_TOKEN" and value}
    if os.environ.get("SDHUB_TOKEN"):
        environment["HF_TOKEN"] = os.environ["SDHUB_TOKEN"]
    command = [sys.executable, "-I", "-m", "sdhub", *arguments]
    with silenced():
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        message = f"sdhub {arguments[0]} ended with {done.returncode}: see the lines above"
        raise Refused(message, done.returncode, done.stdout)
    return done.stdout


class silenced:
    """The runner takes no commands from what is printed in the block."""

    def __enter__(self) -> None:
        self.word = secrets.token_hex(16)
        print(f"::stop-commands::{self.word}", flush=True)

    def __exit__(self, *_: object) -> None:
        print(f"::{self.word}::", flush=True)


def inputs_file() -> Path:
    """Where `look` leaves the inputs it accepted."""
    return Path(os.environ["RUNNER_TEMP"]) / "sdhub-inputs.json"


def result_file() -> Path:
    """Where `publish` leaves its result."""
    return Path(os.environ["RUNNER_TEMP"]) / "sdhub-result.json"


def output(name: str, value: str) -> None:
    """An output of the step; the value cannot end itself."""
    mark = secrets.token_hex(16)
    with Path(os.environ["GITHUB_OUTPUT"]).open("a", encoding="utf-8") as stream:
        stream.write(f"{name}<<{mark}\n{value}\n{mark}\n")


def summary(text: str) -> None:
    """Markdown for the job's page."""
    with Path(os.environ["GITHUB_STEP_SUMMARY"]).open("a", encoding="utf-8") as stream:
        stream.write(text)


def report(result: dict[str, Any]) -> str:
    """The evidence as a table, and the contact sheets."""
    source = result["source"]
    lines = [
        f"### {code(source['id'])} at {code(source['sha'][:12])}",
        "",
        "| variant | status | size | speed | PSNR | SSIM |",
        "|---|---|---:|---:|---:|---:|",
        *(_row(each) for each in result["variants"]),
        "",
    ]
    for each in result["variants"]:
        url, commit = each["url"], each["commit"]
        if (
            url
            and commit
            and re.fullmatch(r"https?://[A-Za-z0-9.:/_-]+", url)
            and re.fullmatch(r"[0-9a-f]+", commit)
        ):
            lines += [f"![{each['name']}]({url}/resolve/{commit}/evidence/contact_sheet.png)", ""]
    return "\n".join(lines) + "\n"


def _row(each: dict[str, Any]) -> str:
    evidence, url = each["evidence"] or {}, each["pull_request"] or each["url"]
    name = f"[{code(each['name'])}]({url})" if url else code(each["name"])
    status = each["status"] if each["status"] != "failed" else f"failed: {code(each['reason'] or '')}"
    cells = [
        name,
        status,
        _figure(each["bytes"], lambda value: f"{value / 1e6:.1f} MB"),
        _figure(evidence.get("latency_ratio"), lambda value: f"{value:.2f} ×"),
        _figure(evidence.get("psnr_db"), lambda value: f"{value:.1f} dB"),
        _figure(evidence.get("ssim"), lambda value: f"{value:.4f}"),
    ]
    return "| " + " | ".join(cells) + " |"


def _figure(value: float | None, form: Callable[[float], str]) -> str:
    return "–" if value is None else form(value)


def code(text: str) -> str:
    """Text as it is, in Markdown: no line breaks, no table bars, no ends of code."""
    clean = "".join(char if char.isprintable() and char not in "`|" else " " for char in str(text))[:200].strip()
    return f"`{clean or ' '}`"


def main() -> int:
    """Run a step; a refusal is an error of the job."""
    try:
        {"look": look, "publish": publish, "compile": compile_bundles}[sys.argv[1]]()
    except Refused as error:
        line = str(error).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
        print(f"::error::{line}", flush=True)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())

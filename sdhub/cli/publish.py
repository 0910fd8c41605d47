"""`sdhub publish`: the main job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sdhub.cli import console, options
from sdhub.cli.console import ConsoleProgress, emit, say, talk
from sdhub.cli.examples import examples

if TYPE_CHECKING:
    from sdhub.publish import Published, Report

EXAMPLES = examples(
    "sdhub publish demo --to demo --hub local",
    "sdhub publish org/model --variant openvino-int8 --private",
    "sdhub publish ./my-finetune --license openrail++ --dry-run",
    "sdhub publish org/model --recipe mine.json --create-pr",
)


def publish(
    source: options.Source,
    to: options.To = None,
    hub: options.Hub = None,
    variant: options.Variants = None,
    recipe: options.Recipe = None,
    fast: options.Fast = False,
    attention: options.Attentions = None,
    size: options.Sizes = None,
    lora: options.Loras = None,
    config: options.Config = None,
    license: options.License = None,
    private: Annotated[bool, typer.Option("--private", help="Publish into private repositories.")] = False,
    allow_public: Annotated[
        bool, typer.Option("--allow-public", help="Let a private or gated source become public.")
    ] = False,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open pull requests instead of committing.")
    ] = False,
    prompts: options.Prompts = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before publishing.")] = False,
    json: options.Json = False,
) -> None:
    """Make variants of a checkpoint, measure them, publish them, and check that they load."""
    from sdhub.cli import plan as plan_command
    from sdhub.plan import sampling_for
    from sdhub.publish import Options, prepare, run
    from sdhub.sources import resolve

    checkpoint = resolve(source, lora, config)
    wanted = Options(
        namespace=to,
        variants=tuple(variant or ()),
        recipe=recipe,
        license=license,
        private=private,
        allow_public=allow_public,
        create_pr=create_pr,
        sampling=sampling_for(checkpoint, prompts=prompts, steps=steps, guidance=guidance),
        adjustment=options.adjustment(fast, attention, size),
    )
    with prepare(checkpoint, wanted, hub=hub, dry_run=dry_run) as job:
        if dry_run:
            emit(job.plan.document()) if json else plan_command.show(job.plan)
            return
        if not yes and not json and hub != "local" and _asks():
            plan_command.show(job.plan)
            typer.confirm(f"Publish to {job.hub.url}?", abort=True, err=True)
        report = run(job, ConsoleProgress())
    if json:
        emit(report.document())
    else:
        show(report)
    leave(report)


def show(report: Report) -> None:
    """The result for people."""
    for each in report.variants:
        say("")
        if each.status == "failed":
            say(f"{each.name}: failed: {each.reason}")
            continue
        say(f"{each.name}: {_became(each)}")
        say(f"  {each.url}")
        say(f"  {_figures(each)}")


def leave(report: Report) -> None:
    """End with the exit code of the first failure, if there was one; its line goes to standard error."""
    from sdhub.cli.console import fail

    failed = [each for each in report.variants if each.error]
    for each in failed:
        if each.error:
            fail(f"{each.name}: {each.error.message}", each.error.hint)
    if failed and failed[0].error:
        raise typer.Exit(failed[0].error.exit_code)


def _became(each: Published) -> str:
    if each.status == "unchanged":
        return "unchanged, nothing was uploaded"
    if each.status == "proposed":
        return f"proposed as a pull request, {console.size(each.uploaded_bytes)} uploaded"
    return f"published and checked, {console.size(each.uploaded_bytes)} uploaded"


def _figures(each: Published) -> str:
    evidence = each.evidence
    psnr, latency = evidence["psnr_db"], evidence["latency"]
    speed = f"{latency['ratio']:.2f} times the speed of torch float32" if latency else "speed not measured here"
    return (
        f"{console.size(evidence['bytes'])} from {console.size(evidence['base_bytes'])}, "
        f"{speed}, "
        f"PSNR {'infinite' if psnr is None else f'{psnr:.1f} dB'}, SSIM {evidence['ssim']:.4f}"
    )


def _asks() -> bool:
    import sys

    if sys.stdin.isatty():
        return True
    talk("not asking: standard input is no terminal")
    return False

"""The program: its commands, and what each exception becomes."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer

from sdhub.cli import (
    analyze,
    build,
    cache,
    card,
    compile,
    demo,
    generate,
    hub,
    inspect,
    jobs,
    plan,
    publish,
    recipe,
    space,
    tools,
    verify,
    watch,
)
from sdhub.cli.console import fail
from sdhub.cli.interrupts import INTERRUPTED
from sdhub.core.disk import watched
from sdhub.core.errors import SdhubError
from sdhub.workflow.cache import sweep

# Of the click that typer uses: newer ones carry one of their own, under a private name.
CLICK_EXCEPTION: Any = next(each for each in typer.BadParameter.__mro__ if each.__name__ == "ClickException")

app = typer.Typer(
    name="sdhub",
    help="Put diffusion models on devices: quantized variants of any checkpoint, measured and published.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog=inspect.EXAMPLES)(inspect.inspect)
app.command(epilog=plan.EXAMPLES)(plan.plan)
app.command(epilog=publish.EXAMPLES)(publish.publish)
app.command(epilog=analyze.EXAMPLES)(analyze.analyze)
app.command(epilog=build.EXAMPLES)(build.build)
app.command(epilog=compile.EXAMPLES)(compile.compile)
app.command(epilog=generate.EXAMPLES)(generate.generate)
app.command(epilog=tools.PACKAGE_EXAMPLES)(tools.package)
app.command(epilog=tools.PUSH_EXAMPLES)(tools.push)
app.command(epilog=card.EXAMPLES)(card.card)
app.command(epilog=verify.EXAMPLES)(verify.verify)
app.command(epilog=watch.EXAMPLES)(watch.watch)
app.command(epilog=demo.EXAMPLES)(demo.demo)
app.add_typer(recipe.app, name="recipe")
app.add_typer(space.app, name="space")
app.add_typer(hub.app, name="hub")
app.add_typer(cache.app, name="cache")
app.add_typer(jobs.app, name="jobs")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        sys.stdout.write(f"sdhub {metadata.version('sdhub')}\n")
        raise typer.Exit


@app.callback()
def _global(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", is_eager=True, callback=_version
    ),
) -> None:
    sweep()


def run() -> int:
    """Run the program; its exit code. Raises KeyboardInterrupt where the user ended it."""
    try:
        with watched():
            code = app(standalone_mode=False) or 0
    except SdhubError as error:
        fail(error.message, error.hint)
        return error.exit_code
    except CLICK_EXCEPTION as error:
        if "Did you mean" in error.message:  # typer said it, and click would say it again
            error.possibilities = None
        error.show()
        return int(error.exit_code)
    except typer.Abort:  # of a question, or an interrupt
        raise KeyboardInterrupt from None
    except BrokenPipeError:
        # Python flushes standard output at exit, and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        fail(f"{error.filename or 'the system'}: {error.strerror or error}")
        return 1
    if code == INTERRUPTED:  # what typer makes of an interrupt
        raise KeyboardInterrupt
    return int(code)

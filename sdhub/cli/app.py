"""The program: its commands, and what each exception becomes."""

from __future__ import annotations

import os
import sys

import typer
from click.exceptions import Abort, ClickException

from sdhub.cache import sweep
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
    plan,
    publish,
    recipe,
    space,
    tools,
    verify,
    watch,
)
from sdhub.cli.console import fail
from sdhub.disk import watched
from sdhub.errors import SdhubError

INTERRUPTED = 130

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


@app.callback()
def _global(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    if version:
        from importlib import metadata

        sys.stdout.write(f"sdhub {metadata.version('sdhub')}\n")
        raise typer.Exit
    sweep()


def main() -> None:
    """Run the program. Exit codes: 0 done, 1 the work failed, 2 the call is wrong, 3 refused, 130 interrupted."""
    try:
        with watched():
            code = app(standalone_mode=False) or 0
        sys.exit(code)
    except SdhubError as error:
        fail(error.message, error.hint)
        sys.exit(error.exit_code)
    except ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, Abort):
        fail("interrupted", "run the same command again: finished stages are kept")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # Python flushes standard output at exit, and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        fail(f"{error.filename or 'the system'}: {error.strerror or error}")
        sys.exit(1)

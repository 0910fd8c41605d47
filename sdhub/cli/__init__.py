"""The command line: one file per verb."""

import sys

from sdhub.cli.interrupts import Interrupts

__all__ = ["main"]


def main() -> None:
    """Run the program. Exit codes: 0 done, 1 the work failed, 2 the call is wrong, 3 refused, 130 interrupted."""
    interrupts = Interrupts()
    interrupts.listen()
    try:
        from sdhub.cli.app import run

        code = run()
    except BaseException as error:
        if not (interrupts.came or isinstance(error, KeyboardInterrupt)):
            raise
        code = interrupts.tell()
    sys.exit(code)

"""`python -m sdhub.hub`: serve the embedded Hub."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from sdhub.hub.errors import StartError
from sdhub.hub.server import PORT, serve


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments and serve; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sdhub.hub", description="A Hub on this machine.")
    parser.add_argument("--root", type=Path, required=True, help="folder for its data")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=PORT, help=f"port; 0 picks a free one (default: {PORT})")
    parser.add_argument("--users", type=Path, help="JSON list of users; without it any token may write")
    parser.add_argument("--ready-file", type=Path, help="written as JSON once connections are accepted")
    parser.add_argument("--exit-with-parent", action="store_true", help="end when standard input does")
    parser.add_argument(
        "--spaces",
        choices=["present", "own"],
        help="run the apps of Spaces, in the present environment or in ones made from their requirements.txt: the "
        "code of all who may write here",
    )
    parser.add_argument(
        "--jobs", action="store_true", help="run jobs on this machine: the code of all who may write here"
    )
    parser.add_argument("--quiet", action="store_true", help="do not say the address")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        serve(
            options.root,
            options.host,
            options.port,
            users=options.users,
            ready_file=options.ready_file,
            exit_with_parent=options.exit_with_parent,
            run_spaces=options.spaces,
            run_jobs=options.jobs,
            on_ready=None if options.quiet else _say,
        )
    except StartError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _say(url: str) -> None:
    sys.stderr.write(f"The Hub is at {url}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())

"""From published variants to their demo Space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sdhub.core import nextsteps
from sdhub.core.access import check_token
from sdhub.core.errors import UsageError
from sdhub.core.hub import Hub
from sdhub.core.progress import SILENT, Progress
from sdhub.publishing.names import repository_id
from sdhub.spaces.demo import demo_files, fit, space_name
from sdhub.spaces.deploy import HARDWARE, Deployed, deploy
from sdhub.spaces.read import read_shown

TOKEN = "HF_TOKEN"  # noqa: S105 — a name


def deploy_demo(
    repos: Sequence[str],
    *,
    hub: Hub,
    to: str | None = None,
    hardware: str = HARDWARE,
    private: bool = False,
    secrets: Mapping[str, str] | None = None,
    progress: Progress = SILENT,
) -> Deployed:
    """Deploy the demo Space of published variants, `NAMESPACE/NAME` (default: beside the first).

    Those that the hardware cannot run are left away. A Space of private variants is private, and reads them
    with the secret `HF_TOKEN`. Raises what `deploy` raises; UnsupportedError where none can be run; UsageError for
    names that are none, and where a private variant cannot be read.
    """
    shown = fit([read_shown(repo, hub) for repo in repos], hardware)
    name = space_name(shown) if to is None else repository_id(*_split(to))
    check_token(hub, name.partition("/")[0])
    closed = [each.repo_id for each in shown if each.private]
    if closed and TOKEN not in (secrets or {}):
        raise UsageError(
            f"{closed[0]} is private, and a Space cannot read it without a token",
            hint=f"give one that may only read: {TOKEN}=… {nextsteps.deploy_private(closed[0])}",
        )
    return deploy(
        name,
        demo_files(shown),
        hub=hub,
        hardware=hardware,
        private=private or bool(closed),
        secrets=secrets,
        progress=progress,
    )


def _split(name: str) -> tuple[str, str]:
    namespace, slash, rest = name.partition("/")
    if not slash:
        raise UsageError(f"{name[:100]!r} is no Space", hint="give NAMESPACE/NAME")
    return namespace, rest

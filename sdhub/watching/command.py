"""The `sdhub publish` that does an order elsewhere."""

from __future__ import annotations

from sdhub.watching.orders import Order
from sdhub.workflow.options import Options


def publish_arguments(order: Order, options: Options) -> list[str]:
    """The arguments of `sdhub` for an order: `publish SOURCE@SHA --variant … --to …`."""
    arguments = ["publish", order.source, "--yes", "--json"]
    for variant in order.variants:
        arguments += ["--variant", variant]
    if options.namespace:
        arguments += ["--to", options.namespace]
    if options.license:
        arguments += ["--license", options.license]
    flags = {
        "--private": options.private,
        "--allow-public": options.allow_public,
        "--create-pr": options.create_pr,
    }
    return arguments + [flag for flag, given in flags.items() if given]

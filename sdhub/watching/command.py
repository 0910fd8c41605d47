"""The `sdhub publish` that does an order elsewhere."""

from __future__ import annotations

from sdhub.watching.orders import Order
from sdhub.workflow.options import Options


def publish_arguments(order: Order, options: Options) -> list[str]:
    """The arguments of `sdhub` for an order: `publish SOURCE@SHA --variant … --to …`."""
    variants = [word for each in order.variants for word in ("--variant", each)]
    to = ["--to", options.namespace] if options.namespace else []
    return ["publish", order.source, "--yes", "--json", *variants, *to, *words_of(options)]


def words_of(options: Options) -> list[str]:
    """What `options` say besides variants, recipe and namespace."""
    flags = {
        "--private": options.private,
        "--allow-public": options.allow_public,
        "--create-pr": options.create_pr,
    }
    license = ["--license", options.license] if options.license else []
    return license + [flag for flag, given in flags.items() if given]

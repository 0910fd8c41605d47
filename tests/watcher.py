"""A watcher to be killed: `python -m tests.watcher HUB STATE`.

It watches `authors` for OpenVINO variants; what it makes of each is a small folder instead of a variant, pushed as
`publish` pushes (one commit of what differs), so that a test sees many in little time.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from sdhub.core.hub import Hub
from sdhub.publishing.push import push
from sdhub.watching.dispatch import one_by_one
from sdhub.watching.orders import Order, Outcome
from sdhub.watching.query import Query
from sdhub.watching.state import State
from sdhub.watching.watch import Watcher
from sdhub.workflow.options import Options


class Small:
    """Pushes `sdhub.json` and a file for each task, in one commit."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    def __call__(self, orders: Iterable[Order]) -> Iterator[tuple[Order, Sequence[Outcome]]]:
        return one_by_one(orders, self._do)

    def _do(self, order: Order) -> list[Outcome]:
        return [self._one(order, number) for number in range(len(order.tasks))]

    def _one(self, order: Order, number: int) -> Outcome:
        task = order.tasks[number]
        with tempfile.TemporaryDirectory() as folder:
            manifest = {
                "source": {"id": task.repository, "sha": task.sha},
                "recipe_sha256": task.recipe,
                "files": {},
            }
            Path(folder, "sdhub.json").write_text(json.dumps(manifest))
            Path(folder, "variant.txt").write_text(task.key)
            time.sleep(0.02)  # a moment to be killed at
            pushed = push(
                Path(folder),
                task.target,
                hub=self.hub,
                message=f"variant {task.key}",
            )
            time.sleep(0.02)
        return Outcome("done", pushed.url)


def main() -> None:
    hub = Hub(sys.argv[1], "local")
    with State(Path(sys.argv[2])) as state:
        query = Query(authors=("authors",))
        options = Options(namespace="variants", variants=("openvino-int8",))
        Watcher(query, options, state, Small(hub), source=hub, target=hub).round()


if __name__ == "__main__":
    main()

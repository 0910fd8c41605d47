"""Layer after layer, several at a time, within a bound of memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from sdhub.core.errors import SdhubError

Result = TypeVar("Result")


def each_layer(
    names: Iterable[str],
    work: Callable[[str], Result],
    *,
    cost: Callable[[str], int],
    memory: int,
    workers: int | None = None,
) -> Iterator[tuple[str, Result]]:
    """(name, `work(name)`) of every layer, in the order of `names`; up to `workers` are worked on at once.

    `cost(name)`: bytes that a layer takes from the start of its work until its result has been used; those under
    way take at most `memory` together, and a layer that needs more than that is worked on alone. `workers`: None
    for as many as torch has threads, which they share out among them, so that a layer's result does not depend on
    the others; 1: in this thread, without any other (what a GPU does one after another). Stop asking for results
    and nothing further is begun.

    Raises what `work` raises; the message of an SdhubError begins with the layer's name.
    """
    total = torch.get_num_threads()
    workers = workers or total
    threads = max(total // workers, 1)

    def labelled(name: str) -> Result:
        torch.set_num_threads(threads)
        try:
            return work(name)
        except SdhubError as error:
            raise type(error)(f"{name}: {error.message}", hint=error.hint) from error

    if workers == 1:
        yield from ((name, labelled(name)) for name in names)
        return
    begun: deque[tuple[str, int, Future[Result]]] = deque()
    held = 0
    pool = ThreadPoolExecutor(workers)
    try:
        for name in names:
            size = cost(name)
            while begun and (held + size > memory or len(begun) > workers or begun[0][2].done()):
                first, freed, future = begun.popleft()
                yield first, future.result()
                del future
                held -= freed
            begun.append((name, size, pool.submit(labelled, name)))
            held += size
        while begun:
            first, _, future = begun.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(total)

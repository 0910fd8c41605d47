"""Several layers at once: order, the bound of memory, cancellation, errors by name."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from sdhub.compression.layers import each_layer
from sdhub.compression.palettize import palettize
from sdhub.core.errors import UsageError

NAMES = [f"layer{number}" for number in range(12)]


class Meter:
    """How much is under way at once."""

    def __init__(self, cost: int) -> None:
        self.cost, self.now, self.most, self.begun = cost, 0, 0, 0
        self.lock = threading.Lock()

    def __call__(self, name: str) -> str:
        with self.lock:
            self.begun += 1
            self.now += self.cost
            self.most = max(self.most, self.now)
        time.sleep(0.005 if name != "layer0" else 0.05)
        with self.lock:
            self.now -= self.cost
        return name.upper()


def test_results_come_in_the_order_of_names() -> None:
    meter = Meter(1)
    found = list(each_layer(NAMES, meter, cost=lambda _: 1, memory=100, workers=4))
    assert found == [(name, name.upper()) for name in NAMES]
    assert 1 < meter.most <= 4


@pytest.mark.parametrize(("memory", "most"), [(10, 10), (25, 20), (5, 10)])
def test_no_more_is_held_than_memory_allows_and_a_larger_layer_goes_alone(memory: int, most: int) -> None:
    meter = Meter(10)
    assert len(list(each_layer(NAMES, meter, cost=lambda _: 10, memory=memory, workers=4))) == len(NAMES)
    assert meter.most <= most


def test_results_not_yet_taken_count_as_held() -> None:
    meter = Meter(10)
    results = each_layer(NAMES, meter, cost=lambda _: 10, memory=20, workers=2)
    next(results)
    time.sleep(0.1)
    assert meter.begun <= 3


def test_nothing_is_begun_after_the_caller_stops() -> None:
    meter = Meter(1)
    results = each_layer(NAMES, meter, cost=lambda _: 1, memory=100, workers=2)
    next(results)
    results.close()
    begun = meter.begun
    time.sleep(0.05)
    assert meter.begun == begun < len(NAMES)


def test_an_error_names_its_layer_and_threads_are_given_back() -> None:
    threads = torch.get_num_threads()
    weights = {name: torch.randn(8, 8) for name in NAMES}
    weights["layer7"][0, 0] = torch.nan
    with pytest.raises(UsageError, match=r"layer7: .*NaN"):
        list(each_layer(NAMES, lambda name: palettize(weights[name], 2), cost=lambda _: 1, memory=9))
    assert torch.get_num_threads() == threads


def test_workers_do_not_change_results() -> None:
    weights = {name: torch.randn(64, 64, generator=torch.Generator().manual_seed(3)) for name in NAMES}

    def tables(workers: int) -> list[torch.Tensor]:
        found = each_layer(
            NAMES, lambda name: palettize(weights[name], 4), cost=lambda _: 1, memory=9, workers=workers
        )
        return [palette.lut for _, palette in found]

    assert all(torch.equal(one, two) for one, two in zip(tables(1), tables(3), strict=True))

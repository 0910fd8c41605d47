"""Which treatment each layer gets, so that the errors add up to the least within a size.

Layers are independent in this model, so that the best choices of all sizes lie on the lower convex hulls of the
layers' (size, error) points (Shoham and Gersho, "Efficient bit allocation for an arbitrary set of quantizers",
1988): walking down the steepest steps of all hulls meets, at every step, the least error of that size. Between two
steps what is left of a budget is filled with the best steps that fit. Ties are broken by name: the same figures
give the same choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sdhub.core.errors import UsageError

LOYALTY = 0.5  # share of its error that a former choice is reckoned with, so that only 3 dB change it


@dataclass(frozen=True)
class Option:
    """One way to treat a layer: its size in bits, and the squared error that it brings."""

    size: int
    error: float


@dataclass(frozen=True)
class Choice:
    """The option (a number) of each layer, and their sums."""

    chosen: Mapping[str, int]
    size: int
    error: float


Options = Mapping[str, Sequence[Option]]


def path(options: Options) -> list[Choice]:
    """The choices that no other of their size or less excels, as far as hulls go; the smallest first."""
    return list(_walk(options))


def allocate(options: Options, size: int) -> Choice:
    """The choice of least error whose size is at most `size` bits.

    Its error is at most that of the best choice of a size smaller by one step of the last layer. Raises UsageError
    where even the smallest choice is larger.
    """
    best = None
    for choice in _walk(options):
        if choice.size > size:
            break
        best = choice
    if best is None:
        least = min((choice.size for choice in path(options)), default=0)
        raise UsageError(f"a budget of {size} bits is less than the {least} of the narrowest treatments")
    return _filled(options, best, size)


def loyal(options: Options, former: Mapping[str, int]) -> dict[str, list[Option]]:
    """`options` that favour former choices: another option must be twice as good to replace one."""
    return {
        name: [
            replace(option, error=option.error * LOYALTY) if former.get(name) == number else option
            for number, option in enumerate(found)
        ]
        for name, found in options.items()
    }


def total(options: Options, chosen: Mapping[str, int]) -> Choice:
    """A given choice with its sums."""
    found = [options[name][number] for name, number in chosen.items()]
    return Choice(dict(chosen), sum(each.size for each in found), sum(each.error for each in found))


def _walk(options: Options) -> Iterator[Choice]:
    """From the smallest choice down all hulls, the steepest step first."""
    hulls = {name: _hull(found) for name, found in options.items()}
    steps = []
    for name, hull in hulls.items():
        found = options[name]
        for place in range(1, len(hull)):
            before, after = found[hull[place - 1]], found[hull[place]]
            steps.append(((after.error - before.error) / (after.size - before.size), name, place))
    chosen = {name: hull[0] for name, hull in hulls.items()}
    now = total(options, chosen)
    yield now
    for _, name, place in sorted(steps):
        before, after = options[name][chosen[name]], options[name][hulls[name][place]]
        chosen[name] = hulls[name][place]
        now = Choice(dict(chosen), now.size + after.size - before.size, now.error + after.error - before.error)
        yield now


def _hull(found: Sequence[Option]) -> list[int]:
    """Numbers of the options on the lower convex hull, from the smallest to the one of least error."""
    if not found:
        raise UsageError("a layer without a treatment cannot be allocated")
    order = sorted(range(len(found)), key=lambda number: (found[number].size, found[number].error, number))
    hull: list[int] = []
    for number in order:
        point = found[number]
        if hull and point.error >= found[hull[-1]].error:
            continue
        while len(hull) > 1 and _above(found[hull[-2]], found[hull[-1]], point):
            hull.pop()
        if not hull or point.size > found[hull[-1]].size:
            hull.append(number)
    return hull


def _above(first: Option, middle: Option, last: Option) -> bool:
    """Whether `middle` lies on or above the line from `first` to `last`."""
    rise = (last.error - first.error) * (middle.size - first.size)
    return (middle.error - first.error) * (last.size - first.size) >= rise


def _filled(options: Options, choice: Choice, size: int) -> Choice:
    """The best single changes that still fit, one after another."""
    chosen, left = dict(choice.chosen), size - choice.size
    while True:
        gains = [
            ((now.error - option.error) / (option.size - now.size), name, number)
            for name, found in options.items()
            for now in (found[chosen[name]],)
            for number, option in enumerate(found)
            if 0 < option.size - now.size <= left and option.error < now.error
        ]
        if not gains:
            return total(options, chosen)
        _, name, number = min(gains, key=lambda gain: (-gain[0], gain[1], gain[2]))
        left -= options[name][number].size - options[name][chosen[name]].size
        chosen[name] = number

"""What a sweep varies, read from ``hydra.sweeper.params`` and the command line in Hydra's words."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from objrec.config.errors import UserError
from objrec.config.load import load_config


@dataclass(frozen=True)
class Choice:
    """One of some values, as typed."""

    values: tuple[str, ...]

    def samples(self) -> list[str]:
        """Return values to try on the configuration: not all of a long list, each takes a tenth of a second."""
        return [*self.values[:15], *self.values[15:][-1:]]


@dataclass(frozen=True)
class Interval:
    """A number between two ends, which belong to it."""

    low: float
    high: float
    log: bool
    whole: bool

    def samples(self) -> list[str]:
        """Return values to try on the configuration: both ends."""
        return [f"{round(v) if self.whole else v:g}" for v in (self.low, self.high)]


Dimension = Choice | Interval


def read_space(params: Mapping[str, Any], arguments: Sequence[str]) -> tuple[list[str], dict[str, Dimension]]:
    """Return (overrides that all trials share, what is varied by key). The command line wins over ``params``.

    Raises:
        UserError: a value that cannot be read, a logarithmic interval that does not begin above 0.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    fixed: dict[str, str] = {}
    space: dict[str, Dimension] = {}
    problems: list[str] = []
    for text in [*(f"{k}={v}" for k, v in params.items()), *arguments]:
        try:
            parsed = parser.parse_override(text)
            key = parsed.get_key_element()
            fixed.pop(key, None)
            space.pop(key, None)
            if parsed.is_sweep_override():
                space[key] = _dimension(parsed)
            else:
                fixed[key] = text
        except UserError as error:
            problems += [f"{text}: {m}" for m in error.messages]
        except Exception as error:
            problems.append(f"{text}: cannot be read ({str(error).splitlines()[0]})")
    if problems:
        raise UserError(problems)
    return list(fixed.values()), space


def _dimension(parsed: Any) -> Dimension:
    if parsed.is_discrete_sweep():
        return Choice(tuple(dict.fromkeys(parsed.sweep_string_iterator())))
    value = parsed.value()
    low, high = value.start, value.end
    log = "log" in value.tags
    if not low < high:
        raise UserError("an interval should go from the smaller to the larger end")
    if log and low <= 0:
        raise UserError("a logarithmic interval should start above 0")
    return Interval(float(low), float(high), log=log, whole=isinstance(low, int) and isinstance(high, int))


def combinations(space: Mapping[str, Dimension]) -> Iterator[dict[str, str]]:
    """Yield every combination of a grid, which has no intervals, the last key varying fastest."""
    values = [d.values for d in space.values() if isinstance(d, Choice)]
    for combination in itertools.product(*values):
        yield dict(zip(space, combination, strict=True))


def check_values(fixed: Sequence[str], space: Mapping[str, Dimension], keys: Collection[str] | None = None) -> None:
    """Compose the configuration with values of each key in turn (of ``keys`` only).

    Raises:
        UserError: with everything that stands against any value.
    """
    first = {key: d.samples()[0] for key, d in space.items()}
    others = [{**first, k: v} for k, d in space.items() if keys is None or k in keys for v in d.samples()[1:]]
    problems: list[str] = []
    for trial in (first, *others):
        try:
            load_config([*fixed, *(f"{k}={v}" for k, v in trial.items())])
        except UserError as error:
            problems += [m for m in error.messages if m not in problems]
    if problems:
        raise UserError(problems)

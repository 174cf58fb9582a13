"""What a sweep varies, in Hydra's words. Every value of every list is tried on the configuration before any work."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from objrec.config.compose import compose_node, group_options, to_data
from objrec.config.diagnose import parse_overrides, type_problem
from objrec.config.errors import UserError
from objrec.config.load import load_config, validate
from objrec.config.quoting import quote
from objrec.config.rules import without_effect
from objrec.config.schema import Config

MOST_COMBINATIONS = 1000  # that are searched for one in which a setting has an effect


@dataclass(frozen=True)
class Choice:
    """One of some values, as typed."""

    values: tuple[str, ...]

    def samples(self) -> list[str]:
        """Return the values to try on the configuration: all."""
        return [*self.values]


@dataclass(frozen=True)
class Interval:
    """A number between two ends, which belong to it."""

    low: float
    high: float
    log: bool
    whole: bool

    def samples(self) -> list[str]:
        """Return values to try on the configuration: both ends and one between them."""
        if self.whole:
            return [str(round(v)) for v in (self.low, self.high)]
        between = self.low + 0.382 * (self.high - self.low)
        return [f"{v:.12g}" if v % 1 else f"{v:.1f}" for v in (self.low, between, self.high)]


Dimension = Choice | Interval
Space = dict[str, Dimension]


def read_space(params: Mapping[str, Any], arguments: Sequence[str]) -> tuple[list[str], Space]:
    """Return (overrides that all trials share, what is varied by key). The command line wins over ``params``.

    Raises:
        UserError: a value that cannot be read, a logarithmic interval that does not begin above 0.
    """
    flags = [o for o in arguments if o.startswith("--config-dir=")]
    fixed: dict[str, str] = {}
    space: Space = {}
    problems: list[str] = []
    for text, parsed in parse_overrides([*(f"{k}={v}" for k, v in params.items()), *arguments]):
        if isinstance(parsed, Exception):
            problems.append(f"{text}: cannot be read ({str(parsed).splitlines()[0]})")
            continue
        key = parsed.get_key_element()
        fixed.pop(key, None)
        space.pop(key, None)
        if not parsed.is_sweep_override():
            fixed[key] = text
            continue
        try:
            space[key] = _dimension(parsed, flags)
        except UserError as error:
            problems += [f"{text}: {m}" for m in error.messages]
    if problems:
        raise UserError(problems)
    return [*flags, *fixed.values()], space


def read_command(overrides: Sequence[str]) -> tuple[list[str], Space]:
    """Return what ``read_space`` does, for a command line and the ``hydra.sweeper.params`` of the files it chooses."""
    overrides = [quote(o, sweeps=True) for o in overrides]
    shared = [o for o in overrides if o.startswith("--config-dir=")]
    shared += [o for o, p in parse_overrides(overrides) if isinstance(p, Exception) or not p.is_sweep_override()]
    params: Mapping[str, Any] = {}
    if any(o.startswith(("sweep=", "experiment=", "hydra.sweeper", "--config-dir=")) for o in shared):
        try:
            params = compose_node(shared, hydra=True).hydra.sweeper.get("params") or {}
        except Exception:
            load_config([o for o in shared if not o.startswith("hydra")], effects=False)  # raises every fault at once
            raise
    return read_space(params, overrides)


def _dimension(parsed: Any, flags: Sequence[str]) -> Dimension:
    value = parsed.value()
    kind = type(value).__name__
    if kind == "Glob":
        options = group_options(parsed.key_or_group, flags)
        if options is None:
            raise UserError("glob(...) chooses among the files of a group, as in optimizer=glob(*)")
        names = value.filter(options)
        if not names:
            raise UserError(f"no file of this group has such a name: {', '.join(options)}")
        return Choice(tuple(names))
    if kind == "RangeSweep":
        count = max(0, math.ceil((value.stop - value.start) / value.step))
        if not count:
            raise UserError("an empty range")
        numbers = (value.start + i * value.step for i in range(count))
        return Choice(tuple(str(v) if isinstance(v, int) else f"{v:.12g}" for v in numbers))
    if parsed.is_discrete_sweep():
        return Choice(tuple(dict.fromkeys(parsed.sweep_string_iterator())))
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


def check_values(fixed: Sequence[str], space: Mapping[str, Dimension]) -> Config:
    """Try every value of each key in turn on the configuration; return that of the first values.

    A key needs an effect in one combination only: ``train.loss=cross_entropy,focal train.focal_gamma=1,2`` is a sweep.

    Raises:
        UserError: with everything that stands against any value.
    """
    first = {key: d.samples()[0] for key, d in space.items()}
    trials = [first, *({**first, k: v} for k, d in space.items() for v in d.samples()[1:])]
    check = _Check(fixed, space)
    config = None
    for trial in trials:
        config = check.trial(trial) if trial is first else check.trial(trial) and config
    if check.idle and not check.problems:
        every = itertools.product(*(d.samples() for d in space.values()))
        for values in itertools.islice(every, MOST_COMBINATIONS):
            check.effects(check.composed(dict(zip(space, values, strict=True))))
            if not check.idle:
                break
    if (problems := [*check.problems, *check.idle.values()]) or config is None:
        raise UserError(list(dict.fromkeys(problems)))
    return config


def check_size(config: Config, space: Mapping[str, Dimension]) -> None:
    """Raise UserError for a grid of more combinations than ``sweep.max_trials``, which would be cut short."""
    total = math.prod(len(d.samples()) for d in space.values())
    if config.sweep.algorithm == "grid" and total > config.sweep.max_trials:
        raise UserError(
            f"sweep.max_trials={config.sweep.max_trials}: the grid has {total} combinations: "
            f"sweep.max_trials={total} runs all, sweep=random draws some"
        )


@dataclass
class _Check:
    """Tries trials on one composed configuration: a value is put in place, only another file of a group composes anew.

    Attributes:
        problems: what stands against values that were tried.
        idle: by key, the complaint about a setting without an effect in all trials so far.
    """

    fixed: Sequence[str]
    space: Mapping[str, Dimension]
    problems: list[str] = field(default_factory=list)
    idle: dict[str, str] = field(default_factory=dict)
    _working: set[str] = field(default_factory=set)
    _nodes: dict[tuple[str, ...], Any] = field(default_factory=dict)

    def trial(self, values: Mapping[str, str]) -> Config | None:
        """Return the trial's configuration, or None after noting what is wrong with it."""
        try:
            data = self.composed(values)
        except Exception:  # an unknown key or file: find out which, and with what name nearby
            try:
                return load_config([*self.fixed, *_words(values)], effects=False)
            except UserError as error:
                self.problems += error.messages
                return None
        config, wrong = validate(data)
        base = to_data(self._node(values))
        wrong += [p for key in values if (p := type_problem(f"{key}={values[key]}", key, base, data))]
        if not wrong and not self._nodes.get(()):
            self._nodes[()] = True  # once with all other checks
            try:
                load_config([*self.fixed, *_words(values)], effects=False)
            except UserError as error:
                wrong += error.messages
        self.problems += wrong
        self.effects(data)
        return None if wrong else config

    def composed(self, values: Mapping[str, str]) -> dict[str, Any]:
        from omegaconf import OmegaConf

        node = copy.deepcopy(self._node(values))
        for _, parsed in parse_overrides(_words({k: v for k, v in values.items() if _is_value(k)})):
            if isinstance(parsed, Exception):
                raise parsed
            OmegaConf.update(node, parsed.key_or_group, parsed.value())
        return to_data(node)

    def _node(self, values: Mapping[str, str]) -> Any:
        """Compose the configuration of these groups, once."""
        words = (*self.fixed, *_words({k: v for k, v in values.items() if not _is_value(k)}))
        if words not in self._nodes:
            self._nodes[words] = compose_node(words)
        return self._nodes[words]

    def effects(self, data: Mapping[str, Any]) -> None:
        """Note which settings have an effect in this trial."""
        for key in (*self.space, *(o.partition("=")[0] for o in self.fixed)):
            problem = without_effect(key, data)
            if problem is None:
                self._working.add(key)
                self.idle.pop(key, None)
            elif key not in self._working:
                self.idle.setdefault(key, problem)


def _is_value(key: str) -> bool:
    """Whether this is a key that may be set in a composed configuration, and not a group or a new node."""
    return not key.startswith(("+", "~")) and "@" not in key and group_options(key, ()) is None


def _words(values: Mapping[str, str]) -> list[str]:
    return [f"{k}={v}" for k, v in values.items()]


def effective(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that have an effect together: one trial's, without those that only others need."""
    data = to_data(compose_node(overrides))
    return [o for o in overrides if o.startswith("-") or without_effect(o.partition("=")[0], data) is None]

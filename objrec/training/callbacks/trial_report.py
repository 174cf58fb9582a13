"""Someone outside a training who wants to see each epoch and may end it: a sweep's study."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

# (epoch from 0, metrics such as val/acc); raises to end the training
Watcher = Callable[[int, Mapping[str, float]], None]
_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextmanager
def watched(watcher: Watcher | None) -> Iterator[None]:
    """Let ``watcher`` see every epoch that is trained inside."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def tell_watcher(epoch: int, metrics: Mapping[str, float]) -> None:
    """Show an epoch's metrics to whoever watches. Raises what the watcher raises."""
    watcher = _watcher.get()
    if watcher is not None:
        watcher(epoch, metrics)

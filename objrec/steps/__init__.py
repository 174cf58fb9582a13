"""One file per step. No step imports another."""

NAMES = ("ingest", "preprocess", "train", "evaluate", "deploy")  # in order


def load_steps(names: tuple[str, ...] = NAMES):  # type: ignore[no-untyped-def]
    """Return the declarations (``objrec.steps.base.Step``) in order."""
    from importlib import import_module

    return [import_module(f"objrec.steps.{name}").STEP for name in names]

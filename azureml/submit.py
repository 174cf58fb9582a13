"""``python azureml/submit.py [overrides] [dry_run=true]``: the five steps as an Azure ML pipeline job."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, and not this folder's files as modules

from objrec.config.cli import guard, overrides_of, wants_help  # noqa: E402
from objrec.submit.command import HELP, run  # noqa: E402


def main() -> int:
    if wants_help(sys.argv[1:]):
        print(HELP)
        return 0
    return guard(lambda: run(overrides_of(sys.argv[1:])))


if __name__ == "__main__":
    sys.exit(main())

"""The benchmarks that need nothing but this machine: ``python -m benchmarks [--tiny] [NAME ...]``.

``--tiny`` only shows that they run: seconds each, and figures that mean nothing. Others compare with programs, images
or weights that are not part of the project; each file says how it is started.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TINY: dict[str, list[str]] = {
    "startup": ["--runs", "1"],
    "training_overhead": ["--size", "32", "--batch", "4", "--steps", "4", "--rounds", "1"],
    "evaluate": ["--images", "20", "--size", "32", "--rounds", "1"],
    "dedup_growth": ["--most", "1000"],
    "ingest_http_clients": ["--count", "20"],
    "serving": ["--rounds", "1", "--seconds", "0.1", "--configurations", "onnxruntime:fp32"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TINY)}; all")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in TINY]:
        parser.error(f"no such benchmark: {', '.join(unknown)}")
    failed = []
    for name in arguments.names or TINY:
        print(f"# {name}", flush=True)
        options = TINY[name] if arguments.tiny else []
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], cwd=ROOT).returncode != 0:
            failed.append(name)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()

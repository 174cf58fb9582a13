"""What a process imported."""

from __future__ import annotations

HEAVY = {"torch", "torchvision", "lightning", "timm", "matplotlib", "azure", "mlflow", "sklearn"}


PROBE = """
import json, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
except SystemExit as end:
    status = end.code
else:
    status = 0
print("MODULES", json.dumps([status or 0, sorted({m.split(".")[0] for m in sys.modules})]))
"""

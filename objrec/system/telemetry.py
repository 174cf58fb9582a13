"""No library that we use calls home. Imported before any of them, in every command and every child process."""

from __future__ import annotations

import os
import sys
from typing import Final

# what a user has set stays
VARIABLES: Final = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime: a device id and a queue of events
    "MLFLOW_DISABLE_TELEMETRY": "true",  # an installation id and events
    "HF_HUB_DISABLE_TELEMETRY": "1",  # of huggingface_hub, by which timm fetches weights
}


def switch_off() -> None:
    """Switch off the telemetry of ONNX Runtime, MLflow, Hugging Face and OpenVINO for this process and its children.

    OpenVINO reports its own import where the package ``openvino_telemetry`` can be imported, and has no variable
    against it; it does without where that cannot be.
    """
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

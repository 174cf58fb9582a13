"""The peer of benchmarks/serving.py: LitServe with the same model, run eagerly by torch, and the same preprocessing.

Usage: litserve_peer.py MODEL_DIR PORT BATCH WORKERS
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Any

import litserve

# read here because LitServe's workers import this module anew
MODEL, PORT, BATCH, WORKERS = Path(sys.argv[1]), *(int(a) for a in sys.argv[2:5])


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        import torch

        from objrec.models.folder import load_model

        if WORKERS > 1:
            torch.set_num_threads(max(1, torch.get_num_threads() // WORKERS))
        self.torch = torch
        self.model, self.card = load_model(MODEL)
        self.preprocessing = self.card.preprocessing

    def decode_request(self, request: dict[str, str]) -> Any:
        data = base64.b64decode(request["data"])
        pixels = self.preprocessing.pixels(data, max_pixels=50_000_000)
        return self.torch.from_numpy(self.preprocessing.normalize(pixels[None])[0])

    def batch(self, inputs: list[Any]) -> Any:
        return self.torch.stack(inputs)

    def predict(self, batch: Any) -> Any:
        with self.torch.inference_mode():
            inputs = batch if batch.ndim == 4 else batch[None]
            return self.model(inputs).softmax(dim=1)

    def unbatch(self, output: Any) -> list[Any]:
        return list(output)

    def encode_response(self, output: Any) -> dict[str, Any]:
        probability, index = output.reshape(-1).max(dim=0)
        return {"label": self.card.class_names[int(index)], "probability": float(probability)}


if __name__ == "__main__":
    api = Classifier(max_batch_size=BATCH, batch_timeout=0.005 if BATCH > 1 else 0.0, api_path="/score")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=WORKERS, timeout=60)
    server.run(port=PORT, host="127.0.0.1", generate_client_file=False, log_level="error")

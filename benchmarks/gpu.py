"""What every result of a GPU says about where it comes from."""

import datetime
import importlib.metadata
from typing import Any

import torch

_PACKAGES = ("torch", "triton", "transformers", "flash-attn-4", "nvidia-cutlass-dsl")


def versions() -> dict[str, Any]:
    """Device, date, and versions of what matters."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {**found, "cuda": torch.version.cuda},
    }

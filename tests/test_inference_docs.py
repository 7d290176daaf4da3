"""What docs/inference.md shows works as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from training import small_checkpoint
from transformers import AutoConfig

from trainer.inference import MemorySettings


def test_the_code_of_the_document_runs(tmp_path: Path, monkeypatch: Any) -> None:
    folder = small_checkpoint(tmp_path / "runs" / "fot" / "model")
    config: Any = AutoConfig.from_pretrained(folder)
    config.mem_layers, config.mem_local_context = [1], 256
    config.save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "docs" / "inference.md").read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(block, names)
    assert names["answer"].shape == (1, 1020)
    assert names["logits"].shape == (1, 300, 600)
    assert names["found"].shape == (1, 1329)
    assert names["cache"].read == 1300
    assert torch.isfinite(names["logits"].float()).all()


def test_the_document_names_every_setting() -> None:
    text = (Path(__file__).parents[1] / "docs" / "inference.md").read_text()
    named = re.findall(r"^\| `(\w+)` \|", text, re.M)
    assert set(named) == set(MemorySettings.__dataclass_fields__)

"""transformers' causal language model, with attention by plan, fp32 RoPE and a chunked loss.

Parameters keep their names, so weights come from and go to plain transformers without a mapping.
"""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

from pipelines.errors import UserError, did_you_mean
from trainer.attention import Backend, attention_name
from trainer.loss import LossHead, as_loss_head
from trainer.rope import Fp32Rotary, Rope, apply_rope
from trainer.run import RUN

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose layers are built like Llama's."""

_SHAPES: dict[str, dict[str, Any]] = {
    "llama-7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
                 "num_attention_heads": 32, "num_key_value_heads": 32},
    "open-llama-3b": {"hidden_size": 3200, "intermediate_size": 8640, "num_hidden_layers": 26,
                      "num_attention_heads": 32, "num_key_value_heads": 32},
    "llama-3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
                 "num_attention_heads": 24, "num_key_value_heads": 8},
    "llama-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
                 "num_attention_heads": 32, "num_key_value_heads": 8},
    "tiny": {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2},
}  # fmt: skip
_SPARE_IDS = 1024
"""By how much models round their vocabulary up at most."""

_UNUSED = ("model_type", "architectures", "auto_map", "transformers_version",
           "gradient_checkpoint_every_ith", "torch_attention")  # fmt: skip
"""Of a LongLLaMA's config.json: what names its remote code, or has a meaning in it alone."""

SHAPE = "shape:"
"""What a model's name begins with that is a shape with random weights."""


class Planned:
    """Mixed into a transformers model: forward takes a microbatch and gives its summed loss."""

    model: nn.Module
    lm_head: LossHead

    def forward(
        self, tokens: Tensor, positions: Tensor, labels: Tensor | None = None, **plan: Any
    ) -> Tensor:
        """Summed loss, float32; logits [B, T, V] where there are no labels.

        Args:
            tokens: int64 [B, T].
            positions: int64 [B, T] for RoPE.
            labels: int64 [B, T], the next token or -100.
            plan: of `attention.plan_of`.
        """
        states = self.model(input_ids=tokens, position_ids=positions, use_cache=False, **plan)
        return self.lm_head(states.last_hidden_state, labels)


def model_config(name: str, *, vocabulary: int, rope: Rope, seq_len: int) -> PreTrainedConfig:
    """The configuration of a checkpoint or a shape, with the RoPE that is asked for.

    Args:
        name: folder or hub name of a checkpoint, or `shape:NAME`.
        vocabulary: ids of the data set.
        rope: how to reach `seq_len`.
        seq_len: tokens of a sequence.

    Raises:
        UserError: there is no such model, it is of another family, or has too few ids.
    """
    config = _shape(name, vocabulary) if name.startswith(SHAPE) else checkpoint_config(name)
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        raise UserError(
            f"{name}: attention in a sliding window of {config.sliding_window:,}: a long context "
            "needs full attention; set `sliding_window` to null in its config.json"
        )
    if config.vocab_size < vocabulary:
        raise UserError(
            f"{name}: {config.vocab_size:,} token ids, the tokenizer has {vocabulary:,}: it is "
            "another model's; build the data set with this one's"
        )
    if config.vocab_size - vocabulary > _SPARE_IDS:
        raise UserError(
            f"{name}: {config.vocab_size:,} token ids, the tokenizer has only {vocabulary:,}: it "
            "is another model's; build the data set with this one's"
        )
    apply_rope(config, rope, seq_len=seq_len)
    return config


def _shape(name: str, vocabulary: int) -> PreTrainedConfig:
    shape = name.removeprefix(SHAPE)
    if shape not in _SHAPES:
        close = did_you_mean(shape, _SHAPES) or "; known: " + ", ".join(_SHAPES)
        raise UserError(f"{name}: no such shape{close}")
    rounded = -(-vocabulary // 64) * 64
    return LlamaConfig(vocab_size=rounded, max_position_embeddings=4096, **_SHAPES[shape])


def checkpoint_config(name: str) -> PreTrainedConfig:
    """The configuration of a checkpoint as it is; code that lies beside it is never run.

    A published LongLLaMA (model type `longllama`) is a Llama whose memory is named by `mem_layers`,
    `mem_positionals`, `mem_dtype`, `mem_attention_grouping` and `last_context_length`: they stay in
    the configuration, with the local context as `mem_local_context`.

    Args:
        name: folder or hub name; `FOLDER::FILE.gguf` for a GGUF file.

    Raises:
        UserError: there is none, it cannot be, or it is of another family.
    """
    folder, _, gguf = name.partition("::")
    options = {"gguf_file": gguf} if gguf else {}
    if Path(folder, RUN).exists():
        raise UserError(
            f"{name}: the folder of a run; its model is {Path(folder, 'model')} once the run has "
            "finished; trainer.export --run writes one of a checkpoint"
        )
    try:
        values = {} if gguf else PreTrainedConfig.get_config_dict(folder)[0]
        if values.get("model_type") == "longllama":
            config = _longllama(values)
        else:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **options)
    except (OSError, ValueError, ImportError, StrictDataclassError) as error:
        raise UserError(f"{name}: cannot read a model there: {first_line(error)}") from error
    if config.model_type not in FAMILIES:
        raise UserError(
            f"{name}: a model of type `{config.model_type}`; "
            f"the trainer knows {', '.join(FAMILIES)} and longllama"
        )
    return config


def _longllama(values: dict[str, Any]) -> PreTrainedConfig:
    kept = {key: value for key, value in values.items() if key not in _UNUSED}
    pad = kept.get("pad_token_id")
    if isinstance(pad, int) and pad < 0:  # as old configurations say that there is none
        kept["pad_token_id"] = None
    config = LlamaConfig.from_dict(kept)
    # Said apart: RoPE for longer sequences raises the number of positions.
    config.mem_local_context = config.max_position_embeddings
    return config


def first_line(error: Exception) -> str:
    """What a library's error says first."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(line.strip() for line in lines[: 1 + lines[0].endswith(":")])


def head_size(config: Any) -> int:
    """D, also of families that do not name it."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def checkpoint_weights(name: str) -> dict[str, Tensor]:
    """Every parameter of a checkpoint on the CPU, in the type that it was stored in.

    Frequencies of RoPE that old checkpoints store beside them are left out.

    Args:
        name: folder or hub name; `FOLDER::FILE.gguf` for a GGUF file, which is dequantized.

    Raises:
        UserError: it cannot be read.
    """
    folder, _, gguf = name.partition("::")
    options: dict[str, Any] = {"gguf_file": gguf} if gguf else {"config": checkpoint_config(name)}
    if gguf and hasattr(transformers, "GgufConfig"):  # newer versions may leave weights in blocks
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", output_loading_info=True, trust_remote_code=False, **options
        )
        model, found = loaded
    except (UnpicklingError, EOFError) as error:
        raise UserError(
            f"{name}: cannot load the weights: a .bin file holds none: it is damaged, or stands "
            "for a file that Git LFS has not fetched yet (`git lfs pull`)"
        ) from error
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{name}: cannot load the weights: {first_line(error)}") from error
    if lacking := sorted(found["missing_keys"]):
        raise UserError(f"{name}: {len(lacking)} weights are missing, {lacking[0]} first")
    if unknown := sorted(found["unexpected_keys"]):
        raise UserError(f"{name}: {len(unknown)} weights have no place, {unknown[0]} first")
    return model.state_dict()


def build_model(config: PreTrainedConfig, *, backend: Backend, loss_chunk: int) -> nn.Module:
    """A model of a configuration without memory (on the meta device), with the swaps made."""
    name = attention_name(backend)
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=name
        )
    plain.__class__ = type(f"Planned{type(plain).__name__}", (Planned, type(plain)), {})
    plain.model.rotary_emb = Fp32Rotary(plain.model.rotary_emb)
    as_loss_head(plain.lm_head, chunk=loss_chunk)
    return cast(nn.Module, plain.train())

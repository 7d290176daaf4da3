"""How a model with memory layers reads text: LongLLaMA's names (Tworkowski et al. 2023, §4)."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from pipelines.errors import FaultsError, did_you_mean

DTYPES = ("bfloat16", "float16", "float32", "float64")
"""Types in which memory can be kept."""


@dataclass(frozen=True, kw_only=True)
class MemorySettings:
    """Memory layers, the windows that text is read in, and what memory keeps."""

    mem_layers: tuple[int, ...]
    """Numbers of the memory layers, from 0."""

    mem_positionals: bool = True
    """Whether queries and local keys of memory layers are rotated, as in training."""

    mem_dtype: str = "bfloat16"
    """Type in which memory is kept. Where it is not the model's own, all of memory is converted for
    each window and each generated token: on a GPU keep both the same."""

    mem_attention_grouping: tuple[int, int] | None = None
    """(heads, queries) that attend to memory at a time, to bound the scores of a device without
    flash attention; None: all at once."""

    last_context_length: int = 1024
    """Last tokens of a long prompt that stay in the local context, so that generation goes on for
    `local_context` less these before a new window begins."""

    local_context: int
    """L: tokens of a window; what the model was trained with."""

    mem_limit: int | None = None
    """How many of the newest tokens memory keeps; None: all; 0: no memory."""

    mem_top_k: int | None = None
    """How many of the best keys in memory a query and head attends to, by an exact search (faiss);
    None: all."""


def memory_settings(config: Any, **overrides: Any) -> MemorySettings | None:
    """The settings of a model's `config.json`; None where neither names memory layers.

    L is its `mem_local_context`, else `max_position_embeddings`. `last_context_length` is 1024,
    LongLLaMA's, but at most half of L, where neither says it or `config`'s is above L.

    Args:
        config: of transformers.
        overrides: fields of `MemorySettings`, stronger than `config`; None means not given.

    Raises:
        FaultsError: something that cannot be, all of it at once.
    """
    names = [field.name for field in fields(MemorySettings)]
    if unknown := [name for name in overrides if name not in names]:
        known = "; known: " + ", ".join(names)
        faults = [
            f"{name}: no such setting{did_you_mean(name, names) or known}" for name in unknown
        ]
        raise FaultsError("memory", faults)
    values = {name: getattr(config, name, None) for name in names}
    values["local_context"] = getattr(config, "mem_local_context", None)
    values |= {name: value for name, value in overrides.items() if value is not None}
    values = {name: _tuple(value) for name, value in values.items() if value is not None}
    if not values.get("mem_layers"):
        return None
    values.setdefault("local_context", config.max_position_embeddings)
    length, last = values["local_context"], values.get("last_context_length")
    given = overrides.get("last_context_length") is not None
    if whole(length, 1) and (last is None or (not given and whole(last, length + 1))):
        values["last_context_length"] = max(1, min(1024, length // 2))
    settings = MemorySettings(**values)
    check_settings(settings, config)
    return settings


def name_settings(config: Any, settings: MemorySettings) -> None:
    """Write settings into a configuration of transformers, for `memory_settings` to read."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        name = "mem_local_context" if field.name == "local_context" else field.name
        setattr(config, name, list(value) if isinstance(value, tuple) else value)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def check_settings(settings: MemorySettings, config: Any) -> None:
    """Refuse what cannot be, all of it at once.

    Raises:
        FaultsError: something cannot.
    """
    faults = [
        *_layer_faults(settings, config), *_type_faults(settings), *_length_faults(settings, config)
    ]  # fmt: skip
    if faults:
        raise FaultsError("memory", faults)


def _layer_faults(settings: MemorySettings, config: Any) -> Iterator[str]:
    named: Any = settings.mem_layers
    count = config.num_hidden_layers
    if not isinstance(named, tuple):
        yield f"mem_layers: {named!r}; a list of layer numbers, for instance [6, 12, 18]"
        return
    for layer in named:
        if not whole(layer, 0) or layer >= count:
            yield f"mem_layers: no layer {layer!r}: the model has {count}, numbered from 0"
    if len({str(layer) for layer in named}) < len(named):
        yield f"mem_layers names one twice: {list(named)}"


def _type_faults(settings: MemorySettings) -> Iterator[str]:
    positionals: Any = settings.mem_positionals
    if not isinstance(positionals, bool):
        yield f"mem_positionals: {positionals!r}; true or false"
    if settings.mem_dtype not in DTYPES:
        close = did_you_mean(str(settings.mem_dtype), DTYPES) or "; known: " + ", ".join(DTYPES)
        yield f"mem_dtype: {settings.mem_dtype!r} is not known{close}"
    grouping: Any = settings.mem_attention_grouping
    if grouping is not None and not (
        isinstance(grouping, tuple) and len(grouping) == 2 and all(whole(n, 1) for n in grouping)
    ):
        shown = list(grouping) if isinstance(grouping, tuple) else grouping
        yield f"mem_attention_grouping: {shown!r}; two numbers from 1, [heads, queries], or null"


def _length_faults(settings: MemorySettings, config: Any) -> Iterator[str]:
    s, length = settings, settings.local_context
    if not whole(length, 1):
        yield f"local_context: {length!r}; a whole number of tokens, at least 1 token"
    if not whole(s.last_context_length, 1):
        yield f"last_context_length: {s.last_context_length!r}; at least 1 token"
    elif whole(length, 1) and s.last_context_length > length:
        yield (
            f"last_context_length: {s.last_context_length:,} tokens do not fit in a local context "
            f"of {length:,}"
        )
    sliding = getattr(config, "sliding_window", None)
    if sliding and getattr(config, "use_sliding_window", True) and whole(length, sliding + 1):
        yield (
            f"local_context: {length:,} tokens, but the model attends in a sliding window of "
            f"{sliding:,}; at most that, or set `sliding_window` to null in its config.json"
        )
    if s.mem_limit is not None and not whole(s.mem_limit, 0):
        yield f"mem_limit: {s.mem_limit!r}; at least 0 tokens, or null for all"
    if s.mem_top_k is not None and not whole(s.mem_top_k, 1):
        yield f"mem_top_k: {s.mem_top_k!r}; at least 1 key, or null for all"
    if s.mem_top_k is not None and s.mem_limit is not None:
        yield "mem_top_k: its index forgets nothing, so it has no `mem_limit`; leave one out"


def whole(value: Any, least: int) -> bool:
    """Whether this is a whole number of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least

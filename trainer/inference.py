"""Reading and generating with memory layers (LongLLaMA; Tworkowski et al. 2023, §3.1).

Text is read in windows of the local context L. In every layer a token attends causally to its own
window, where positions start at 0; in memory layers also to all tokens of all windows before it,
by raw keys. That equals one forward of training in which a local context sees all before it.

Of a long prompt the last `last_context_length` tokens stay in the running window, so that what is
generated has a local context. The running window is moved to memory when it has L tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, MaxLengthCriteria
from transformers.modeling_outputs import CausalLMOutputWithPast

from pipelines.errors import UserError
from trainer.memory import add_memory_layers
from trainer.memory_attention import faiss_module, lower_right
from trainer.memory_cache import MemoryCache
from trainer.memory_settings import (
    MemorySettings,
    check_settings,
    memory_settings,
    name_settings,
)
from trainer.model import FAMILIES

__all__ = [
    "MemoryCache", "MemoryModel", "MemorySettings", "as_memory_model", "memory_settings",
    "new_cache", "windows",
]  # fmt: skip

ATTENTION = "running_window"
"""Under which name transformers knows the attention of layers without memory."""


def as_memory_model(model: nn.Module, settings: MemorySettings) -> None:
    """Make a transformers causal language model read with memory, in place.

    Parameters keep their names. See `MemoryModel` for what it takes.

    Raises:
        UserError: the model is of another family, has memory already, or faiss is asked for and
            not installed.
        FaultsError: settings that cannot be.
    """
    lm = cast(Any, model)
    if cast(Any, settings) is None:
        raise UserError(
            "memory: no settings: the model's config.json names no memory layers; name them, as in "
            "`memory_settings(model.config, mem_layers=(6, 12, 18))`"
        )
    if lm.config.model_type not in FAMILIES:
        raise UserError(
            f"memory: a model of type `{lm.config.model_type}`; known: {', '.join(FAMILIES)}"
        )
    if isinstance(model, MemoryModel):
        raise UserError("memory: the model reads with memory already")
    check_settings(settings, lm.config)
    if settings.mem_top_k is not None:
        faiss_module()
    add_memory_layers(model, settings.mem_layers, positionals=settings.mem_positionals)
    lm.set_attn_implementation(ATTENTION)
    # Tuning with checkpoints of activations often leaves False there.
    lm.config.use_cache = lm.generation_config.use_cache = True
    kind = type(model)
    # By its plain name, which transformers writes into a saved configuration.
    model.__class__ = type(kind.__name__, (MemoryModel, kind), {})
    lm.memory_settings = settings
    name_settings(lm.config, settings)


class MemoryModel:
    """Mixed into a transformers causal language model: forward and generate read with memory."""

    config: Any
    lm_head: nn.Module
    memory_settings: MemorySettings

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        logits_to_keep: int = 0,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """Read text into memory; as the model's own forward, without gradients.

        Args:
            input_ids: int64 [B, T], any T; what follows the text in `past_key_values`.
            past_key_values: of `new_cache`, and changed; default: a new one.
            attention_mask: ones; the texts of a batch have one length.
            logits_to_keep: of how many last tokens logits are wanted; 0: of all.
            labels: int64 [B, T], the input with -100 where no loss is wanted.
            use_cache: whether the result names the cache.
            others: positions are counted here; what else transformers' generate gives is ignored.

        Raises:
            UserError: padding, embeddings in place of tokens, another batch's cache, or outputs
                of single layers.
        """
        if input_ids is None or input_ids.shape[1] == 0:
            raise UserError("memory: give `input_ids` of at least one token; nothing else is read")
        cache = _checked_cache(new_cache(self) if past_key_values is None else past_key_values)
        _check_mask(attention_mask, input_ids, cache)
        _check_others(logits_to_keep=logits_to_keep, **others)
        kept: list[Tensor] = []
        unwanted = input_ids.shape[1] - logits_to_keep if logits_to_keep and labels is None else 0
        for states in _read(self, input_ids, cache, split=True):
            if unwanted < states.shape[1]:  # an empty slice would keep all of them
                kept.append(states[:, max(unwanted, 0) :])
            unwanted -= states.shape[1]
        logits = self.lm_head(torch.cat(kept, dim=1))
        loss = None
        if labels is not None:
            vocabulary = self.config.vocab_size
            loss = cast(Any, self).loss_function(
                logits=logits, labels=labels, vocab_size=vocabulary
            )
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=None if use_cache is False else cache
        )

    def generate(self, *args: Any, **options: Any) -> Any:
        """As transformers' generate, with a new memory where none is given.

        Each beam, and each of several answers, holds its own memory; a batch must not be padded.
        With a memory of what was read before, the input is the whole text, from its beginning.

        Raises:
            UserError: it shall do without a cache, or the input is not longer than what was read.
        """
        given = args[1] if len(args) > 1 else options.get("generation_config")
        configs = [vars(c) for c in (given, cast(Any, self).generation_config) if c]
        _check_generation([options, *configs])
        if options.get("past_key_values") is None:
            options["past_key_values"] = new_cache(self)
        text = args[0] if args else options.get("input_ids", options.get("inputs"))
        read = _checked_cache(options["past_key_values"]).read
        if read and text is not None and text.shape[1] <= read:
            raise UserError(
                f"memory: {read:,} tokens have been read, and the input has {text.shape[1]:,}: "
                "`generate` takes the whole text, from its beginning, and reads what is new"
            )
        return cast(Any, super()).generate(*args, **options)

    def _get_stopping_criteria(self, *args: Any, **options: Any) -> Any:
        """As transformers', but without its warning that a text is beyond the local context."""
        criteria = cast(Any, super())._get_stopping_criteria(*args, **options)
        for criterion in criteria:
            if isinstance(criterion, MaxLengthCriteria):
                criterion.max_position_embeddings = None
        return criteria


def new_cache(model: Any) -> MemoryCache:
    """An empty memory for a model of `as_memory_model`.

    Raises:
        UserError: it is none.
    """
    if not isinstance(model, MemoryModel):
        raise UserError("memory: the model reads without memory; call `as_memory_model` first")
    return MemoryCache(model.config.num_hidden_layers, model.memory_settings)


def windows(model: Any, tokens: Tensor, cache: MemoryCache) -> Iterator[Tensor]:
    """Read text into memory window by window: none is cut short but the last.

    Args:
        model: of `as_memory_model`.
        tokens: int64 [B, T], what follows the text in `cache`.
        cache: of `new_cache`.

    Yields:
        Hidden states after the last norm [B, t, hidden], t at most L. What is not taken is not
        read.

    Raises:
        UserError: another batch's cache.
    """
    return _read(model, tokens, _checked_cache(cache), split=False)


def _check_generation(options: Sequence[Mapping[str, Any]]) -> None:
    """Refuse settings of generate, of which the first place that names one counts."""

    def named(name: str) -> Any:
        return next((some[name] for some in options if some.get(name) is not None), None)

    if named("use_cache") is False:
        raise UserError("memory: `use_cache=False` would read the text anew for each token")
    for name in ("prefill_chunk_size", "cache_implementation"):
        if named(name) is not None:
            raise UserError(
                f"memory: `{name}` has no meaning with memory, which reads in windows of its own; "
                "leave it out"
            )


def _checked_cache(cache: Any) -> MemoryCache:
    if not isinstance(cache, MemoryCache):
        raise UserError(f"memory: a {type(cache).__name__} as cache; make one with `new_cache`")
    return cache


def _read(model: Any, tokens: Tensor, cache: MemoryCache, *, split: bool) -> Iterator[Tensor]:
    if cache.texts not in (None, len(tokens)):
        raise UserError(f"memory: a cache of {cache.texts} texts, and input of {len(tokens)}")
    settings, length = model.memory_settings, tokens.shape[1]
    last = 0
    if split and not cache.read and length > settings.last_context_length:
        last = settings.last_context_length
    sizes = window_sizes(length - last, running=cache.running, most=settings.local_context)
    sizes += [last] if last else []
    cache.expect(length)
    parts = tokens.to(model.device).split(sizes, dim=1)
    for number, part in enumerate(parts, start=1):
        states = _window(model, part, cache)
        if number < len(parts) or cache.running == settings.local_context:
            cache.close_window()
        yield states


def window_sizes(tokens: int, *, running: int, most: int) -> list[int]:
    """How many tokens each window gets, where the first has `running` and none more than `most`."""
    first = min(tokens, most - running)
    whole, rest = divmod(tokens - first, most)
    return [size for size in (first, *[most] * whole, rest) if size]


@torch.no_grad()
def _window(model: Any, tokens: Tensor, cache: MemoryCache) -> Tensor:
    texts, size = tokens.shape
    positions = torch.arange(cache.running, cache.running + size, device=tokens.device)
    states = model.model(
        input_ids=tokens, position_ids=positions[None], past_key_values=cache, use_cache=True,
        memory=cache,
    )  # fmt: skip
    cache.advance(texts, size)
    return states.last_hidden_state


def _check_mask(mask: Tensor | None, tokens: Tensor, cache: MemoryCache) -> None:
    """Refuse padding: nothing is masked."""
    if mask is None:
        return
    texts, length = tokens.shape
    if mask.shape not in ((texts, length), (texts, cache.read + length)):
        raise UserError(
            f"memory: an attention mask of the shape {list(mask.shape)}; the input has "
            f"{[texts, length]}, and {cache.read:,} tokens have been read"
        )
    if not bool(mask.all()):
        raise UserError(
            "memory: the attention mask hides tokens, but the texts of a batch must have one "
            "length: give each alone or texts of one length; if none is padding (its ids may "
            "contain the padding id), give an `attention_mask` of ones"
        )


def _check_others(*, logits_to_keep: Any, **others: Any) -> None:
    """Refuse what forward would have to ignore."""
    if not isinstance(logits_to_keep, int):
        raise UserError("memory: `logits_to_keep` is a number of last tokens")
    asked = ("inputs_embeds", "output_attentions", "output_hidden_states")
    for name in asked:
        if (value := others.get(name)) is not None and value is not False:
            raise UserError(f"memory: `{name}` does not work with memory; leave it out")


def _running_window(
    _layer: Any, q: Tensor, k: Tensor, v: Tensor, _mask: None, *, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """q [B, H, T, D], k and v [B, K, P, D] of the running window, q's being its last T."""
    return lower_right(q, k, v, scaling).transpose(1, 2), None


# A name that has no mask function: transformers then builds no mask at all.
AttentionInterface.register(ATTENTION, _running_window)

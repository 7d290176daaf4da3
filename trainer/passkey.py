"""Passkey retrieval: a number hidden in filler, and a question for it at the end.

The prompt is that of Mohtashami & Jaggi (2023), as Chen et al. (2023), §3.4, use it.
"""

import random
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, product
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from pipelines.errors import UserError
from trainer.perplexity import Watch

Encode = Callable[[str], list[int]]
"""A prompt's ids, BOS included where the model wants one."""

Answer = Callable[[list[int], int], str]
"""`answer(ids, n)`: the n ids that a model finds most likely to follow, as text."""

TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)
FILLER = "The grass is green.|The sky is blue.|The sun is yellow.|Here we go.|There and back again."
QUESTION = "What is the pass key? The pass key is"


@dataclass(frozen=True)
class Trial:
    """One question, and what the model said.

    `length` and `depth` (None: random) are asked for; `tokens` of the prompt and `placed`, the
    share of the filler's sentences before the key, are what whole sentences allow.
    """

    length: int
    depth: float | None
    tokens: int
    placed: float
    key: str
    answer: str
    right: bool


def is_right(key: str, answer: str) -> bool:
    """Does the answer begin with the key, with no digit after it?"""
    said = re.match(r"\s*(\d+)", answer)
    return said is not None and said[1] == key


def prompt(key: str, *, before: int, after: int) -> str:
    """The prompt with so many sentences of filler before and after the line with the key."""
    line = f"The pass key is {key}. Remember it. {key} is the pass key."
    filler = [" ".join(islice(cycle(FILLER.split("|")), n)) for n in (before, after)]
    return "\n".join([TASK, filler[0], line, filler[1], QUESTION])


def filler_that_fits(encode: Encode, key: str, *, length: int, depth: float) -> tuple[int, int]:
    """Sentences before and after the key: the most with which a prompt has `length` ids at most.

    Raises:
        UserError: the prompt is longer even without filler.
    """

    def split(n: int) -> tuple[int, int]:
        return round(depth * n), n - round(depth * n)

    def n_ids(n: int) -> int:
        return _n_ids(encode, key, split(n))

    # No sentence of the filler has fewer than three tokens.
    lengths = range(length // 3)
    most = bisect_right(lengths, length, key=_short_count(encode, key, split))
    # Long prompts take a second to encode; where short ones tell their lengths, two will do.
    if not 0 < most < len(lengths) or not n_ids(most - 1) <= length < n_ids(most):
        most = bisect_right(lengths, length, key=n_ids)
    if not most:
        least = f"the prompt without filler has {n_ids(0):,}"
        raise UserError(
            f"passkey: {length:,} tokens are too few, {least}; name longer --lengths, "
            "or a --max-length of 32 times that at least"
        )
    return split(most - 1)


def _n_ids(encode: Encode, key: str, parts: tuple[int, int]) -> int:
    return len(encode(prompt(key, before=parts[0], after=parts[1])))


def _short_count(
    encode: Encode, key: str, split: Callable[[int], tuple[int, int]]
) -> Callable[[int], int]:
    """Tokens of a prompt with so many sentences, if each turn of the filler has as many."""
    turn = len(FILLER.split("|"))
    n_turn = _n_ids(encode, key, (0, 3 * turn)) - _n_ids(encode, key, (0, 2 * turn))

    def count(n: int) -> int:
        parts = split(n)
        before, after = (m if m < 2 * turn else turn + m % turn for m in parts)
        return _n_ids(encode, key, (before, after)) + (n - before - after) // turn * n_turn

    return count


def run_trials(
    encode: Encode, answer: Answer, *, lengths: Sequence[int], depths: Sequence[float | None],
    trials: int, seed: int, watch: Watch,
) -> list[Trial]:  # fmt: skip
    """Ask `trials` times for each length and depth (None: each time a random one).

    The questions are a pure function of the arguments.
    """
    done = list[Trial]()
    for length, depth, i in watch(list(product(lengths, depths, range(trials)))):
        rng = random.Random(f"{seed} {length} {depth} {i}")
        key, share = str(rng.randrange(10_000, 100_000)), rng.random() if depth is None else depth
        before, after = filler_that_fits(encode, key, length=length, depth=share)
        ids = encode(prompt(key, before=before, after=after))
        # One id more than the key's: does it go on with a digit?
        said = answer(ids, len(encode(f" {key}")) + 1)
        placed = before / max(1, before + after)
        done.append(Trial(length, depth, len(ids), placed, key, said, is_right(key, said)))
    return done


def model_answer(
    model: Any, decode: Callable[[list[int]], str], *, stop: str | None = None
) -> Answer:
    """Greedy answers of a transformers model, with a cache of keys and values.

    An answer ends before EOS, and with the id that completes `stop`.
    """
    # The checkpoint's own settings, such as a penalty for repetition, would bend the figures.
    ends = model.generation_config.eos_token_id
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=ends, pad_token_id=0)

    @torch.inference_mode()
    def answer(ids: list[int], n: int) -> str:
        tokens = torch.tensor([ids], device=model.device)
        # Without a mask, transformers would take ids for padding that look like it.
        mask = torch.ones_like(tokens)
        until = [_Said(stop, decode, len(ids))] if stop else []
        said = model.generate(
            tokens, attention_mask=mask, max_new_tokens=n,
            stopping_criteria=StoppingCriteriaList(until),
        )[0, len(ids) :].tolist()  # fmt: skip
        if said and said[-1] in (ends if isinstance(ends, list) else [ends]):
            said.pop()
        return decode(said)

    return answer


class _Said(StoppingCriteria):
    """Whether what follows the prompt contains a text."""

    def __init__(self, text: str, decode: Callable[[list[int]], str], start: int) -> None:
        self.text, self.decode, self.start = text, decode, start

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:  # noqa: ARG002
        done = self.text in self.decode(input_ids[0, self.start :].tolist())
        return torch.tensor([done], device=input_ids.device)


def accuracy(trials: Sequence[Trial], length: int, depth: float | None) -> float:
    """Share of right answers at a length and depth."""
    right = [t.right for t in trials if (t.length, t.depth) == (length, depth)]
    return sum(right) / len(right)


def k_max(rates: Mapping[int, float], *, least: float = 0.2) -> int:
    """The effective window of Chen et al. (2023), §3.4, from shares of right answers by length.

    The largest length such that it and every shorter one has at least `least`; 0 if none has.
    """
    below = [length for length, rate in rates.items() if rate < least]
    return max((length for length in rates if length < min(below, default=length + 1)), default=0)

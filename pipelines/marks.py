"""A sequence as a person checks it: its template, and what of its text carries loss."""

from collections.abc import Callable, Mapping
from typing import Any

from pipelines.mixture import TEMPLATES
from pipelines.shards import Sequence, ShardedDataset

Decode = Callable[[list[int]], str]

MARKS = ("⟦", "⟧")
"""Before and behind what carries loss."""


def marked_text(
    sequence: Sequence, segment: dict[str, Any], decode: Decode, controls: Mapping[int, str]
) -> str:
    """The text of a segment; where some of its sequence carries no loss, the rest is marked.

    Control tokens are written as ‹…› then.

    Args:
        sequence: with its tokens and spans without loss.
        segment: of it.
        decode: ids → text.
        controls: how control tokens are spelled, by id.
    """
    start, end = segment["start"], segment["start"] + segment["length"]
    tokens = sequence.tokens[start:end].tolist()
    if not sequence.no_loss:
        return decode(tokens)
    spans = [(max(a, start) - start, min(b, end) - start) for a, b in sequence.no_loss]
    inside = [span for span in spans if span[0] < span[1]]
    text, at = "", 0
    for a, b in [*inside, (len(tokens), len(tokens))]:
        if a > at:
            text += f"{MARKS[0]}{_with_controls(tokens, at, a, decode, controls)}{MARKS[1]}"
        text, at = text + _with_controls(tokens, a, b, decode, controls), b
    return text


def _with_controls(
    tokens: list[int], start: int, end: int, decode: Decode, controls: Mapping[int, str]
) -> str:
    """Some of the tokens as text, control tokens spelled out."""
    text, at = "", start
    for place in [*(i for i in range(start, end) if tokens[i] in controls), end]:
        text += _decoded(tokens, at, place, decode, controls)
        text += f"‹{controls[tokens[place]]}›" if place < end else ""
        at = place + 1
    return text


def _decoded(
    tokens: list[int], start: int, end: int, decode: Decode, controls: Mapping[int, str]
) -> str:
    """Tokens without control tokens as text; a space that a vocabulary puts in front is none."""
    if start >= end:
        return ""
    if start == 0 or tokens[start - 1] in controls:
        return decode(tokens[start:end])
    before = decode(tokens[start - 1 : start])  # on its own, a piece would lose its first space
    return decode(tokens[start - 1 : end]).removeprefix(before)


def template_of(dataset: ShardedDataset, source: str) -> str:
    """How documents of a source were made and put together, where that needs saying."""
    recipe = dataset.manifest["recipe"]["sources"][source]
    made = [name for name in TEMPLATES if recipe.get(name)]
    chat = recipe.get("chat") or {}
    if chat:
        made = [f"chat ({chat['template'] or 'jinja'})"]
    together = [recipe["policy"]] if recipe["policy"] != "pack" else []
    return "".join(f", {name}" for name in [*made, *together])

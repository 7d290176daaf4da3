"""A sequence as a person checks it: its template, and what of its text carries loss."""

from collections.abc import Callable
from typing import Any

from pipelines.mixture import TEMPLATES
from pipelines.shards import Sequence, ShardedDataset

MARKS = ("⟦", "⟧")
"""Before and behind what carries loss."""


def marked_text(
    sequence: Sequence, segment: dict[str, Any], decode: Callable[[list[int]], str]
) -> str:
    """The text of a segment; where some of its sequence carries no loss, the rest is marked."""
    start, end = segment["start"], segment["start"] + segment["length"]
    tokens = sequence.tokens[start:end].tolist()
    if not sequence.no_loss:
        return decode(tokens)
    spans = [(max(a, start) - start, min(b, end) - start) for a, b in sequence.no_loss]
    inside = [span for span in spans if span[0] < span[1]]
    text, at, last = "", 0, 0
    # Decoded from the beginning each time: on its own, a piece would lose its first space.
    for a, b in [*inside, (len(tokens), len(tokens))]:
        for stop, marks in ((a, MARKS), (b, ("", ""))):
            decoded = decode(tokens[:stop])
            piece, at = decoded[at:], len(decoded)
            text += f"{marks[0]}{piece}{marks[1]}" if stop > last else ""
            last = max(last, stop)
    return text


def template_of(dataset: ShardedDataset, source: str) -> str:
    """How documents of a source were made and put together, where that needs saying."""
    recipe = dataset.manifest["recipe"]["sources"][source]
    made = [name for name in TEMPLATES if recipe.get(name)]
    chat = recipe.get("chat") or {}
    if chat:
        made = [f"chat ({chat['template'] or 'jinja'})"]
    together = [recipe["policy"]] if recipe["policy"] != "pack" else []
    return "".join(f", {name}" for name in [*made, *together])

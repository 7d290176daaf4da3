"""UL2's mixture of denoisers (Tay et al. 2022, section 3.1.2) over words or tokens of a text.

A document is cut into pieces of nearly equal size, so that no piece needs more than 100 sentinels
and no remainder is too short to hide anything. Each piece gets a denoiser of its own:

- **R** and **X** hide several spans, as T5 does (Raffel et al. 2020, section 3.1.4): of n units,
  `n * share` are hidden, in `hidden / mean_span` spans; both are rounded up or down at random in
  proportion to their fraction, so that share and mean length hold in expectation whatever n is
  (T5 rounds to the nearest). Lengths of hidden and of visible spans are a random composition each,
  all compositions being equally likely; visible and hidden spans take turns, visible first.
- **S** hides the last `n * share` units in one span.

A piece reads, with `<extra_id_N>` as plain text and N counted from 0 in each piece:

    [NLU] a b<extra_id_0> e f<extra_id_1><extra_id_0> c d<extra_id_1> g
    [S2S] a b c d

of which `<extra_id_0> c d<extra_id_1> g` and ` d` are the answers. S has no sentinel: the answer
goes on where the prompt stops, as in UL2R and OpenChatKit. Mode tokens are those of OpenChatKit:
`[NLU]` for R, `[S2S]` for S, `[NLG]` for X. A blank line stands between pieces.
"""

import random
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from pipelines.rendering import BadRecordError, Rendered, Span, Writer

Kind = Literal["r", "s", "x"]
Ends = Callable[[str], Sequence[int]]
"""Text → where its units (tokens) end, in characters, ascending."""


class Denoiser(NamedTuple):
    """What is hidden of a piece."""

    kind: Kind
    share: float
    """Of the units that are hidden: the paper's r."""

    mean_span: float | None
    """Units of a hidden span: the paper's mu; None: one span at the end."""


DENOISERS = (
    Denoiser("r", 0.15, 3),
    Denoiser("r", 0.15, 8),
    Denoiser("s", 0.25, None),
    Denoiser("x", 0.5, 3),
    Denoiser("x", 0.5, 8),
    Denoiser("x", 0.15, 64),
    Denoiser("x", 0.5, 64),
)
"""The paper's seven."""

MODES: dict[Kind, str] = {"r": "[NLU]", "s": "[S2S]", "x": "[NLG]"}

MOST_UNITS = 590
"""Of a piece: X hides at most one span in 6 units, and sentinels are less than 100."""

_WORD = re.compile(r"\S+")
_SENTINEL = re.compile(r"<extra_id_\d+>")


def word_ends(text: str) -> list[int]:
    """Where the words of a text end; whitespace belongs to the word behind it."""
    return [match.end() for match in _WORD.finditer(text)]


def denoised(
    text: str,
    *,
    ends: Ends,
    weights: dict[Kind, float],
    piece: int,
    mode_tokens: bool,
    rng: random.Random,
) -> Rendered:
    """A document as exercises in filling in; visible and hidden parts together are the text.

    Args:
        text: of the document.
        ends: where units end. Characters behind the last one belong to it, and units that end
            where others do are one unit with them.
        weights: how often a piece is of each kind; denoisers of one kind have equal odds.
        piece: units of a piece, at most; 3 to `MOST_UNITS`.
        mode_tokens: whether pieces begin with their mode token.
        rng: every random choice.

    Raises:
        BadRecordError: `too_short_to_fill`: less than two units; `sentinel_in_text`: the text
            itself holds `<extra_id_N>`.
    """
    if found := _SENTINEL.search(text):
        raise BadRecordError("sentinel_in_text", found[0])
    bounds = _bounds(text, ends(text))
    n_units = len(bounds) - 1
    if n_units < 2:
        raise BadRecordError("too_short_to_fill", "less than 2 units")
    odds = [weights[d.kind] / sum(d.kind == other.kind for other in DENOISERS) for d in DENOISERS]
    writer = Writer()
    for first, last in pairwise(_cuts(n_units, piece)):
        (denoiser,) = rng.choices(DENOISERS, odds)
        writer.put("\n\n" if first else "")
        begin = writer.length
        writer.put(f"{MODES[denoiser.kind]} " if mode_tokens else "")
        spans = hidden_spans(last - first, denoiser, rng)
        at = [bounds[first + unit] for span in spans for unit in span]
        _write(
            writer, text[bounds[first] : bounds[last]], [i - bounds[first] for i in at], denoiser
        )
        writer.division(begin)
    return writer.rendered()


def hidden_spans(n: int, denoiser: Denoiser, rng: random.Random) -> list[Span]:
    """Which of `n` (two or more) units are hidden: ascending, never touching, never the first."""
    hidden = min(max(_rounded(n * denoiser.share, rng), 1), n - 1)
    if denoiser.mean_span is None:
        return [(n - hidden, n)]
    count = min(max(_rounded(hidden / denoiser.mean_span, rng), 1), hidden, n - hidden)
    spans: list[Span] = []
    end = 0
    lengths = zip(
        _composition(n - hidden, count, rng), _composition(hidden, count, rng), strict=True
    )
    for visible, length in lengths:
        start = end + visible
        end = start + length
        spans.append((start, end))
    return spans


def _write(writer: Writer, text: str, at: list[int], denoiser: Denoiser) -> None:
    """A piece whose hidden spans are the characters [at[0], at[1]), [at[2], at[3]), …"""
    edges = pairwise([0, *at])
    visible, hidden = [], []
    for i, (start, end) in enumerate(edges):
        (hidden if i % 2 else visible).append(text[start:end])
    if denoiser.mean_span is None:
        writer.put(visible[0])
        writer.answer(hidden[0])
    else:
        writer.put("".join(f"{part}<extra_id_{i}>" for i, part in enumerate(visible)))
        writer.answer("".join(f"<extra_id_{i}>{part}" for i, part in enumerate(hidden)))


def _bounds(text: str, ends: Iterable[int]) -> list[int]:
    """Where units begin, and the end of the text."""
    inner = list(dict.fromkeys(end for end in ends if end > 0))[:-1]
    return [0, *inner, len(text)]


def _cuts(n: int, at_most: int) -> list[int]:
    """0 to n in the fewest pieces of `at_most`, whose sizes differ by one."""
    pieces = -(-n // at_most)
    return [n * i // pieces for i in range(pieces + 1)]


def _rounded(value: float, rng: random.Random) -> int:
    """Up or down, `value` on average."""
    return int(value + rng.random())


def _composition(total: int, parts: int, rng: random.Random) -> Iterable[int]:
    """`parts` positive numbers whose sum is `total`, all such lists being equally likely."""
    cuts = sorted(rng.sample(range(1, total), parts - 1))
    return [end - start for start, end in pairwise([0, *cuts, total])]

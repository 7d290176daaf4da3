"""OIG's UL2-Oscar dialogues (LAION-AI/Open-Instruction-Generalist, `OIG/src/ul2_oscar.py`).

A document becomes one dialogue. Its words (what whitespace divides) are cut into paragraphs at
words that end in ".": before a sentence of 10 characters or more, where two sentences or more are
together, with odds 1/3. A paragraph takes one of four forms:

- S, 1/2: one half is to be completed; or, as often, pieces of 12 to 128 words, one asked for after
  the other;
- R, 1/8, X1, 1/8, and X2, 1/4: spans are hidden. A span starts at a word with odds 2/11, 1/3, 1/11
  once 6 visible words stand before it, is as long as a draw from `Hiding.lengths`, and stops
  before a word that ends in "."; at most 99 in a paragraph. Marks are numbered, but in a quarter of
  the paragraphs `...`.

Prompts and replies have the script's wordings, one of six drawn for each dialogue. The characters
are the script's (a space follows `Assistant:`, and every hidden span but the last):

    User: Fill in the missing words: a b c d e f [words 1] i j k l m n [words 2] p.
    Assistant:
    words 1: g h
    words 2: o
    User: What could be the completion of this text: q r s ...
    Assistant: The completion of this text could be: t u v...
    User: Next.
    Assistant: w x.

What it does wrong is not repeated. It draws from an unseeded `random` and drops repeated sentences
by Python's `hash()`, so no run equals another; labels are passed as the language, so what is known
of the register is lost; paragraphs in which no span starts vanish (here they take form S); wordings
are replaced inside the document's own words, too ("paragraph" becomes "section"); full stops are
added to text that ends otherwise, or lost before `...`; decimal numbers are torn and glued. Here
all words of a document are there, in their order. Left out: the questions on register and style,
which need labels, the clean-up of web text, and one more swap of words (`What` for nothing).
"""

import random
import re
from itertools import pairwise
from typing import NamedTuple

from pipelines.rendering import BadRecordError, Rendered, Span, Writer

MIN_VISIBLE = 6
"""Words before a hidden span."""

MOST_SPANS = 99
"""In a paragraph."""

MARK = "..."


class Hiding(NamedTuple):
    """How words of a paragraph are hidden."""

    label: str
    start: float
    """Odds that a span starts at a word where it may."""

    lengths: tuple[int, ...]
    """Words of a span; each of these is drawn with equal odds."""


_SHORT = (1, 2, 2, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 7, 8)
R = Hiding("words", 2 / 11, _SHORT)
X1 = Hiding("words", 1 / 3, _SHORT)
X2 = Hiding("spans", 1 / 11, (12, 24, 24, 32, 32, 64))

CHAINED = (12, 24, 24, 32, 32, 64, 64, 128)
"""Words of the pieces that are asked for one after the other."""

GO_ON = ("Next", "More", "Continue")

COMPLETE = (
    "What could be the completion of this text: ",
    "Complete this text: ",
    "Generate more:\n",
    "Finish this: ",
    "The rest of this: ",
    "More of this please:\n",
)
COMPLETION = (
    "The completion of this text could be: ",
    "Completed paragraph(s): ",  # misspelt in the script
    "",
    "Rest of text: ",
    "Here you go: ",
    "Sure, let me know if you need anything else:\n",
)
FILL_IN = (
    "Fill in the missing",
    "Find the missing",
    "Fill in",
    "More",
    "What are the missing",
    "Can you tell me how to fill in the missing",
)

_MARK = re.compile(r"\[(?:words|spans)\s+\d+\]")


class Wording(NamedTuple):
    """How one dialogue asks and answers."""

    complete: str = COMPLETE[0]
    completion: str = COMPLETION[0]
    fill_in: str = FILL_IN[0]


class Turn(NamedTuple):
    """What one side asks, and what the other replies."""

    prompt: str
    reply: str


def oig_dialogue(text: str, *, roles: tuple[str, str], rng: random.Random) -> Rendered:
    """A document as a dialogue.

    Args:
        text: of the document.
        roles: who asks and who replies, such as `("User:", "Assistant:")`.
        rng: every random choice.

    Raises:
        BadRecordError: `too_short_to_fill`: less than two words; `sentinel_in_text`: the text
            itself holds a mark such as `[words 1]`.
    """
    if found := _MARK.search(text):
        raise BadRecordError("sentinel_in_text", found[0])
    words = text.split()
    if len(words) < 2:
        raise BadRecordError("too_short_to_fill", f"{len(words)} words")
    wording = Wording(rng.choice(COMPLETE), rng.choice(COMPLETION), rng.choice(FILL_IN))
    writer = Writer()
    asks, replies = roles
    separator = ""
    for start, end in paragraphs(words, rng):
        begin = writer.length + len(separator)
        for turn in paragraph_turns(words[start:end], wording, rng):
            writer.put(f"{separator}{asks} {turn.prompt}\n{replies}")
            if turn.reply.startswith("\n"):
                writer.put(" \n")
                writer.answer(turn.reply[1:])
            else:
                writer.answer(f" {turn.reply}")
            separator = "\n"
        writer.division(begin)
    return writer.rendered()


def paragraphs(words: list[str], rng: random.Random) -> list[Span]:
    """Words in paragraphs of two or more."""
    starts = [0, *(i + 1 for i, word in enumerate(words[:-1]) if word.endswith("."))]
    cuts = [0]
    sentences = 0
    for start, end in pairwise([*starts, len(words)]):
        long = len(" ".join(words[start:end])) > 10  # 10 and the full stop
        if long and rng.random() < 1 / 3 and sentences > 1:
            cuts.append(start)
            sentences = 0
        sentences += 1
    if len(words) - cuts[-1] < 2:
        cuts.pop()
    return list(pairwise([*cuts, len(words)]))


def paragraph_turns(words: list[str], wording: Wording, rng: random.Random) -> list[Turn]:
    """A paragraph (two words or more) in the form that is drawn for it."""
    last = words[-1]
    stop = "." if last.endswith(".") and last != "." else ""
    words = [*words[:-1], last.removesuffix(stop)]
    hiding = rng.choice((R, X1, X2, X2)) if rng.random() < 1 / 2 else None
    spans = hidden_words(words, hiding, rng) if hiding else []
    if hiding and spans:
        numbered = rng.random() < 3 / 4 or MARK in words
        return [_fill_in(words, stop, spans, hiding.label, numbered, wording)]
    if rng.random() < 1 / 2:
        return _chained(words, stop, wording, rng)
    half = len(words) // 2
    return [_complete(words[:half], words[half:], stop, wording)]


def hidden_words(words: list[str], hiding: Hiding, rng: random.Random) -> list[Span]:
    """Which words are hidden."""
    spans: list[Span] = []
    at = MIN_VISIBLE
    while at < len(words) and len(spans) < MOST_SPANS:
        end = at
        if rng.random() < hiding.start:
            end = min(at + rng.choice(hiding.lengths), len(words))
            end = next((i for i in range(at, end) if words[i].endswith(".")), end)
        if end > at:
            spans.append((at, end))
        at = end + MIN_VISIBLE if end > at else at + 1
    return spans


def _fill_in(
    words: list[str], stop: str, spans: list[Span], label: str, numbered: bool, wording: Wording
) -> Turn:
    visible: list[str] = []
    end = 0
    for number, (start, after) in enumerate(spans, 1):
        visible += words[end:start]
        visible.append(f"[{label} {number}]" if numbered else MARK)
        end = after
    visible += words[end:]
    hidden = (
        f"\n{label} {number}: {' '.join(words[start:end])}"
        for number, (start, end) in enumerate(spans, 1)
    )
    return Turn(f"{wording.fill_in} {label}: {' '.join(visible)}{stop}", " ".join(hidden))


def _complete(before: list[str], after: list[str], stop: str, wording: Wording) -> Turn:
    prompt = f"{wording.complete}{' '.join(before)} {MARK}"
    return Turn(prompt, f"{wording.completion}{' '.join(after)}{stop}")


def _chained(words: list[str], stop: str, wording: Wording, rng: random.Random) -> list[Turn]:
    length = rng.choice(CHAINED)
    if length >= len(words):
        length = len(words) // 2
    at = 2 * length
    turns = [
        _complete(words[:length], words[length:at], MARK if at < len(words) else stop, wording)
    ]
    while at < len(words):
        start, at = at, at + rng.choice(CHAINED)
        reply = " ".join(words[start:at])
        turns.append(Turn(f"{rng.choice(GO_ON)}.", reply + (MARK if at < len(words) else stop)))
    return turns

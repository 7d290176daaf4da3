"""Documents longer than a sequence → windows: runs of their parts that fit, each on its own.

A dialogue consists of exchanges, and a text of `fill_in` of exercises. A window holds as many of
them as fit, none is cut, and none stands in two windows. A part that does not fit alone is left
out, and the next window begins behind it.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

from pipelines.conversations import Conversation, Turn
from pipelines.rendering import BadRecordError, Rendered, Span

Fitted = TypeVar("Fitted")


class Parts(NamedTuple):
    """What a document may be divided into."""

    n: int

    render: Callable[[int, int], Rendered]
    """The parts [start, end) as a document of their own. Raises `BadRecordError`."""


def parts_of_text(content: Rendered) -> Parts:
    """The divisions of a text; none where it is worth something as a whole only."""
    spans = content.divisions

    def render(start: int, end: int) -> Rendered:
        return content.cut(spans[start][0], spans[end - 1][1])._replace(inside=False)

    return Parts(len(spans), render)


def parts_of_conversation(
    conversation: Conversation, render: Callable[[Conversation], Rendered]
) -> Parts:
    """The exchanges of a conversation. Each window is a conversation of its own: it begins with
    the system prompt and the tools, and a template treats its last turn as the last.
    """
    spans = exchanges(conversation.turns)

    def window(start: int, end: int) -> Rendered:
        turns = list(conversation.turns[spans[start][0] : spans[end - 1][1]])
        while turns and turns[-1].role != "assistant":
            del turns[-1]
        if not any(turn.loss for turn in turns if turn.role == "assistant"):
            raise BadRecordError("no_answer", "no turn that the model has to produce")
        return render(conversation._replace(turns=tuple(turns)))

    return Parts(len(spans), window)


def exchanges(turns: Sequence[Turn]) -> list[Span]:
    """Turns [start, end) of each question with all that follows up to the next question.

    Questions in a row are one, so an exchange has an answer; what a function returned stays behind
    its call. Turns before the first question belong to the first exchange.
    """
    asked = [turn.role == "user" for turn in turns]
    begins = [i for i in range(1, len(turns)) if asked[i] and not asked[i - 1]]
    return list(pairwise([0, *begins, len(turns)]))


def longest_runs(
    n: int, fit: Callable[[int, int], Fitted | None]
) -> Iterator[tuple[int, int, Fitted | None]]:
    """Divide the parts 0 to `n` into runs, each as long as it can be.

    Args:
        n: number of parts.
        fit: the run [start, end) as it is wanted, or None where it does not fit. What is asked is
            about as many runs as twice the binary digits of the parts of each.

    Yields:
        start, end and what `fit` gave. None stands for a single part that does not fit alone.
    """
    start = 0
    while start < n:
        end, found = start + 1, fit(start, start + 1)
        step, growing = 1, found is not None
        while step and end < n and found is not None:
            longer = min(end + step, n)
            if (more := fit(start, longer)) is not None:
                end, found = longer, more
            else:
                growing = False
            step = step * 2 if growing else step // 2
        yield start, end, found
        start = end

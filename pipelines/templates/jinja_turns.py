"""What of a chat template's output the assistant writes: where its turns begin and end.

A turn begins behind the generation prompt, which is what the template adds to the messages before
if it is asked to (`add_generation_prompt`). Where the output leaves the prompt (the prompt may
open a block of reasoning that is not written for earlier turns), it begins there. A turn ends
where the template begins to write the next one: behind the text that it writes after an answer
whether another turn follows or not. Nothing follows the last turn, so all that is left is its end.

Rendering the messages before each turn would be slow, so the texts around turns are learned
once, from small conversations, and looked for at the marks of a record. Only where they are not
found, the messages before the turn are rendered.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from pipelines.rendering import BadRecordError, Span
from pipelines.templates.jinja_output import REASONING, JinjaOutput, Look, Message, Tools
from pipelines.templates.jinja_seams import Prompt, Seam, Seams, attempt
from pipelines.templates.text_marks import Marked


class Turns:
    """Finds the assistant's turns in the outputs of one template."""

    def __init__(self, output: JinjaOutput) -> None:
        self._output = output
        self._seams = Seams(output)

    def find(
        self, messages: Sequence[Message], tools: Tools, marked: Marked, look: Look
    ) -> dict[int, Span]:
        """Characters [start, end) of the output that each message of the assistant takes.

        Args:
            messages: of a conversation.
            tools: descriptions of functions.
            marked: the output for them.
            look: how it was marked.

        Raises:
            BadRecordError: turn_not_found, template_failed.
        """
        given = [i for i, message in enumerate(messages) if message["role"] != "assistant"]
        said = "".join(str(messages[i]["content"]) for i in given)
        record = _Record(
            messages,
            tools,
            marked,
            look,
            steered=any(tag in said for tag in self._output.of(tools).tags),
            text=marked.text,
            borders=sorted(marked.starts[i] for i in given if i in marked.starts),
        )
        found: dict[int, Span] = {}
        for place, message in enumerate(messages):
            if message["role"] == "assistant":
                start = self._begin(record, place)
                found[place] = start, max(self._end(record, place, start), start)
        return found

    def _begin(self, record: "_Record", place: int) -> int:
        anchor = record.anchor(place)
        if anchor >= 0 and anchor == place - 1 and not record.steered:
            prompt = self._seams.prompts.get(record.messages[anchor]["role"])
            if prompt and (at := record.behind(prompt, anchor)) is not None:
                return at
        prompt = attempt(
            lambda: self._seams.prompt(record.messages[:place], record.tools, record.look, anchor)
        )
        if prompt and (at := record.behind(prompt, anchor)) is not None:
            return at
        # An answer that comes first may have no form before it; one behind another answer has that
        # in another form where it is the last.
        generation = self._generation()
        left = record.marked.ends.get(place - 1, record.left(anchor))
        first = record.marked.starts.get(place, len(record.text))
        at = record.text.find(generation, left, first) if generation else -1
        if at < 0:
            raise BadRecordError("turn_not_found", f"no generation prompt of turn {place + 1}")
        return at + len(generation)

    def _generation(self) -> str:
        """The generation prompt behind a question."""
        prompt = self._seams.prompts["user"]
        return prompt.whole[len(prompt.before) :]

    def _end(self, record: "_Record", place: int, start: int) -> int:
        text = record.text
        if place == len(record.messages) - 1:
            again = len(text) - len(self._seams.unasked)
            return again if text.endswith(self._seams.unasked) and again > start else len(text)
        seam = self._seams.after.get(record.messages[place + 1]["role"])
        if seam and (at := record.before(seam, place, start)) is not None:
            return at
        message = record.messages[place]
        bare = {name: value for name, value in message.items() if name not in REASONING}
        for last in (message, bare):
            done = attempt(
                lambda last=last: self._output.marked(
                    [*record.messages[:place], last], record.tools, record.look
                )
            )
            if done and (at := self._agreed(record, done, place)) is not None and at >= start:
                return at
        raise BadRecordError("turn_not_found", f"no end of turn {place + 1}")

    def _agreed(self, record: "_Record", done: Marked, place: int) -> int | None:
        """Where an output ends that stops behind a turn, in the whole output."""
        anchor = record.anchor(place)
        left = record.left(anchor)
        output = done.text.removesuffix(self._seams.unasked)
        tail = output[done.ends.get(anchor, 0) if anchor >= 0 else 0 :]
        if record.text.startswith(tail, left):
            return left + len(tail)
        if place in record.marked.ends and place in done.ends:
            left = record.marked.ends[place]
            between = record.text[left : record.right(left)]
            n = self._seams.common(output[done.ends[place] :], between)
            return left + n if n else None
        return _aligned(tail, record.text[left : record.right(left)], left)


@dataclass(frozen=True)
class _Record:
    """An output, and what it is the output of."""

    messages: Sequence[Message]
    tools: Tools
    marked: Marked
    look: Look
    steered: bool
    """Whether what is given to the model holds a word (`/no_think`) that the template reads."""

    borders: Sequence[int]
    """Where contents begin that are not the assistant's, ascending."""

    text: str

    def anchor(self, place: int) -> int:
        """The last message before an answer that is not one, and is marked; -1 for none."""
        given = (i for i in range(place - 1, -1, -1) if self.messages[i]["role"] != "assistant")
        found = next(given, -1)
        return found if found in self.marked.ends else -1

    def left(self, anchor: int) -> int:
        """Where the content of a message ends."""
        return self.marked.ends[anchor] if anchor >= 0 else 0

    def right(self, left: int) -> int:
        """Where the next content begins that is not the assistant's."""
        place = bisect_left(self.borders, left)
        return self.borders[place] if place < len(self.borders) else len(self.text)

    def behind(self, prompt: Prompt, anchor: int) -> int | None:
        """Where the answer to a message begins; None where the prompt for it is not found."""
        left = self.left(anchor)
        content: str = self.messages[anchor]["content"] if anchor >= 0 else ""
        blanks = content[len(content.rstrip()) :]
        # Blanks at the end of a content may be there or not.
        if blanks and self.text.startswith(blanks, left):
            at = prompt.end_in(self.text, left + len(blanks))
            if at is not None:
                return at
        return prompt.end_in(self.text, left)

    def before(self, seam: Seam, place: int, start: int) -> int | None:
        """Where an answer ends before the next turn; None where the seam is another one."""
        left = max(self.marked.ends.get(place, start), start)
        right = self.right(left)
        following: str = self.messages[place + 1]["content"]
        blanks = following[: len(following) - len(following.lstrip())]
        for at in dict.fromkeys((right - len(blanks), right)):
            stop = at - len(seam.opening)
            if stop < left or not self.text.endswith(seam.opening, stop, at):
                continue
            if seam.end.strip() and self.text.endswith(seam.end, left, stop):
                return stop
            if place in self.marked.ends and self.text[left:stop] == seam.end:
                return stop
        return None


def _shared(text: str, other: str) -> int:
    """Characters that two texts begin with."""
    pairs = zip(text, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _aligned(tail: str, text: str, left: int) -> int | None:
    """Where a text ends as `tail` does, at the place that agrees on most characters.

    Only what stands at the beginning of a turn may be another one. None where they agree on less
    than half of the tail.
    """
    end = tail[-16:]
    best, found = len(tail) // 2, None
    at = text.find(end)
    while at >= 0:
        stop = at + len(end)
        n = _shared(tail[::-1], text[:stop][::-1])
        if n > best:
            best, found = n, left + stop
        at = text.find(end, at + 1)
    return found

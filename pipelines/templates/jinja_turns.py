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

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from pipelines.rendering import BadRecordError, Span
from pipelines.templates.jinja_output import REASONING, JinjaOutput, Look, Message, Tools
from pipelines.templates.text_marks import Marked

_LONE_SPACE = re.compile(r"(?<!\s) \Z")
_ROLE_NAMES = (("user", "assistant"), ("User", "Assistant"), ("USER", "ASSISTANT"))
_FULL = Look()

QUESTION: Message = {"role": "user", "content": "A question?"}
ANSWER: Message = {"role": "assistant", "content": "An answer."}
_REASONED: Message = {**ANSWER, "thinking": "A thought.", "reasoning_content": "A thought."}
_FUNCTION = {"name": "look_up", "arguments": {"key": "A value."}}
CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "call00001", "type": "function", "function": _FUNCTION}],
}
_RESULT: Message = {
    "role": "tool", "content": "A result.", "name": "look_up", "tool_call_id": "call00001",
}  # fmt: skip
_KEY = {"type": "string", "description": "A key."}
_PARAMETERS = {"type": "object", "properties": {"key": _KEY}, "required": ["key"]}
TOOLS: Tools = [
    {
        "type": "function",
        "function": {"name": "look_up", "description": "Looks up.", "parameters": _PARAMETERS},
    }
]


@dataclass(frozen=True)
class _Prompt:
    """What stands between a turn and the answer to it."""

    before: str
    """What is written behind the turn in any case."""

    whole: str
    """This, and the generation prompt."""


@dataclass(frozen=True)
class _Seam:
    """What stands between an answer and the turn that follows."""

    end: str
    """The end of the answer; of calls, what follows their arguments."""

    opening: str
    """The beginning of the next turn."""


class Turns:
    """Finds the assistant's turns in the outputs of one template."""

    def __init__(self, output: JinjaOutput) -> None:
        self._output = output
        self._unasked = ""
        self._seams = {
            role: seam
            for role, seam in (("user", self._after_answer()), ("tool", self._after_call()))
            if seam
        }
        self._header: str | None = None
        self._beyond = 0
        if not self._has_prompt():
            self._header, self._beyond = self._find_header()
        after = {"user": ([QUESTION], ()), "tool": ([QUESTION, CALL, _RESULT], TOOLS)}
        self._prompts = {
            role: prompt
            for role, (messages, tools) in after.items()
            if (prompt := _try(lambda m=messages, t=tools: self._prompt(m, t, _FULL, len(m) - 1)))
        }
        if "user" not in self._prompts:  # a template that must have an answer
            self._prompts["user"] = _Prompt("", self._header or "")

    def _has_prompt(self) -> bool:
        """Whether what the template adds if it is asked to is what it writes before an answer."""
        prompt = _try(lambda: self._prompt([QUESTION], (), _FULL, 0))
        answered = _try(lambda: self._output.marked([QUESTION, ANSWER], (), _FULL))
        if not prompt or not answered or 0 not in answered.ends:
            return False
        record = _Record([QUESTION, ANSWER], (), answered, _FULL)
        return prompt.before != prompt.whole and self._behind(prompt, record, 0) is not None

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
        record = _Record(messages, tools, marked, look)
        found: dict[int, Span] = {}
        for place, message in enumerate(messages):
            if message["role"] == "assistant":
                start = self._begin(record, place)
                found[place] = start, max(self._end(record, place, start), start)
        return found

    def _begin(self, record: "_Record", place: int) -> int:
        anchor = record.anchor(place)
        if anchor >= 0 and anchor == place - 1 and not self._steered(record):
            prompt = self._prompts.get(record.messages[anchor]["role"])
            if prompt and (at := self._behind(prompt, record, anchor)) is not None:
                return at
        prompt = _try(
            lambda: self._prompt(record.messages[:place], record.tools, record.look, anchor)
        )
        if prompt and (at := self._behind(prompt, record, anchor)) is not None:
            return at
        # There may be no form for what stands before an answer that comes first.
        generation = self._generation()
        left, first = record.left(anchor), record.marked.starts.get(place, len(record.text))
        at = record.text.find(generation, left, first) if generation else -1
        if at < 0:
            raise BadRecordError("turn_not_found", f"no generation prompt of turn {place + 1}")
        return at + len(generation)

    def _steered(self, record: "_Record") -> bool:
        """Whether what is given to the model holds a word (`/no_think`) that the template reads."""
        tags = self._output.of(record.tools).tags
        given = "".join(str(m["content"]) for m in record.messages if m["role"] != "assistant")
        return any(tag in given for tag in tags)

    def _behind(self, prompt: _Prompt, record: "_Record", anchor: int) -> int | None:
        """Where the answer to a message begins; None where the prompt for it is not found."""
        text, places = record.text, record.behind(anchor)
        for at in places:
            if text.startswith(prompt.whole, at):
                return at + len(prompt.whole)
        for at in places:
            n = self._units(prompt.whole, text[at : at + len(prompt.whole)])
            if prompt.whole[len(prompt.before) : n].strip():
                return at + n
        return None

    def _generation(self) -> str:
        """The generation prompt behind a question."""
        prompt = self._prompts["user"]
        return prompt.whole[len(prompt.before) :]

    def _end(self, record: "_Record", place: int, start: int) -> int:
        text = record.text
        if place == len(record.messages) - 1:
            again = len(text) - len(self._unasked)
            return again if text.endswith(self._unasked) and again > start else len(text)
        seam = self._seams.get(record.messages[place + 1]["role"])
        if seam and (at := record.before(seam, place, start)) is not None:
            return at
        message = record.messages[place]
        bare = {name: value for name, value in message.items() if name not in REASONING}
        for last in (message, bare):
            done = _try(
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
        tail = done.text[done.ends.get(anchor, 0) if anchor >= 0 else 0 :]
        if record.text.startswith(tail, left):
            return left + len(tail)
        if place in record.marked.ends and place in done.ends:
            left = record.marked.ends[place]
            between = record.text[left : record.right(left)]
            n = self._common(done.text[done.ends[place] :], between)
            return left + n if n else None
        return _aligned(tail, record.text[left : record.right(left)], left)

    def _prompt(self, messages: Sequence[Message], tools: Tools, look: Look, last: int) -> _Prompt:
        """What follows the content of a message, without an answer and with the prompt for one."""
        texts: list[str] = []
        for prompt in (False, True):
            marked = self._output.marked(messages, tools, look, prompt=prompt)
            if last >= 0 and look.given and last not in marked.ends:
                raise BadRecordError("template_lost_turn", messages[last]["role"])
            texts.append(marked.text[marked.ends.get(last, 0) :])
        without, whole = texts
        if self._header is not None:
            without = without[: len(without) - self._beyond]
            return _Prompt(without, without + self._header)
        return _Prompt(whole[: self._units(without, whole)], whole)

    def _find_header(self) -> tuple[str, int]:
        """What stands between a question and its answer, for templates without a prompt for it.

        Of that, what names the side that speaks, as the user is named; else what stands there
        whether the answer begins with reasoning, a call or neither. A lone space at its end is
        the model's to write. And how many characters less stand behind the question than where
        nothing follows it.
        """
        bare = _try(lambda: self._output.marked([QUESTION], (), _FULL))
        openings: list[str] = []
        for answer in (ANSWER, _REASONED, {**CALL, "content": ANSWER["content"]}):
            tools = TOOLS if "tool_calls" in answer else ()
            found = _try(lambda a=answer, t=tools: self._output.marked([QUESTION, a], t, _FULL))
            if found and 0 in found.ends:
                openings.append(found.text[found.ends[0] : found.starts.get(1)])
        if not openings:
            return "", 0
        before = bare.text[bare.ends[0] :] if bare and 0 in bare.ends else ""
        shortest = openings[0]
        for opening in openings[1:]:
            shortest = shortest[: self._units(opening, shortest)]
        n = self._units(before, shortest)
        header = shortest[n:]
        if seam := self._seams.get("user"):
            for user, assistant in _ROLE_NAMES:
                named = seam.opening.replace(user, assistant)
                if user in seam.opening and openings[0][n:].startswith(named):
                    header = named
        return _LONE_SPACE.sub("", header), len(before) - n

    def _after_answer(self) -> _Seam | None:
        """What stands between an answer and the next question."""
        bare = _try(lambda: self._output.marked([QUESTION], (), _FULL))
        one = _try(lambda: self._output.marked([QUESTION, ANSWER], (), _FULL))
        two = _try(lambda: self._output.marked([QUESTION, ANSWER] * 2, (), _FULL))
        if not one or not two or not {0, 1} <= one.ends.keys() or not {1, 2} <= two.starts.keys():
            return None
        tail, between = one.text[one.ends[1] :], two.text[two.ends[1] : two.starts[2]]
        n = self._common(tail, between)
        # Some write a prompt for the next answer even if they are not asked to.
        asked = bare.text[bare.ends[0] :] if bare and 0 in bare.ends else ""
        begun = len(asked) - len(tail[n:])
        written = self._units(asked, one.text[one.ends[0] : one.starts[1]])
        if tail[n:].strip() and asked.endswith(tail[n:]) and written > begun:
            n -= self._begun(between, n, one.text[: one.starts[0]])
            self._unasked = tail[n:]
        return _Seam(between[:n], between[n:])

    def _begun(self, between: str, n: int, first: str) -> int:
        """Characters before `n` that begin a turn, as the first one begins."""
        begun = first.removeprefix(self._output.variables.get("bos_token", ""))
        cuts = [0, *self._output.marks.units(between[:n])]
        shared = [n - at for at in cuts if begun.startswith(between[at:n])]
        return max(shared) or max(
            (n - at for at in cuts if first.endswith(between[at:])), default=0
        )

    def _after_call(self) -> _Seam | None:
        """What stands between the arguments of a call and its result."""
        one = _try(lambda: self._output.marked([QUESTION, CALL], TOOLS, _FULL))
        two = _try(lambda: self._output.marked([QUESTION, CALL, _RESULT, ANSWER], TOOLS, _FULL))
        if not one or not two or not {0, 2} <= two.starts.keys():
            return None
        tail, between = (
            text.rpartition("A value.")[2] for text in (one.text, two.text[: two.starts[2]])
        )
        n = self._common(tail, between)
        end = between[:n].rpartition("}")[2]
        return _Seam(end, between[n:]) if end.strip() else None

    def _common(self, end: str, between: str) -> int:
        """Characters of the end of an answer that stand there too where another turn follows.

        The two may be control tokens of their own (`<|return|>`, `<|end|>`).
        """
        n = self._units(end, between)
        if between[:n].strip():
            return n
        marks = self._output.marks
        blanks = len(between) - len(between.lstrip())
        token = marks.control_at(between.lstrip())
        if token and marks.control_at(end.lstrip()) and not self._begins(token):
            return blanks + len(token)
        return n

    def _begins(self, token: str) -> bool:
        """Whether a control token begins texts, and does not end any."""
        tokens = self._output.variables
        return token == tokens.get("bos_token") != tokens.get("eos_token")

    def _units(self, text: str, other: str) -> int:
        """Characters that two texts begin with, in whole units of the first."""
        if other.startswith(text):
            return len(text)
        n = _shared(text, other)
        return max((end for end in self._output.marks.units(text) if end <= n), default=0)


@dataclass(frozen=True)
class _Record:
    """An output, and what it is the output of."""

    messages: Sequence[Message]
    tools: Tools
    marked: Marked
    look: Look

    @property
    def text(self) -> str:
        return self.marked.text

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
        given = [
            at for i, at in self.marked.starts.items() if self.messages[i]["role"] != "assistant"
        ]
        return min((at for at in given if at >= left), default=len(self.text))

    def behind(self, anchor: int) -> list[int]:
        """Where a message may end: blanks behind its content may be there or not."""
        left = self.left(anchor)
        content: str = self.messages[anchor]["content"] if anchor >= 0 else ""
        blanks = content[len(content.rstrip()) :]
        both = bool(blanks) and self.text.startswith(blanks, left)
        return [left + len(blanks), left] if both else [left]

    def before(self, seam: _Seam, place: int, start: int) -> int | None:
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


def _try(render: Callable[[], Any]) -> Any:
    """What a template gives, or None where it fails."""
    try:
        return render()
    except BadRecordError:
        return None

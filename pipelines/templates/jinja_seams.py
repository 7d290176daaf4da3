"""The texts that a chat template writes around the turns of the assistant.

They are learned once for each template, from small conversations, by comparing outputs: with a
generation prompt and without, with another turn behind an answer and without.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.rendering import BadRecordError
from pipelines.templates.jinja_output import JinjaOutput, Look, Message, Tools

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
class Prompt:
    """What stands between a turn and the answer to it."""

    before: str
    """What is written behind the turn in any case."""

    whole: str
    """This, and the generation prompt."""

    ends: tuple[int, ...]
    """Where units of the generation prompt end (special tokens, tags, words, signs), the last
    first; but for blanks at its beginning."""

    def end_in(self, text: str, at: int) -> int | None:
        """Where it ends in a text that has it at `at`, or the beginning of it; None for neither."""
        if text.startswith(self.whole, at):
            return at + len(self.whole)
        parts = (end for end in self.ends if text.startswith(self.whole[:end], at))
        return next((at + end for end in parts), None)


@dataclass(frozen=True)
class Seam:
    """What stands between an answer and the turn that follows."""

    end: str
    """The end of the answer; of calls, what follows their arguments."""

    opening: str
    """The beginning of the next turn."""


class Seams:
    """What stands around the assistant's turns in the outputs of one template."""

    after: dict[str, Seam]
    """By the role of the turn that follows an answer; one that could not be learned is missing."""

    unasked: str
    """A generation prompt that the template writes even if it is not asked to."""

    def __init__(self, output: JinjaOutput) -> None:
        self._output = output
        self.unasked = ""
        found = {"user": self._after_answer(), "tool": self._after_call()}
        self.after = {role: seam for role, seam in found.items() if seam}
        self._header: str | None = None
        self._beyond = 0
        if not self._has_prompt():
            self._header, self._beyond = self._find_header()
        after = {"user": ([QUESTION], ()), "tool": ([QUESTION, CALL, _RESULT], TOOLS)}
        self.prompts = {
            role: prompt
            for role, (messages, tools) in after.items()
            if (prompt := attempt(lambda m=messages, t=tools: self.prompt(m, t, _FULL, len(m) - 1)))
        }
        if "user" not in self.prompts:  # a template that must have an answer
            self.prompts["user"] = self._of("", self._header or "")

    def _has_prompt(self) -> bool:
        """Whether what the template adds if it is asked to is what it writes before an answer."""
        prompt = attempt(lambda: self.prompt([QUESTION], (), _FULL, 0))
        answered = attempt(lambda: self._output.marked([QUESTION, ANSWER], (), _FULL))
        if not prompt or not answered or 0 not in answered.ends:
            return False
        found = prompt.end_in(answered.text, answered.ends[0])
        return prompt.before != prompt.whole and found is not None

    def _of(self, before: str, whole: str) -> Prompt:
        ends = reversed(self._output.marks.units(whole))
        return Prompt(before, whole, tuple(end for end in ends if whole[len(before) : end].strip()))

    def prompt(self, messages: Sequence[Message], tools: Tools, look: Look, last: int) -> Prompt:
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
            return self._of(without, without + self._header)
        return self._of(whole[: self._units(without, whole)], whole)

    def _find_header(self) -> tuple[str, int]:
        """What stands between a question and its answer, for templates without a prompt for it.

        Of that, what names the side that speaks, as the user is named; else what stands there
        whether the answer begins with reasoning, a call or neither. A lone space at its end is
        the model's to write. And how many characters less stand behind the question than where
        nothing follows it.
        """
        bare = attempt(lambda: self._output.marked([QUESTION], (), _FULL))
        openings: list[str] = []
        for answer in (ANSWER, _REASONED, {**CALL, "content": ANSWER["content"]}):
            tools = TOOLS if "tool_calls" in answer else ()
            found = attempt(lambda a=answer, t=tools: self._output.marked([QUESTION, a], t, _FULL))
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
        if seam := self.after.get("user"):
            for user, assistant in _ROLE_NAMES:
                named = seam.opening.replace(user, assistant)
                if user in seam.opening and openings[0][n:].startswith(named):
                    header = named
        return _LONE_SPACE.sub("", header), len(before) - n

    def _after_answer(self) -> Seam | None:
        """What stands between an answer and the next question."""
        bare = attempt(lambda: self._output.marked([QUESTION], (), _FULL))
        one = attempt(lambda: self._output.marked([QUESTION, ANSWER], (), _FULL))
        two = attempt(lambda: self._output.marked([QUESTION, ANSWER] * 2, (), _FULL))
        if not one or not two or not {0, 1} <= one.ends.keys() or not {1, 2} <= two.starts.keys():
            return None
        tail, between = one.text[one.ends[1] :], two.text[two.ends[1] : two.starts[2]]
        n = self.common(tail, between)
        # Some write a prompt for the next answer even if they are not asked to.
        asked = bare.text[bare.ends[0] :] if bare and 0 in bare.ends else ""
        begun = len(asked) - len(tail[n:])
        written = self._units(asked, one.text[one.ends[0] : one.starts[1]])
        if tail[n:].strip() and asked.endswith(tail[n:]) and written > begun:
            n -= self._begun(between, n, one.text[: one.starts[0]])
            self.unasked = tail[n:]
        return Seam(between[:n], between[n:])

    def _begun(self, between: str, n: int, first: str) -> int:
        """Characters before `n` that begin a turn, as the first one begins."""
        begun = first.removeprefix(self._output.variables.get("bos_token", ""))
        cuts = [0, *self._output.marks.units(between[:n])]
        shared = [n - at for at in cuts if begun.startswith(between[at:n])]
        return max(shared) or max(
            (n - at for at in cuts if first.endswith(between[at:])), default=0
        )

    def _after_call(self) -> Seam | None:
        """What stands between the arguments of a call and its result."""
        one = attempt(lambda: self._output.marked([QUESTION, CALL], TOOLS, _FULL))
        two = attempt(lambda: self._output.marked([QUESTION, CALL, _RESULT, ANSWER], TOOLS, _FULL))
        if not one or not two or not {0, 2} <= two.starts.keys():
            return None
        tail, between = (
            text.rpartition("A value.")[2] for text in (one.text, two.text[: two.starts[2]])
        )
        n = self.common(tail, between)
        end = between[:n].rpartition("}")[2]
        return Seam(end, between[n:]) if end.strip() else None

    def common(self, end: str, between: str) -> int:
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
        ends = reversed(self._output.marks.units(text))
        return next((end for end in ends if other.startswith(text[:end])), 0)


def attempt(render: Callable[[], Any]) -> Any:
    """What a template gives, or None where it fails."""
    try:
        return render()
    except BadRecordError:
        return None

"""What the chat model is asked.

The two prompts that generate are those of "Effective Long-Context Scaling of Foundation Models"
(arXiv 2309.16039, appendix D), word for word but for the `[INST]` around them: a chat endpoint
puts its own template around a message. The paper does not publish how its model verified answers:
every other prompt here is ours.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Literal

Kind = Literal["normal", "short"]

NORMAL = '''\
You are given a text chunk (delimited by triple quotes) taken from a long text. Write a question \
about this text and provide the correct answer. The answer needs to be based on the text. This \
question will later be used as a reading comprehension test over the entire document. Wrap the \
question and answer using XML tags (<question> and </question>, <answer> and </answer>).
"""
{TEXT_CHUNK}
"""
'''

SHORT = '''\
You are given a text chunk (delimited by triple quotes) from a long document. Based on information \
from the text, come up with a specific question **which can be answered in a few words or a single \
phrase** and provide the correct answer without explanation. The answer needs to be based on the \
text. This question will later be used as a reading comprehension test over the entire document. \
Wrap the question and answer using XML tags (<question> and </question>, <answer> and </answer>). \
Again, the answer needs to be short.
"""
{TEXT_CHUNK}
"""
'''

# Ours from here on. Those with a passage begin alike, so that a server that keeps prefixes reads
# the passage once.
_PASSAGE = '''\
Here is a passage (delimited by triple quotes).
"""
{TEXT_CHUNK}
"""
'''

CRITIQUE = (
    _PASSAGE
    + """\
A student was asked a question about the passage.
Question: {QUESTION}
Answer of the student: {ANSWER}
Is this answer right and complete according to the passage? First quote the words of the passage \
that decide it, then end with one line that says only VERDICT: RIGHT or VERDICT: WRONG.
"""
)

ROUND_TRIP: Mapping[Kind, str] = {
    "normal": _PASSAGE
    + """\
Answer the question from the passage alone, in one or two sentences. If the passage does not hold \
the answer, reply: not in the passage.
Question: {QUESTION}
""",
    "short": _PASSAGE
    + """\
Answer the question from the passage alone, in as few words as possible. If the passage does not \
hold the answer, reply: not in the passage.
Question: {QUESTION}
""",
}

CLOSED_BOOK = """\
Answer the question in as few words as possible. If you do not know, reply: I do not know.
Question: {QUESTION}
"""

GENERATION: Mapping[Kind, str] = {"normal": NORMAL, "short": SHORT}

_QUOTES = re.compile(r'"{3,}')
_TAGS = re.compile(r"<(\s*/?\s*(?:question|answer)\s*)>", re.IGNORECASE)
_CONTROL = re.compile(
    r"<(?=\|)|(?<=\|)(?=>)"  # <|im_start|> and its like
    r"|<(?=/?(?:s|bos|eos|unk|pad|start_of_turn|end_of_turn)>)"
    r"|<(?=</?SYS>>)|\[(?=/?(?:INST|AVAILABLE_TOOLS|TOOL_CALLS|SYSTEM_PROMPT)\])"
)


def neutral(text: str) -> str:
    """Text as it may stand inside a prompt: nothing in it ends the quote or looks like markup.

    Three or more double quotes in a row become single quotes, the tags of questions and answers
    get round brackets, and a space goes into what chat templates use as control tokens, which
    servers would read as such. The record keeps the text as it was.
    """
    text = _QUOTES.sub(lambda found: "'" * len(found[0]), text)
    text = _TAGS.sub(r"(\1)", text)
    return _CONTROL.sub(lambda found: f"{found[0]} ", text)


def fill(template: str, *, chunk: str = "", question: str = "", answer: str = "") -> str:
    """A prompt with its places filled, each text made neutral before.

    One pass over the template: a place name inside a text is not a place.
    """
    values = {"TEXT_CHUNK": chunk, "QUESTION": question, "ANSWER": answer}
    places = re.compile("{(" + "|".join(values) + ")}")
    return places.sub(lambda found: neutral(values[found[1]]), template)


def prompt_digests() -> dict[str, str]:
    """Digest of each prompt's wording, for the report."""
    prompts = {
        "normal": NORMAL,
        "short": SHORT,
        "critique": CRITIQUE,
        "round_trip_normal": ROUND_TRIP["normal"],
        "round_trip_short": ROUND_TRIP["short"],
        "closed_book": CLOSED_BOOK,
    }
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in prompts.items()}

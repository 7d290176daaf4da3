"""Questions answered after examples in the prompt, with a growing number of examples.

A text is `Question: …`, a line `Type: …` or `Answer: …`, and an empty line; the prompt ends with
the last question's `Type:`. More context holds more examples; those of a smaller one come first.
"""

import random
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, product

from pipelines.errors import UserError
from trainer.passkey import Answer
from trainer.perplexity import Watch
from trainer.questions import Question

Pieces = Callable[[Sequence[str]], list[list[int]]]
"""The ids of texts that follow each other, each tokenized by itself; BOS before the first."""

SPARE_IDS = 4
"""By how much an answer may be longer than the longest right one: an article, other spelling."""


@dataclass(frozen=True)
class Asked:
    """One question in a context of so many tokens, and the line that the model answered."""

    context: int
    examples: int
    tokens: int
    question: str
    answers: tuple[str, ...]
    answer: str
    right: bool


def is_label(answer: str, answers: Sequence[str]) -> bool:
    """Is the answer the label?"""
    return answer in answers


def is_named(answer: str, answers: Sequence[str]) -> bool:
    """Is the answer one of the names, but for case, articles and punctuation, as SQuAD compares?"""
    return _plain(answer) in map(_plain, answers)


def _plain(text: str) -> str:
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    # A name may consist of articles alone.
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split()) or text.lower()


def ask(
    pieces: Pieces, answer: Answer, *, train: Sequence[Question], test: Sequence[Question],
    word: str, is_right: Callable[[str, Sequence[str]], bool], contexts: Sequence[int],
    seed: int, watch: Watch,
) -> list[Asked]:  # fmt: skip
    """Ask all questions of `test` in each context.

    Examples are drawn from `train` by the seed; all questions of a context get the same, as many as
    fit beside the longest question and the longest right answer.

    Args:
        pieces: tokenizes.
        answer: generates; `word` is Type or Answer.
        train: where examples come from.
        test: what is asked.
        word: what an answer's line begins with.
        is_right: compares a line with the right answers.
        contexts: tokens of prompt and answer.
        seed: of the examples.
        watch: tells how many questions are asked.

    Raises:
        UserError: a context holds no example, or more than there are.
    """
    shown = random.Random(f"examples {seed}").sample(train, len(train))
    asked = [f"Question: {q.text}\n{word}:" for q in [*shown, *test]]
    answered = [f"{text} {q.answers[0]}\n\n" for text, q in zip(asked, shown, strict=False)]
    rights = [f" {right}\n" for q in test for right in q.answers]
    ids = pieces([*answered, *asked[len(shown) :], *rights])
    examples, questions = ids[: len(shown)], ids[len(shown) :][: len(test)]
    n_answer = max(map(len, ids[len(shown) + len(test) :])) + SPARE_IDS
    needed = [n + max(map(len, questions)) + n_answer for n in accumulate(map(len, examples))]
    fitting = {context: _how_many(needed, context) for context in contexts}
    done = list[Asked]()
    for context, i in watch(list(product(contexts, range(len(test))))):
        prompt = [
            token for piece in (*examples[: fitting[context]], questions[i]) for token in piece
        ]
        said = answer(prompt, n_answer).partition("\n")[0].strip()
        right = is_right(said, test[i].answers)
        counts = context, fitting[context], len(prompt)
        done.append(Asked(*counts, test[i].text, test[i].answers, said, right))
    return done


def _how_many(needed: Sequence[int], context: int) -> int:
    """Examples that a context holds, from the tokens that are needed for 1, 2, … of them."""
    fitting = sum(n <= context for n in needed)
    if not fitting:
        raise UserError(
            f"--contexts {context}: too short for one example, the longest question and its "
            f"answer, which need {needed[0]:,} tokens"
        )
    if fitting == len(needed):
        raise UserError(
            f"--contexts {context}: not full with all {fitting:,} examples of --train, which need "
            f"{needed[-1]:,} tokens; give shorter --contexts"
        )
    return fitting


def drawn(test: Sequence[Question], n: int | None, *, seed: int) -> list[Question]:
    """`n` of the questions (None: all), drawn by the seed, in the order of their file.

    Raises:
        UserError: there are fewer.
    """
    if n is not None and n > len(test):
        raise UserError(f"--questions {n}: --test has only {len(test):,}")
    chosen = random.Random(f"questions {seed}").sample(range(len(test)), n or len(test))
    return [test[i] for i in sorted(chosen)]


def counts(asked: Sequence[Asked], context: int) -> tuple[int, int, int, float]:
    """Examples, tokens of the longest prompt, questions, and share of right answers."""
    here = [one for one in asked if one.context == context]
    right = sum(one.right for one in here) / len(here)
    return here[0].examples, max(one.tokens for one in here), len(here), right

"""Which conversations are left out: the filters that LongLLaMA-Instruct was published with.

The published grammar names fields of a record; these name parts of a conversation, so they hold
for every schema. Characters are counted, and expressions are looked for, in all that turns say,
their reasoning and their calls of functions included, but not in the system prompt.
"""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from pipelines.conversations import Conversation, turn_texts
from pipelines.options import Frozen, Whole


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _expressions(patterns: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in patterns:
        try:
            re.compile(pattern, re.DOTALL)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"'{pattern}' is no regular expression: {error}") from None
    return patterns


Expressions = Annotated[tuple[str, ...], BeforeValidator(_as_list), AfterValidator(_expressions)]
Characters = Annotated[Whole, Field(ge=0)]


class ChatFilters(Frozen):
    """What a conversation must be, and must not hold, to be kept."""

    languages: Expressions = ()
    """Regular expressions for the record's `lang`, one of which must match from its beginning, as
    `^en$` does. Empty: any language."""

    forbidden: Expressions = ()
    """Regular expressions none of which may be found in a turn. A dot stands for any character,
    line ends too; `(?i)` at the beginning makes upper and lower case equal."""

    forbidden_answers: Expressions = ()
    """The same for answers alone."""

    first_turn_above: Characters | None = None
    """The first turn has more characters than this."""

    first_turn_below: Characters | None = None
    """The first turn has fewer characters than this."""

    all_turns_above: Characters | None = None
    """All turns together have more characters than this."""

    all_turns_below: Characters | None = None
    """All turns together have fewer characters than this."""


def chat_drop_reason(
    conversation: Conversation, lang: str, filters: ChatFilters
) -> tuple[str, str] | None:
    """Why a conversation is not kept, and what decided; None where it is.

    Reasons: other_language, forbidden_text, first_turn_length, all_turns_length.
    """
    if filters.languages and not any(re.match(p, lang, re.DOTALL) for p in filters.languages):
        return "other_language", lang or "no language given"
    lengths = [sum(map(len, turn_texts(turn))) for turn in conversation.turns]
    if not _between(lengths[0], filters.first_turn_above, filters.first_turn_below):
        return "first_turn_length", f"{lengths[0]:,} characters"
    if not _between(sum(lengths), filters.all_turns_above, filters.all_turns_below):
        return "all_turns_length", f"{sum(lengths):,} characters"
    return _forbidden(conversation, filters)


def _between(value: int, above: int | None, below: int | None) -> bool:
    return (above is None or value > above) and (below is None or value < below)


def _forbidden(conversation: Conversation, filters: ChatFilters) -> tuple[str, str] | None:
    for place, turn in enumerate(conversation.turns, 1):
        answers = filters.forbidden_answers if turn.role == "assistant" else ()
        for pattern in (*filters.forbidden, *answers):
            for text in turn_texts(turn):
                if found := re.search(pattern, text, re.DOTALL):
                    return "forbidden_text", f"turn {place}: {found.group()[:80]!r}"
    return None

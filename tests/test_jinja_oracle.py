"""Chat templates beside transformers: the same text, and loss where `{% generation %}` says so."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja_templates import NAMED_RESULTS, PARTS, SPECIAL, TEMPLATES, THINKING, unmarked

from pipelines.conversations import Conversation, Turn
from pipelines.errors import UserError
from pipelines.rendering import BadRecordError, Rendered
from pipelines.templates.jinja_chat import jinja_renderer
from pipelines.templates.jinja_source import ChatTemplate

utils = pytest.importorskip("transformers.utils.chat_template_utils")

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
DATE = datetime.datetime(2024, 7, 26)
CALL = {"id": "call00001", "type": "function",
        "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 3}}}  # fmt: skip
TOOL = {"type": "function",
        "function": {"name": "weather", "description": "The <|end|> weather.",
                     "parameters": {"type": "object", "properties": {}}}}  # fmt: skip


class FixedDate(datetime.datetime):
    """The clock that transformers looks at."""

    @classmethod
    def now(cls, tz: Any = None) -> FixedDate:
        return cls(2024, 7, 26)


def renderer(source: str, **options):
    template = ChatTemplate("a template", source)
    options = {"date": DATE, **options}
    return jinja_renderer(template, special=SPECIAL, bos="<s>", eos="</s>", **options)


def spelled(rendered: Rendered) -> list[tuple[str, bool]]:
    """The text with its control tokens, character by character, and whether it is learned."""
    learned = {i for start, end in rendered.answers for i in range(start, end)}
    characters, at = [], 0
    for position, token, loss in [*rendered.controls, (len(rendered.text), "", False)]:
        characters += [(rendered.text[i], i in learned) for i in range(at, position)]
        characters += [(character, loss) for character in token]
        at = position
    return characters


def messages_of(talk: Conversation) -> list[dict[str, Any]]:
    first = [] if talk.system is None else [{"role": "system", "content": talk.system}]
    return [*first, *({"role": t.role, "content": t.text, **t.fields} for t in talk.turns)]


def transformers(source: str, talk: Conversation, **options) -> list[tuple[str, bool]]:
    """What transformers makes of it: its text, and what its mask holds."""
    utils.datetime = FixedDate
    try:
        texts, masks = utils.render_jinja_template(
            [messages_of(talk)],
            tools=list(talk.tools) or None,
            chat_template=source,
            return_assistant_tokens_mask=True,
            **TOKENS,
            **options,
        )
    finally:
        utils.datetime = datetime.datetime
    learned = {i for start, end in masks[0] for i in range(start, end)}
    return [(character, i in learned) for i, character in enumerate(texts[0])]


def turns(*texts: str) -> tuple[Turn, ...]:
    return tuple(Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))


ODD = ["Yes", "</s>", "<|im_end|>\n", "a<|im_end|>\n<|im_start|>user\nq", " \ue0000\ue001 ",
       "\ue000s1\ue001", "{{ bos_token }}", " padded\n", "[INST] q [/INST]", "### End", "assistant",
       "### Answer: x\n### End", "<|im_start|>", "im_end|>", "<|"]  # fmt: skip
contents = st.text(min_size=1).filter(str.strip) | st.sampled_from(ODD)
talks = st.builds(
    lambda system, texts: Conversation(system, turns(*texts[: len(texts) // 2 * 2])),
    st.none() | contents,
    st.lists(contents, min_size=2, max_size=6),
)
RENDERERS = {name: (renderer(x), renderer(unmarked(x))) for name, x in TEMPLATES.items()}


@pytest.mark.parametrize("name", TEMPLATES)
@given(talk=talks)
def test_text_and_loss_are_those_of_transformers_with_marks_and_without(name, talk):
    expected = transformers(TEMPLATES[name], talk)
    for render in RENDERERS[name]:
        assert spelled(render(talk)) == expected


@pytest.mark.parametrize("name", TEMPLATES)
@given(talk=talks)
def test_no_text_of_a_record_becomes_a_control_token(name, talk):
    harmless = Conversation(None if talk.system is None else "x", turns(*"x" * len(talk.turns)))
    for render in RENDERERS[name]:
        assert [c.token for c in render(talk).controls] == [
            c.token for c in render(harmless).controls
        ]


def answer(text: str, **fields: Any) -> Turn:
    return Turn("assistant", text, True, fields)


REASONED = Conversation(
    "Be brief.",
    (
        Turn("user", "q"),
        answer("a", reasoning_content="first </s> thought"),
        Turn("user", "r"),
        answer("b", reasoning_content="second thought"),
    ),
)
INSIDE = Conversation(
    None,
    turns("q", "<think>\nfirst\n</think>\n\na", "r", "<think>\nsecond\n</think>\n\nb"),
)
CALLED = Conversation(
    None,
    (
        Turn("user", "q"),
        answer("", tool_calls=[CALL]),
        Turn("tool", 'say "no" </s>', fields={"name": "weather", "tool_call_id": "call00001"}),
        answer("a"),
        Turn("user", "r"),
        answer("So:", tool_calls=[CALL]),
        Turn("tool", "yes", fields={"name": "weather"}),
        answer("b"),
    ),
    (TOOL,),
)


@pytest.mark.parametrize("talk", [REASONED, INSIDE, CALLED], ids=["field", "inside", "calls"])
def test_reasoning_and_calls_are_written_and_learned_as_transformers_does_it(talk):
    expected = transformers(THINKING, talk)
    assert spelled(renderer(THINKING)(talk)) == expected
    assert spelled(renderer(unmarked(THINKING))(talk)) == expected


def test_a_turn_ends_before_a_result_that_names_its_function():
    expected = transformers(NAMED_RESULTS, CALLED)
    assert spelled(renderer(NAMED_RESULTS)(CALLED)) == expected
    assert spelled(renderer(unmarked(NAMED_RESULTS))(CALLED)) == expected


def test_a_special_word_that_the_template_looks_for_is_a_control_token_in_answers_alone():
    render = jinja_renderer(
        ChatTemplate("a template", unmarked(THINKING)),
        special=[*SPECIAL, "<think>", "</think>"],
        bos="<s>",
        eos="</s>",
    )
    talk = Conversation(None, turns("</think>?", "<think>\nt\n</think>\n\na"))
    controls = [c.token for c in render(talk).controls]
    assert [token for token in controls if "think" in token] == ["<think>", "</think>"]
    assert spelled(render(talk)) == transformers(THINKING, talk)


TWO_ANSWERS = Conversation(None, (*turns("q", "a"), answer("b"), *turns("r", "c")))
ANSWER_FIRST = Conversation(None, (answer("a"), *turns("q", "b")))


@pytest.mark.parametrize("name", [name for name in TEMPLATES if "alternating" not in name])
@pytest.mark.parametrize("talk", [TWO_ANSWERS, ANSWER_FIRST], ids=["two answers", "answer first"])
def test_answers_that_follow_each_other_or_come_first_are_learned_one_by_one(name, talk):
    expected = transformers(TEMPLATES[name], talk)
    for render in RENDERERS[name]:
        assert spelled(render(talk)) == expected


def test_arguments_reach_the_template_and_unknown_ones_are_a_fault():
    talk = Conversation(None, turns("q", "a"))
    silent = renderer(unmarked(THINKING), arguments={"enable_thinking": False})(talk)
    text = "".join(character for character, _ in spelled(silent))
    assert text == "".join(c for c, _ in transformers(THINKING, talk, enable_thinking=False))
    assert [silent.text[start:end] for start, end in silent.answers] == ["a", "\n"]
    with pytest.raises(UserError, match="enable_thinkng"):
        renderer(THINKING, arguments={"enable_thinkng": False})


def test_the_date_is_the_mixtures_and_a_template_that_writes_one_needs_it():
    with pytest.raises(UserError, match="give a fixed one"):
        renderer(TEMPLATES["channels, a date, macros"], date=None)


def test_a_template_that_takes_parts_is_given_each_content_as_one():
    talk = Conversation(None, turns("q", "a", "r", "b"))
    parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages_of(talk)]
    texts, masks = utils.render_jinja_template(
        [parts], chat_template=PARTS, return_assistant_tokens_mask=True, **TOKENS
    )
    learned = {i for start, end in masks[0] for i in range(start, end)}
    expected = [(character, i in learned) for i, character in enumerate(texts[0])]
    assert spelled(renderer(PARTS)(talk)) == expected
    assert spelled(renderer(unmarked(PARTS))(talk)) == expected


@pytest.mark.parametrize("source", [THINKING, unmarked(THINKING)], ids=["marks", "no marks"])
def test_a_turn_that_the_record_takes_out_is_not_learned(source):
    talk = CALLED._replace(turns=tuple(
        turn._replace(loss=place != 1) for place, turn in enumerate(CALLED.turns)
    ))  # fmt: skip
    expected, found = transformers(THINKING, CALLED), spelled(renderer(source)(talk))
    assert [c for c, _ in found] == [c for c, _ in expected]
    begin = "".join(c for c, _ in expected).index("\n<tool_call>")
    lost = [i for i, pair in enumerate(zip(expected, found, strict=True)) if pair[0] != pair[1]]
    assert lost == list(range(begin, lost[-1] + 1))
    taken_out = "".join(character for character, _ in expected[lost[0] : lost[-1] + 1])
    assert taken_out.endswith("</tool_call><|im_end|>\n")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"reasoning_content": "hm"}, "field_not_rendered"),
        ({"refusal": "no"}, "field_not_rendered"),
        ({"tool_calls": [CALL]}, "field_not_rendered"),
    ],
)
def test_a_field_that_the_template_never_writes_drops_the_record(fields, reason):
    render = renderer(TEMPLATES["chatml"])
    with pytest.raises(BadRecordError) as bad:
        render(Conversation(None, (Turn("user", "q"), answer("a", **fields))))
    assert bad.value.reason == reason
    assert next(iter(fields)) in bad.value.evidence


def test_tools_that_the_template_ignores_drop_the_record():
    with pytest.raises(BadRecordError, match="tools_not_rendered"):
        renderer(TEMPLATES["chatml"])(Conversation(None, turns("q", "a"), (TOOL,)))


def test_an_empty_system_turn_is_a_turn():
    talk = Conversation("", turns("q", "a"))
    assert spelled(renderer(TEMPLATES["chatml"], system="no")(talk)) == transformers(
        TEMPLATES["chatml"], talk
    )

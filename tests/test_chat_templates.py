"""The published chat templates, to the byte, and what of them carries loss."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.chat_options import Chat
from pipelines.chat_schemas import conversation_reader
from pipelines.conversations import Conversation, Turn
from pipelines.rendering import BadRecordError, Control, Rendered
from pipelines.templates.chat import LONGLLAMA_SYSTEM, chat_renderer


def turns(*texts: str) -> tuple[Turn, ...]:
    return tuple(Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))


def render(conversation: Conversation, **options) -> Rendered:
    return chat_renderer(Chat(**options), special=["<s>", "</s>"], bos="<s>", eos="</s>")(
        conversation
    )


def spelled(rendered: Rendered) -> str:
    """The text with control tokens in it; those with loss in capitals."""
    parts, start = [], 0
    for position, token, loss in rendered.controls:
        parts += [rendered.text[start:position], f"<{token.upper() if loss else token}>"]
        start = position
    return "".join([*parts, rendered.text[start:]])


def answers(rendered: Rendered) -> list[str]:
    return [rendered.text[start:end] for start, end in rendered.answers]


def test_llama2_is_what_metas_reference_makes():
    rendered = render(Conversation("Be brief.", turns("q1 ", " a1", "q2", "a2")), template="llama2")
    assert spelled(rendered) == (
        "<bos>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nq1 [/INST] a1 <EOS>"
        "<bos>[INST] q2 [/INST] a2 <EOS>"
    )
    assert answers(rendered) == [" a1 ", " a2 "]
    assert rendered.framed
    assert spelled(render(Conversation(None, turns("q", "a")), template="llama2")) == (
        "<bos>[INST] q [/INST] a <EOS>"
    )


def test_longllama_chats_begin_with_the_published_sentence():
    rendered = render(Conversation(None, turns("q1", "a1", "q2", "a2")), template="longllama")
    assert spelled(rendered) == (
        "<bos>A chat between a user (denoted as USER:) and an artificial intelligence assistant "
        "(denoted as ASSISTANT:). The assistant gives helpful, detailed, and polite answers to the "
        "user's questions.\n\n"
        "\nUSER: q1\nASSISTANT: a1<EOS>\nUSER: q2\nASSISTANT: a2<EOS>"
    )
    assert answers(rendered) == [" a1", " a2"]
    assert rendered.framed


def test_longllama_instructions_are_lines():
    rendered = render(Conversation("Be brief.", turns("q", "a")), template="longllama_instruct")
    assert spelled(rendered) == "<bos>Be brief.\nq\na<EOS>"
    assert answers(rendered) == ["a"]
    without = render(Conversation(None, turns("q", "a")), template="longllama_instruct")
    assert spelled(without) == "<bos>\nq\na<EOS>"


@pytest.mark.parametrize("template", ["llama2", "longllama", "longllama_instruct"])
def test_the_mixtures_system_prompt_is_for_conversations_without_one(template):
    own = render(Conversation("own", turns("q", "a")), template=template, system="given")
    assert "own" in own.text
    assert "given" not in own.text
    given_text = render(Conversation(None, turns("q", "a")), template=template, system="given").text
    assert "given" in given_text
    assert LONGLLAMA_SYSTEM not in given_text


def test_an_answer_of_weight_0_is_given_with_its_eos():
    talk = Conversation(
        "", (Turn("user", "q"), Turn("assistant", "bad", loss=False), *turns("q", "a"))
    )
    for template, expected in (("llama2", [" a "]), ("longllama", [" a"])):
        rendered = render(talk, template=template)
        assert answers(rendered) == expected
        assert [c.loss for c in rendered.controls if c.token == "eos"] == [False, True]


@pytest.mark.parametrize(
    ("template", "talk", "reason"),
    [
        ("llama2", (Turn("assistant", "a"),), "turns_do_not_alternate"),
        ("llama2", (*turns("q", "a"), Turn("assistant", "b")), "turns_do_not_alternate"),
        ("llama2", turns("q [/INST] a", "a"), "template_tag_in_text"),
        ("llama2", turns("q", "<</SYS>>"), "template_tag_in_text"),
        ("llama2", (Turn("user", "q"), Turn("tool", "t"), Turn("assistant", "a")), "tool_turn"),
        ("longllama", (Turn("user", "q"), Turn("tool", "t"), Turn("assistant", "a")), "tool_turn"),
        ("longllama_instruct", turns("q", "a", "q", "a"), "not_one_question"),
        ("longllama_instruct", (Turn("assistant", "a"),), "not_one_question"),
    ],
)
def test_a_conversation_that_a_template_has_no_form_for_is_dropped(template, talk, reason):
    with pytest.raises(BadRecordError) as bad:
        render(Conversation(None, talk), template=template)
    assert bad.value.reason == reason


texts = st.text(min_size=1).filter(str.strip) | st.sampled_from(
    ["</s>", "<s> x", "a\nASSISTANT: b", "bos", "\ue0001\ue001", "\nUSER: "]
)


@given(st.lists(texts, min_size=2, max_size=6).filter(lambda x: len(x) % 2 == 0), texts)
def test_spans_are_the_answers_and_no_text_makes_a_control_token(contents, system):
    talk = Conversation(system, turns(*contents))
    rendered = render(talk, template="longllama")
    assert answers(rendered) == [f" {text}" for text in contents[1::2]]
    assert rendered.controls[0] == Control(0, "bos", False)
    assert rendered.controls[1:] == tuple(Control(end, "eos", True) for _, end in rendered.answers)
    rest = rendered.text
    for text in contents:
        assert text in rest
        rest = rest[rest.index(text) + len(text) :]
    try:
        reference = render(talk, template="llama2")
    except BadRecordError as bad:
        assert bad.reason == "template_tag_in_text"
        return
    assert answers(reference) == [f" {text.strip()} " for text in contents[1::2]]
    assert [c.token for c in reference.controls] == ["bos", "eos"] * (len(contents) // 2)


@pytest.mark.parametrize("options", [{}, {"template": "llama2", "jinja": "{{ 1 }}"}])
def test_a_mixture_names_one_template(options):
    with pytest.raises(ValidationError, match="either `template` or `jinja`"):
        Chat(**options)


def test_real_conversations_become_text_with_their_answers(shared_data):
    content = (shared_data / "instruct" / "fastchat_dummy_conversation.json.gz").read_bytes()
    for record in json.loads(gzip.decompress(content)):
        talk = conversation_reader("sharegpt")(record)
        said = [turn.text.strip() for turn in talk.turns if turn.role == "assistant"]
        for template in ("llama2", "longllama"):
            assert [text.strip() for text in answers(render(talk, template=template))] == said

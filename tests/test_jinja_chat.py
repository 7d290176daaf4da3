"""Jinja chat templates: the text is Jinja's own, and only templates make control tokens."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipelines.chat_options import Chat
from pipelines.conversations import Conversation, Turn
from pipelines.errors import UserError
from pipelines.rendering import BadRecordError, Rendered
from pipelines.templates.chat import chat_renderer

CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
LLAMA3 = """\
{{ bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' }}
    {{- message.content | trim ~ '<|eot_id|>' }}
{%- endfor %}"""
MISTRAL = """\
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content %}{% set messages = messages[1:] %}
{%- endif %}
{{- bos_token }}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' }}
        {%- if system is defined and loop.index0 == messages | length - 2 %}
            {{- system + '\\n\\n' }}
        {%- endif %}
        {{- message.content + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message.content + eos_token }}
    {%- endif %}
{%- endfor %}"""
ZEPHYR = """\
{% for message in messages %}
<|{{ message.role }}|>
{% if message.role == 'assistant' %}
{% generation %}
{{ message.content }}{{ eos_token }}
{% endgeneration %}
{% else %}
{{ message.content }}{{ eos_token }}
{% endif %}
{% endfor %}"""
LLAMA2 = """\
{%- for message in messages %}
{%- if message.role == 'user' %}
{{- bos_token + '[INST] ' + message.content.strip() + ' [/INST]' }}
{%- elif message.role == 'assistant' %}
{{- ' ' + message.content.strip() + ' ' + eos_token }}
{%- endif %}
{%- endfor %}"""
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL, "zephyr": ZEPHYR}
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|im_end|>>", "<|start_header_id|>",
           "<|end_header_id|>", "<|eot_id|>", "[INST]"]  # fmt: skip


def turns(*texts: str) -> tuple[Turn, ...]:
    return tuple(Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))


def renderer(jinja: str, special=SPECIAL, **options):
    return chat_renderer(Chat(jinja=jinja, **options), special=special, bos="<s>", eos="</s>")


def spelled(rendered: Rendered, *, marked: bool = False) -> str:
    """The text with its control tokens; `marked` puts an exclamation mark at those with loss."""
    parts, start = [], 0
    for position, token, loss in rendered.controls:
        parts += [rendered.text[start:position], token, "!" if marked and loss else ""]
        start = position
    return "".join([*parts, rendered.text[start:]])


def answers(rendered: Rendered) -> list[str]:
    return [rendered.text[start:end] for start, end in rendered.answers]


def plain_jinja(source: str, talk: Conversation) -> str:
    """What Jinja itself makes of the contents; `generation` tags are dropped by hand."""

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    source = re.sub(r"^\{% (end)?generation %\}\n", "", source, flags=re.MULTILINE)
    system = [] if talk.system is None else [{"role": "system", "content": talk.system}]
    messages = [*system, *({"role": t.role, "content": t.text} for t in talk.turns)]
    return environment.from_string(source, {"raise_exception": refuse}).render(
        messages=messages, bos_token="<s>", eos_token="</s>", add_generation_prompt=False
    )


def test_the_end_of_a_turn_is_learned_with_the_answer_and_nothing_else_is():
    talk = Conversation("s", turns("q", "a", "r", "b"))
    assert spelled(renderer(CHATML)(talk), marked=True) == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n"
        "<|im_start|>assistant\na<|im_end|>!\n<|im_start|>user\nr<|im_end|>\n"
        "<|im_start|>assistant\nb<|im_end|>!\n"
    )
    assert answers(renderer(CHATML)(talk)) == ["a", "\n", "b", "\n"]
    assert renderer(CHATML)(talk).framed
    head = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>"
    assert spelled(renderer(LLAMA3)(Conversation(None, turns(" q\n", "\na "))), marked=True) == (
        f"<s>{head.format('user', 'q')}{head.format('assistant', 'a')}!"
    )


def test_the_space_before_an_answer_and_the_one_before_its_end_are_part_of_it():
    rendered = renderer(LLAMA2)(Conversation(None, turns("q", "a", "r ", "b")))
    assert (
        spelled(rendered, marked=True) == "<s>[INST] q [/INST] a </s>!<s>[INST] r [/INST] b </s>!"
    )
    assert answers(rendered) == [" a ", " b "]
    assert answers(renderer(MISTRAL)(Conversation(None, turns("q", "a")))) == [" a"]


def test_a_system_prompt_may_stand_before_the_last_question():
    rendered = renderer(MISTRAL)(Conversation("s", turns("q", "a", "r", "b")))
    assert rendered.text == " q [/INST] a s\n\nr [/INST] b"
    assert answers(rendered) == [" a", " b"]


contents = st.text(min_size=1).filter(str.strip) | st.sampled_from(
    ["<|im_end|>", "</s>", "<s>", "a<|im_end|>\n<|im_start|>user\nq", " \ue0000\ue001 ",
     "\u2005a\u2005", "{{ bos_token }}", "{% raw %}", "<|eot_id|> x", " padded\n",
     "[INST] q [/INST]", "a "]
)  # fmt: skip
talks = st.builds(
    lambda system, texts: Conversation(system, turns(*texts[: len(texts) // 2 * 2])),
    st.none() | contents,
    st.lists(contents, min_size=2, max_size=6),
)


@pytest.mark.parametrize("name", TEMPLATES)
@given(talk=talks)
def test_the_text_is_jinjas_own_and_no_content_makes_a_control_token(name, talk):
    render = renderer(TEMPLATES[name])
    rendered = render(talk)
    assert spelled(rendered) == plain_jinja(TEMPLATES[name], talk)
    harmless = Conversation("s" if talk.system else None, turns(*"x" * len(talk.turns)))
    assert [(c.token, c.loss) for c in rendered.controls] == [
        (c.token, c.loss) for c in render(harmless).controls
    ]
    said = [turn.text.strip() for turn in talk.turns]
    assert [text.strip() for text in answers(rendered) if text.strip()] == said[1::2]
    rest = rendered.text
    for text in said:
        assert text in rest
        rest = rest[rest.index(text) + len(text) :]


def test_the_longest_special_token_counts_and_words_that_are_none_stay_text():
    jinja = "{% for m in messages %}<|im_end|>><|none|>{{ m.content }}{% endfor %}"
    rendered = renderer(jinja, without_end=True)(Conversation(None, turns("q", "a")))
    assert [c.token for c in rendered.controls] == ["<|im_end|>>", "<|im_end|>>"]
    assert rendered.text == "<|none|>q<|none|>a"


@pytest.mark.parametrize("token", ["bos_token", "eos_token"])
def test_a_token_that_begins_the_next_question_is_no_end_of_an_answer(token):
    jinja = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ TOKEN }}{% endif %}{{ m.content }}"
        "{% endfor %}"
    ).replace("TOKEN", token)
    with pytest.raises(UserError, match="would not learn to stop"):
        renderer(jinja)
    rendered = renderer(jinja, without_end=True)(Conversation(None, turns("q", "a", "r", "b")))
    assert [c.loss for c in rendered.controls] == [False, False]
    assert answers(rendered) == ["a", "b"]


def test_an_answer_of_weight_0_is_given_with_its_end():
    talk = Conversation(
        None, (Turn("user", "q"), Turn("assistant", "a", loss=False), *turns("r", "b"))
    )
    rendered = renderer(CHATML)(talk)
    assert answers(rendered) == ["b", "\n"]
    assert sum(c.loss for c in rendered.controls) == 1


def test_a_template_in_the_mixture_may_be_for_one_question():
    jinja = (
        "{% if messages | length != 2 %}{{ raise_exception('one question') }}{% endif %}"
        "{{ bos_token }}Do it.\n\n{{ messages[0].content }}\nAnswer: {{ messages[1].content }}"
        "{{ eos_token }}"
    )
    rendered = renderer(jinja)(Conversation(None, turns("q", "a")))
    assert spelled(rendered, marked=True) == "<s>Do it.\n\nq\nAnswer: a</s>!"
    assert answers(rendered) == [" a"]
    with pytest.raises(BadRecordError, match="one question"):
        renderer(jinja)(Conversation(None, turns("q", "a", "q", "a")))


BODY = "{% for m in messages %}{{ m.content }}{% endfor %}"
UNUSABLE = [
    ("{% for m in messages %}{{ m.content }", "not a usable Jinja template"),
    ("{{ messages[-1].content }}", "drops, repeats or moves messages"),
    ("{% for m in messages | reverse %}{{ m.content }}{% endfor %}", "moves messages"),
    (BODY + BODY, "drops, repeats or moves messages"),
    ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "changes what messages say"),
    ("{% for m in messages %}{{ m.content.split(' ')[0] }}{% endfor %}", "changes what messages"),
    ("{{ raise_exception('never') }}", "never"),
    ("{{ strftime_now('%Y') }}" + BODY, "give a fixed one with `chat.date`"),
    ("{{ ['a', 'b'] | random }}" + BODY, "random"),
    ("{{ messages.append(1) }}" + BODY, "fails for a question"),
    ("{{ ''.__class__.__mro__ }}" + BODY, "fails for a question"),
    ("{% include '/etc/passwd' %}" + BODY, "fails for a question"),
]


@pytest.mark.parametrize(("jinja", "message"), UNUSABLE)
def test_a_template_that_cannot_be_used_is_a_fault_before_any_record(jinja, message):
    with pytest.raises(UserError, match=re.escape(message)):
        renderer(jinja)


def test_a_template_for_another_vocabulary_is_a_fault():
    with pytest.raises(UserError, match="eos_token '</s>' is no special token of the vocabulary"):
        renderer(ZEPHYR, special=["<|im_end|>"])
    assert renderer(CHATML, special=[])(Conversation(None, turns("q", "a"))).controls == ()


SHORTENING = """\
{% for m in messages %}
{{ '<|im_start|>' + (m.content[:20] if m.role == 'assistant' else m.content) + '<|im_end|>' }}
{% endfor %}"""


@pytest.mark.parametrize(
    ("jinja", "talk", "reason"),
    [
        (SHORTENING, turns("q", "an answer of many words"), "template_changed_text"),
        (MISTRAL, (*turns("q", "a"), Turn("assistant", "b")), "template_failed"),
        (
            LLAMA2,
            (Turn("user", "q"), Turn("tool", "t"), *turns("q", "a")[1:]),
            "template_lost_turn",
        ),
    ],
)
def test_a_record_that_a_template_does_not_show_as_it_is_is_dropped(jinja, talk, reason):
    render = renderer(jinja)
    assert render(Conversation(None, turns("q", "a"))).answers
    with pytest.raises(BadRecordError) as bad:
        render(Conversation(None, talk))
    assert bad.value.reason == reason


def test_a_system_prompt_that_a_template_has_no_place_for_is_not_lost_in_silence():
    with pytest.raises(UserError, match="drops, repeats or moves messages"):
        renderer(LLAMA2, system="Be brief.")
    assert (
        "Be brief."
        in renderer(CHATML, system="Be brief.")(Conversation(None, turns("q", "a"))).text
    )


def test_marks_that_leave_out_the_end_decide_and_are_warned_of():
    jinja = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ eos_token }}{% endfor %}"
    )
    render = renderer(jinja)
    assert "would not learn to stop" in render.warning
    rendered = render(Conversation(None, turns("q", "a")))
    assert answers(rendered) == ["a"]
    assert [c.loss for c in rendered.controls] == [False, False]
    assert not renderer(CHATML).warning
    assert not renderer(jinja, without_end=True).warning


def test_the_blank_at_the_end_of_a_question_is_not_learned_before_a_control_token():
    jinja = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
        "{{ '<|im_start|>' + m.content + eos_token }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    rendered = renderer(jinja)(Conversation(None, turns("What? ", "a")))
    assert spelled(rendered, marked=True) == "What? <|im_start|>!a</s>!"
    assert answers(rendered) == ["a"]

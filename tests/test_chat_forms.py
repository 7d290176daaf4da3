"""Every form that chats have in published data is read, or refused with the form named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.chat_forms import FORM_REASONS
from pipelines.chat_schemas import conversation_reader
from pipelines.conversations import Conversation, Turn, texts_in
from pipelines.mixture import Source
from pipelines.record_fields import CONTENT, MEDIA
from pipelines.rendering import BadRecordError
from pipelines.templates.choice import plain_conversations

U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
B = A | {"content": "b"}
QA = Conversation(None, (Turn("user", "q"), Turn("assistant", "a")))


def read(schema: str, record: dict[str, Any], **options: Any) -> Conversation:
    return conversation_reader(schema, **options)(record)


def reason(schema: str, record: dict[str, Any], **options: Any) -> tuple[str, str]:
    with pytest.raises(BadRecordError) as bad:
        read(schema, record, **options)
    return bad.value.reason, bad.value.evidence


FORMS: list[tuple[str, dict[str, Any]]] = [
    ("messages", {"messages": json.dumps([U, A])}),
    ("messages", {"messages": [json.dumps(U), json.dumps(A)]}),
    ("messages", {"messages": {"role": ["user", "assistant"], "content": ["q", "a"]}}),
    ("messages", {"messages": json.dumps({"role": ["user", "assistant"], "content": ["q", "a"]})}),
    ("messages", {"data": [U, A]}),
    ("messages", {"chosen": [U, A], "rejected": [U, B]}),
    ("messages", {"prompt": "q", "chosen": [U, A], "rejected": [U, B]}),
    ("messages", {"prompt": "q", "messages": [U, A], "chosen": [U, A], "rejected": [U, B]}),
    ("messages", {"prompt": [U], "chosen": [A], "rejected": [B]}),
    ("messages", {"messages": [U, A], "prompt": [U]}),
    ("messages", {"messages": [U], "chosen": [A], "rejected": [B]}),
    ("messages", {"messages": [U], "chosen": A, "rejected": B}),
    ("messages", {"messages": [U], "chosen": "a", "rejected": "b"}),
    ("messages", {"messages": [U, A], "chosen": "a", "rejected": "b"}),
    ("sharegpt", {"conversations": json.dumps([{"from": "human", "value": "q"},
                                               {"from": "gpt", "value": "a"}])}),
    ("sharegpt", {"conversation": [U, A]}),
    ("prompt_completion", {"prompt": "q", "completion": "a"}),
    ("prompt_completion", {"prompt": [U], "completion": [A]}),
    ("prompt_completion", {"prompt": json.dumps([U]), "completion": [A]}),
    ("prompt_completion", {"prompt": "q", "response": "a"}),
    ("prompt_completion", {"question": "q", "answer": "a"}),
    ("prompt_completion", {"query": "q", "response": "a"}),
    ("prompt_completion", {"prompt": "q", "chosen": "a", "rejected": "b"}),
    ("prompt_completion", {"question": "q", "chosen": "a", "rejected": "b"}),
    ("prompt_completion", {"prompt": "q", "chosen": [U, A], "rejected": [U, B]}),
    ("prompt_completion", {"chosen": [U, A], "rejected": [U, B]}),
    ("prompt_completion", {"prompt": "q", "completion": "a", "response": "a"}),
    ("openorca", {"question": "q", "response": "a"}),
    ("alpaca", {"instruction": "q", "context": "", "response": "a", "category": "open_qa"}),
    ("alpaca", {"instruction": "q", "input": "", "output": "a", "text": "Below is q … a"}),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "q",
                                                             "image_url": None}]}, A]}),
    ("messages", {"messages": [{"role": "user", "content": ["q"]}, A]}),
    ("messages", {"messages": [U, A], "images": [], "tools": "[]", "audio": None, "system": ""}),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "record"), FORMS)
def test_a_question_and_its_answer_are_read_from_every_form(schema, record):
    assert read(schema, record) == QA


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("sharegpt", {"conversations": ["q", "a"]}, "turns_without_roles", "roles: alternate"),
    ("messages", {"data": ["q", "a"]}, "turns_without_roles", "roles: alternate"),
    ("messages", {"prompt": "q", "completion": "a"}, "missing_turns",
     "`schema: prompt_completion`"),
    ("messages", {"instruction": "q", "output": "a"}, "missing_turns", "`schema: alpaca`"),
    ("messages", {"conversations": [U, A]}, "missing_turns", "`schema: sharegpt`"),
    ("messages", {"dialog": [U, A]}, "missing_turns", "the record has 'dialog'"),
    ("messages", {"messages": [{"speaker": "A", "utterance": "q"}]}, "unknown_turn_form",
     "speaker, utterance"),
    ("messages", {"messages": [U, "a"]}, "turn_not_an_object", "str"),
    ("messages", {"chosen": "\n\nHuman: q\n\nAssistant: a"}, "turns_in_one_text", "'chosen' is"),
    ("messages", {"chosen": "a"}, "chosen_is_text", "no list"),
    ("messages", {"messages": [U, A], "chosen": [U | {"content": "r"}, B]}, "two_conversations",
     "does not go on"),
    ("messages", {"messages": [U, A], "data": [U, B]}, "two_conversations", "messages and data"),
    ("messages", {"messages": [A], "prompt": "q"}, "unread_field", "'prompt' stands in none"),
    ("messages", {"messages": [A], "input": ["q"]}, "unread_field", "'input' stands in none"),
    ("messages", {"messages": [A], "prompt": [U]}, "unread_field", "'prompt' stands in none"),
    ("messages", {"messages": [U | {"text": "r"}, A]}, "two_texts", "content and text"),
    ("prompt_completion", {"prompt": "q", "response": "a", "answer": "b"}, "two_answers",
     "response and answer differ"),
    ("prompt_completion", {"prompt": "q", "question": "r", "answer": "b"}, "two_questions",
     "prompt and question differ"),
    ("prompt_completion", {"prompt": "q"}, "no_answer", "completion"),
    ("messages", {"messages": [U, A], "tools": "search the web"}, "broken_tools", "search"),
    ("messages", {"messages": [U, A | {"tool_calls": [5]}]}, "broken_calls", "[5]"),
    ("messages", {"messages": [U, A], "system": "s", "system_prompt": "t"}, "two_system_prompts",
     "twice"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "record", "expected", "said"), REFUSED)
def test_a_form_that_is_not_read_is_named(schema, record, expected, said):
    found, evidence = reason(schema, record)
    assert found == expected
    assert said in evidence


def test_texts_in_turn_are_read_where_the_mixture_says_so():
    record = {"conversations": ["q", "a", "r", "b", "left over"]}
    found = read("sharegpt", record, roles="alternate")
    assert [turn[:2] for turn in found.turns] == [
        ("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]  # fmt: skip
    assert reason("messages", {"messages": [U, A]}, roles="alternate")[0] == "unknown_turn_form"


@pytest.mark.parametrize("schema", ["alpaca", "prompt_completion"])
def test_history_stands_before_the_question(schema):
    pair = {"alpaca": {"instruction": "r", "output": "b"},
            "prompt_completion": {"query": "r", "response": "b"}}[schema]  # fmt: skip
    for history in ([["q", "a"]], '[["q", "a"]]'):
        found = read(schema, pair | {"history": history})
        assert [turn.text for turn in found.turns] == ["q", "a", "r", "b"]
    for broken in ("before", [["q"]], {"q": "a"}, [{"role": "user", "content": "q"}]):
        assert reason(schema, pair | {"history": broken})[0] == "turn_not_an_object"
    assert reason("messages", {"messages": [U, A], "history": [["q", "a"]]})[0] == "unread_field"


def test_a_prompt_that_is_json_stays_a_text():
    found = read("prompt_completion", {"prompt": "[1, 2]", "completion": '{"sum": 3}'})
    assert [turn.text for turn in found.turns] == ["[1, 2]", '{"sum": 3}']


def test_what_dolly_calls_context_stands_behind_the_question():
    record = {"instruction": "When?", "context": "The ferry leaves at nine.", "response": "Nine."}
    assert read("alpaca", record).turns[0].text == "When?\nThe ferry leaves at nine."


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("as_text", [False, True])
def test_calls_results_and_tools_reach_the_template_as_they_are(as_text):
    calls: Any = [CALL | {"function": {"name": "f", "arguments": '{"x": 1}'}}]
    tools: Any = [TOOL]
    record = {
        "messages": [
            U,
            {"role": "assistant", "content": None, "reasoning_content": "Let me see.",
             "tool_calls": json.dumps(calls) if as_text else calls},
            {"role": "tool", "content": "3", "tool_call_id": "1", "name": "f"},
            A,
        ],
        "tools": json.dumps(tools) if as_text else tools,
    }  # fmt: skip
    found = read("messages", record)
    assert found.tools == (TOOL,)
    assert found.turns == (
        Turn("user", "q"),
        Turn("assistant", "", True, {"reasoning_content": "Let me see.", "tool_calls": calls}),
        Turn("tool", "3", True, {"name": "f", "tool_call_id": "1"}),
        Turn("assistant", "a"),
    )


def test_tools_may_stand_in_the_system_turn_and_be_called_functions():
    system = {"role": "system", "content": "", "tools": [json.dumps(TOOL)]}
    assert read("messages", {"messages": [system, U, A]}) == Conversation("", QA.turns, (TOOL,))
    assert read("messages", {"messages": [U, A], "functions": TOOL}).tools == (TOOL,)
    two = {"messages": [system, U, A], "tools": [TOOL | {"type": "other"}]}
    assert reason("messages", two)[0] == "two_lists_of_tools"


def test_an_empty_system_turn_is_kept_and_an_empty_field_is_none():
    for content in ("", None):
        turns = [{"role": "system", "content": content}, U, A]
        assert read("messages", {"messages": turns}).system == ""
    assert read("messages", {"messages": [U, A], "system": ""}).system is None
    assert read("openorca", {"system_prompt": "", "question": "q", "response": "a"}).system is None


@pytest.mark.parametrize("schema", ["messages", "sharegpt", "alpaca", "openorca"])
def test_the_field_of_the_system_prompt_has_three_names(schema):
    record = {
        "messages": [U, A], "sharegpt": [U, A], "instruction": "q", "output": "a",
        "question": "q", "response": "a",
    }  # fmt: skip
    fields = {"messages": ["messages"], "sharegpt": [], "alpaca": ["instruction", "output"],
              "openorca": ["question", "response"]}[schema]  # fmt: skip
    kept = {name: record[name] for name in fields}
    if schema == "sharegpt":
        kept = {"conversations": [U, A]}
    for name in ("system", "system_prompt", "system_message"):
        assert read(schema, kept | {name: "s"}).system == "s"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking", "thought"])
def test_reasoning_keeps_the_name_it_has_in_the_record(name):
    assert read("messages", {"messages": [U, A | {name: "hm"}]}).turns[1].fields == {name: "hm"}
    pair = {"question": "q", "answer": "a", name: "hm"}
    assert read("prompt_completion", pair).turns[1].fields == {name: "hm"}
    broken = {"messages": [U, A | {name: ["hm"]}]}
    assert reason("messages", broken)[0] == "text_not_a_string"


@pytest.mark.parametrize("text", ["<think>hm</think>", "<thinking>hm</thinking> \n"])
def test_thinking_in_a_content_without_an_answer_behind_it_is_none(text):
    thought = {"role": "assistant", "content": text}
    assert reason("messages", {"messages": [U, thought]})[0] == "no_answer"
    assert (
        reason("messages", {"messages": [U, thought | {"train": False}, U, A]})[0] == "empty_turn"
    )
    called = read("messages", {"messages": [U, thought | {"tool_calls": [CALL]}]})
    assert called.turns[1].text == text


def test_a_refusal_is_an_answer_and_thinking_alone_is_none():
    refused = {"messages": [U, {"role": "assistant", "content": None, "refusal": "No."}]}
    assert read("messages", refused).turns[1] == Turn("assistant", "", True, {"refusal": "No."})
    thought = {"messages": [U, {"role": "assistant", "content": "", "thinking": "hm"}]}
    assert reason("messages", thought)[0] == "no_answer"


@pytest.mark.parametrize("name", sorted(MEDIA))
def test_what_is_no_text_drops_the_record_and_is_named(name):
    expected = (MEDIA[name], f"field '{name}'")
    assert reason("messages", {"messages": [U, A], name: ["1.jpg"]}) == expected
    assert reason("alpaca", {"instruction": "q", "output": "a", name: {"path": "1"}}) == expected
    inside = {"messages": [U | {name: "1.jpg"}, A]}
    assert reason("messages", inside) == (MEDIA[name], f"turn: field '{name}'")
    assert read("messages", {"messages": [U | {name: [None]}, A], name: []}) == QA
    assert read("messages", inside | {name: ["1.jpg"]}, ignored=[name]) == QA


def test_a_field_of_the_question_that_no_schema_reads_drops_the_record():
    for name in ("context", "documents", "choices", "options", "passage", "rationale"):
        assert name in CONTENT
        record = {"messages": [U, A], name: ["x"]}
        assert reason("messages", record)[0] == "unread_field"
        assert read("messages", record, ignored=[name]) == QA
    assert reason("openorca", {"question": "q", "response": "a", "context": "c"})[0] == (
        "unread_field"
    )


LONGER = {
    "image_base64": "has_images", "images_list": "has_images", "screenshot": "has_images",
    "audioFile": "has_audio", "video_bytes": "has_video",
    "reasoning_trace": "unread_field", "thought_process": "unread_field", "ctxs": "unread_field",
    "retrieved_passages": "unread_field", "available_tools": "unread_field",
    "few_shot_examples": "unread_field", "sql_context": "unread_field", "think": "unread_field",
}  # fmt: skip
ABOUT: dict[str, Any] = {
    "has_image": False, "n_images": 2, "image_id": "x", "reasoning_effort": "high",
    "document_id": "x", "context_length": 12, "thinking_mode": "on", "tools_used": ["f"],
    "reasoning_tokens": 3, "video_title": "x",
}  # fmt: skip


@pytest.mark.parametrize("name", LONGER)
def test_longer_names_of_what_is_never_passed_over_are_known(name):
    assert reason("messages", {"messages": [U, A], name: "x"})[0] == LONGER[name]
    assert reason("messages", {"messages": [U, A | {name: ["x"]}]})[0] == LONGER[name]
    assert reason("alpaca", {"instruction": "q", "output": "a", name: "x"})[0] == LONGER[name]
    assert read("messages", {"messages": [U, A | {name: 0}], name: "[]"}) == QA


@pytest.mark.parametrize("name", ABOUT)
def test_what_only_tells_about_a_content_drops_nothing(name):
    assert read("messages", {"messages": [U, A], name: ABOUT[name]}) == QA


@pytest.mark.parametrize("side", ["function_call", "tool_call"])
def test_a_turn_that_is_a_call_reaches_the_template_as_one(side):
    call = {"name": "weather", "arguments": {"city": "Lima"}}
    for value in (call, [call], [call, call]):
        turns = [
            {"from": "human", "value": "q"}, {"from": side, "value": json.dumps(value)},
            {"from": "observation", "value": "19"}, {"from": "gpt", "value": "a"},
        ]  # fmt: skip
        found = read("sharegpt", {"conversations": turns}).turns[1]
        n = len(value) if isinstance(value, list) else 1
        calls = [{"type": "function", "function": call}] * n
        assert found == Turn("assistant", "", True, {"tool_calls": calls})
    twice = [turns[0], turns[1], turns[1], *turns[2:]]
    calls = found.fields["tool_calls"]
    assert read("sharegpt", {"conversations": twice}).turns[1].fields["tool_calls"] == 2 * calls
    unlike = read("sharegpt", {"conversations": [*turns[:2], turns[1] | {"loss": 0}, *turns[2:]]})
    assert [turn.loss for turn in unlike.turns[1:3]] == [True, False]
    turns[1]["value"] = "<call>weather(Lima)</call>"
    assert read("sharegpt", {"conversations": turns}).turns[1].text == turns[1]["value"]


def test_messages_of_a_tree_are_turns_with_all_that_they_say():
    def tree(**said: Any) -> dict[str, Any]:
        reply = {"role": "assistant", "text": "a", "rank": 0, "labels": {"spam": 0}, "replies": []}
        return {"prompt": {"role": "prompter", "text": "q", "replies": [reply | said]}}

    assert read("oasst", tree()) == QA
    assert read("oasst", tree(reasoning="hm")).turns[1].fields == {"reasoning": "hm"}
    assert reason("oasst", tree(train=False))[0] == "no_answer"
    assert reason("oasst", tree(images=["x"]))[0] == "has_images"
    assert reason("oasst", tree(no_loss=True))[0] == "unknown_loss_field"


@pytest.mark.parametrize("nothing", ["[]", "{}", "null", "", [], {}, None])
def test_no_tools_and_no_calls_are_none_however_they_are_written(nothing):
    record = {"messages": [U, A | {"tool_calls": nothing}], "tools": nothing}
    assert read("messages", record) == QA


def test_a_dialogue_in_one_text_is_refused_and_the_form_is_named():
    asked = "\n\nHuman: q\n\nAssistant:"
    for record in (
        {"prompt": asked, "completion": " a"},
        {"prompt": asked, "chosen": " a", "rejected": " b"},
        {"chosen": f"{asked} a", "rejected": f"{asked} b"},
    ):
        assert reason("prompt_completion", record)[0] == "turns_in_one_text"
    assert "turns_in_one_text" in FORM_REASONS
    about = {"prompt": "What does 'Human: hi' mean?", "completion": "a"}
    assert read("prompt_completion", about).turns[0].text == about["prompt"]


# --- nothing that carries content is lost ---

WORDS = st.text("abcdefghij", min_size=6, max_size=12)
CARRYING = ["reasoning_content", "thinking", "refusal", "name", "tool_call_id", "tool_calls",
            "tools", "context", "images", "audio", "documents", "system", "analysis"]  # fmt: skip
ABOVE = ["system", "system_prompt", "tools", "functions", "context", "documents", "images",
         "choices", "history", "reasoning", "chosen", "input", "prompt", "rationale"]  # fmt: skip


def values(words: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    call = st.builds(lambda w, x: {"function": {"name": w, "arguments": {x: w}}}, words, words)
    return words | st.lists(words, max_size=2) | call | st.lists(call, max_size=2) | call.map(
        json.dumps
    )  # fmt: skip


@given(st.data())
def test_every_string_of_a_field_that_carries_content_is_kept_or_the_record_is_dropped(data):
    roles = ["user", "assistant", *data.draw(st.lists(st.sampled_from(
        ["user", "assistant", "tool"]), max_size=3)), "assistant"]  # fmt: skip
    turns = [
        {"role": role, "content": data.draw(WORDS)}
        | data.draw(st.dictionaries(st.sampled_from(CARRYING), values(WORDS), max_size=2))
        for role in roles
    ]
    record = {"messages": turns} | data.draw(
        st.dictionaries(st.sampled_from(ABOVE), values(WORDS), max_size=2)
    )
    try:
        found = read("messages", record)
    except BadRecordError:
        return
    kept = json.dumps([found.system, found.turns, found.tools], default=list)
    for text in texts_in(record):
        if text not in ("user", "assistant", "tool"):
            assert text in kept or json.dumps(text)[1:-1] in kept or _held(text, kept)


def _held(text: str, kept: str) -> bool:
    """Whether everything in a text that is JSON was kept."""
    return all(word in kept for word in texts_in(json.loads(text)))


def test_whoever_looks_for_benchmarks_sees_reasoning_calls_and_tools():
    source = Source.model_validate(
        {"weight": 1, "path": "x", "schema": "messages", "chat": {"template": "llama2"}}
    )
    answer = {"role": "assistant", "content": "a", "thinking": "hm", "tool_calls": [CALL]}
    record = {"messages": [U, answer], "tools": [TOOL], "system": "s"}
    text = plain_conversations(source).render(record)[0].text
    assert text == "s\nfunction\nf\nobject\nq\na\nhm\n1\nfunction\nf"

"""Chat records of every schema become conversations, or are dropped with a fixed reason."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.chat_filters import ChatFilters, chat_drop_reason
from pipelines.chat_schemas import CHAT_SCHEMAS, conversation_reader, language_of
from pipelines.conversations import Conversation, Turn
from pipelines.rendering import BadRecordError

Q, A = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}


def turns(*texts: str) -> tuple[Turn, ...]:
    return tuple(Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))


def read(schema: str, **record: Any) -> Conversation:
    return conversation_reader(schema)(record)


READABLE = [
    ("sharegpt", {"conversations": [Q, A]}, Conversation(None, turns("q", "a"))),
    ("sharegpt", {"conversations": [{"from": "system", "value": "s"}, Q, A]},
     Conversation("s", turns("q", "a"))),
    ("sharegpt", {"conversations": [Q, A | {"value": "<p>a</p>", "markdown": "*a*", "text": "a"}]},
     Conversation(None, turns("q", "*a*"))),
    ("sharegpt", {"conversations": [Q, A | {"markdown": None}], "system": "s"},
     Conversation("s", turns("q", "a"))),
    ("sharegpt", {"conversations": [Q, {"from": "ChatGPT", "value": "a"}]},
     Conversation(None, turns("q", "a"))),
    ("sharegpt", {"conversations": [Q], "chosen": A, "rejected": {"from": "gpt", "value": "b"}},
     Conversation(None, turns("q", "a"))),
    ("messages", {"messages": [{"role": "developer", "content": "s"},
                               {"role": "user", "content": [{"type": "text", "text": "q"},
                                                            {"type": "text", "value": "r"}]},
                               {"role": "assistant", "content": "a", "weight": 0},
                               {"role": "user", "content": "q", "loss_weight": 0.0},
                               {"role": "assistant", "content": "b", "loss_weight": 1.0}]},
     Conversation("s", (Turn("user", "qr"), Turn("assistant", "a", False), *turns("q", "b")))),
    ("openorca", {"system_prompt": "s", "question": "q", "response": "a"},
     Conversation("s", turns("q", "a"))),
    ("openorca", {"system_prompt": "", "question": "q", "response": "a"},
     Conversation(None, turns("q", "a"))),
    ("alpaca", {"instruction": "i", "input": "x", "output": "a"},
     Conversation(None, turns("i\nx", "a"))),
    ("alpaca", {"instruction": "i", "input": "", "response": "a"},
     Conversation(None, turns("i", "a"))),
    ("alpaca", {"instruction": "i", "instances": [{"input": "x", "output": "a"}]},
     Conversation(None, turns("i\nx", "a"))),
    ("alpaca", {"instruction": "i", "output": "b", "system": "s", "history": [["q", "a"]]},
     Conversation("s", turns("q", "a", "i", "b"))),
    ("inst_text", {"text": "[INST] q [/INST] a [INST] r [/INST] b [INST]"},
     Conversation(None, turns("q", "a", "r", "b"))),
    ("inst_text", {"text": "<s>[INST] <<SYS>>\ns\n<</SYS>>\n\nq [/INST] a </s>"
                           "<s>[INST] r[/INST]b</s>"},
     Conversation("s", turns("q", "a", "r", "b"))),
    ("inst_text", {"text": "[INST] q [/INST] <s>struck</s>"},
     Conversation(None, turns("q", "<s>struck</s>"))),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "record", "expected"), READABLE)
def test_a_record_becomes_the_conversation_it_holds(schema, record, expected):
    assert read(schema, **record) == expected


UNREADABLE = [
    ("sharegpt", {}, "missing_turns"),
    ("sharegpt", {"conversations": "text"}, "missing_turns"),
    ("sharegpt", {"conversations": []}, "missing_turns"),
    ("sharegpt", {"conversations": [Q]}, "no_answer"),
    ("sharegpt", {"conversations": [Q, A | {"value": " \n"}]}, "no_answer"),
    ("sharegpt", {"conversations": [{"from": "human"}, A]}, "empty_turn"),
    ("sharegpt", {"conversations": [Q, A | {"value": 5}]}, "text_not_a_string"),
    ("sharegpt", {"conversations": [Q, {"from": "alien", "value": "a"}]}, "unknown_role"),
    ("sharegpt", {"conversations": [Q, {"value": "a"}]}, "unknown_turn_form"),
    ("sharegpt", {"conversations": [Q, "a"]}, "turn_not_an_object"),
    ("sharegpt", {"conversations": [Q, {"from": "system", "value": "s"}, A]}, "system_turn_inside"),
    ("sharegpt", {"conversations": [{"from": "system", "value": "s"}, Q, A], "system": "t"},
     "two_system_prompts"),
    ("messages", {"messages": [{"role": "user", "content": "q"},
                               {"role": "assistant", "content": None, "tool_calls": ["f"]}]},
     "broken_calls"),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "image_url"}]},
                               {"role": "assistant", "content": "a"}]}, "part_not_text"),
    ("messages", {"messages": [{"role": "user", "content": "q"},
                               {"role": "assistant", "content": "a", "weight": 0.5}]},
     "unknown_weight"),
    ("messages", {"messages": [{"role": "user", "content": "q", "weight": 1},
                               {"role": "assistant", "content": "a"}]}, "unknown_weight"),
    ("messages", {"messages": [{"role": "user", "content": "q"},
                               {"role": "assistant", "content": "a", "weight": 0}]}, "no_answer"),
    ("messages", {"messages": [{"role": "user", "content": "q"},
                               {"role": "assistant", "content": "a"}], "label": False},
     "label_is_false"),
    ("openorca", {"question": "q"}, "no_answer"),
    ("openorca", {"response": "a"}, "missing_turns"),
    ("openorca", {"question": ["q"], "response": "a"}, "text_not_a_string"),
    ("alpaca", {"instruction": "q"}, "no_answer"),
    ("alpaca", {"instruction": "q", "instances": []}, "not_one_instance"),
    ("alpaca", {"instruction": "q", "output": "a", "history": ["q"]}, "turn_not_an_object"),
    ("oasst", {"text": "q", "role": "prompter", "parent_id": None}, "missing_turns"),
    ("oasst", {"prompt": {"text": "q", "role": "prompter", "replies": []}}, "no_answer"),
    ("oasst", {"prompt": {"text": "q", "role": "judge", "replies": []}}, "unknown_role"),
    ("inst_text", {"text": "no tags"}, "missing_turns"),
    ("inst_text", {"text": "[INST] q [INST] r [/INST] a"}, "broken_inst_tags"),
    ("inst_text", {"text": "before [INST] q [/INST] a"}, "broken_inst_tags"),
    ("inst_text", {"text": "[INST] <<SYS>> s [/INST] a"}, "broken_inst_tags"),
    ("inst_text", {"text": "[INST] q [/INST]"}, "no_answer"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "record", "reason"), UNREADABLE)
def test_a_record_that_is_no_conversation_is_dropped_with_a_reason(schema, record, reason):
    with pytest.raises(BadRecordError) as bad:
        read(schema, **record)
    assert bad.value.reason == reason


NAMES = ["from", "role", "value", "content", "text", "replies", "weight", "type"]
leaves = st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["user", "gpt"])
values = st.recursive(
    leaves,
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(NAMES), x),
    max_leaves=12,
)


@given(st.sampled_from(sorted(CHAT_SCHEMAS)), st.data())
def test_no_record_gives_anything_but_a_conversation_or_a_reason(schema, data):
    record = {name: data.draw(values) for name in CHAT_SCHEMAS[schema].fields}
    try:
        found = conversation_reader(schema)(record)
    except BadRecordError:
        return
    assert found.turns[-1].role == "assistant"
    assert all(turn.text.strip() or turn.fields for turn in found.turns)


def test_turns_behind_the_last_answer_are_left_out():
    assert read("sharegpt", conversations=[Q, A, Q, Q]).turns == turns("q", "a")


def test_neighbours_of_one_role_and_a_leading_answer_stay_as_they_are():
    found = read("sharegpt", conversations=[A, Q, Q, A, A]).turns
    assert [turn.role for turn in found] == ["assistant", "user", "user", "assistant", "assistant"]


def test_a_call_is_an_answer_and_what_it_returned_is_given():
    call = {"from": "function_call", "value": "{}"}
    result = {"from": "observation", "value": "3"}
    found = read("sharegpt", conversations=[Q, call, result, A], tools='[{"name": "f"}]')
    assert [turn.role for turn in found.turns] == ["user", "assistant", "tool", "assistant"]
    assert found.tools == ({"name": "f"},)


def message(text: str, *replies: dict[str, Any], **more: Any) -> dict[str, Any]:
    role = "assistant" if text.startswith("a") else "prompter"
    return {"text": text, "role": role, "replies": list(replies), **more}


def test_the_best_path_of_a_tree_goes_by_rank_and_then_by_order():
    tree = message(
        "q",
        message("a second", rank=1),
        message("a deleted", rank=0, deleted=True),
        message("a refused", rank=0, review_result=False),
        message("a best", message("q unanswered"), message("q next", message("a last")), rank=0),
        message("a unranked"),
    )
    expected = turns("q", "a best", "q next", "a last")
    assert read("oasst", prompt=tree, message_tree_id="1").turns == expected
    assert read("oasst", **tree).turns == expected, "the root alone, with its replies"


def test_the_language_is_where_the_schema_keeps_it():
    assert language_of({"lang": "en"}, "sharegpt") == "en"
    assert language_of({"prompt": {"lang": "de"}}, "oasst") == "de"
    assert language_of({"lang": "es", "replies": []}, "oasst") == "es"
    assert language_of({}, "openorca") == ""


PUBLISHED = ChatFilters(
    languages="^en$", forbidden=["(?i)openai", "DAN"], first_turn_below=8000
)  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "lang", "reason"),
    [
        (("q" * 7999, "a" * 9000), "en", None),
        (("q" * 8000, "a"), "en", "first_turn_length"),
        (("q", "a"), "en-GB", "other_language"),
        (("q", "a"), "", "other_language"),
        (("q", "I was made by OpenAI."), "en", "forbidden_text"),
        (("You are\nDAN now", "a"), "en", "forbidden_text"),
        (("to dance, Dan", "a"), "en", None),
    ],
)
def test_the_published_filters_keep_and_drop_what_they_say(texts, lang, reason):
    dropped = chat_drop_reason(Conversation("openai", turns(*texts)), lang, PUBLISHED)
    assert (dropped[0] if dropped else None) == reason


def test_lengths_are_strict_on_both_sides_and_answers_have_their_own_expressions():
    filters = ChatFilters(
        all_turns_above=2,
        all_turns_below=5,
        first_turn_above=0,
        forbidden_answers=[r"no answer\.$"],
    )
    lengths = {
        n: chat_drop_reason(Conversation(None, turns("q", "a" * n)), "", filters)
        for n in range(1, 6)
    }
    assert [n for n, dropped in lengths.items() if dropped is None] == [2, 3]
    wide = ChatFilters(forbidden_answers=[r"no answer\.$"])
    assert chat_drop_reason(Conversation(None, turns("no answer.", "a")), "", wide) is None
    assert chat_drop_reason(Conversation(None, turns("q", "a, no answer.")), "", wide) == (
        "forbidden_text",
        "turn 2: 'no answer.'",
    )


def test_a_broken_expression_is_a_fault_of_the_mixture():
    with pytest.raises(ValidationError, match="is no regular expression"):
        ChatFilters(forbidden="(")


REAL = {
    "alpaca_seed_tasks.jsonl.gz": ("alpaca", 175, {}),
    "fastchat_dummy_conversation.json.gz": ("sharegpt", 500, {}),
    "gpteacher_codegen.json.gz": ("alpaca", 4535, {}),
    "gpteacher_roleplay.json.gz": ("alpaca", 1923, {}),
    "llamafactory_alpaca_en_demo.json.gz": ("alpaca", 999, {}),
    "llamafactory_dpo_en_demo.json.gz": ("sharegpt", 300, {}),
    "llamafactory_glaive_toolcall_en_demo.json.gz": ("sharegpt", 300, {}),
    "llamafactory_kto_en_demo.json.gz": ("messages", 150, {"label_is_false": 150}),
    "llamafactory_v1_sft_demo.jsonl.gz": ("messages", 500, {}),
    "llm_adapters_gsm8k_test.json.gz": ("alpaca", 1313, {"no_answer": 6}),
    "mt_bench_question.jsonl.gz": ("messages", 0, {"missing_turns": 80}),
    "oasst_en_100_message.jsonl.gz": ("oasst", 100, {}),
    "oasst_en_100_tree.jsonl.gz": ("oasst", 100, {}),
    "selfinstruct_seed_tasks.jsonl.gz": ("alpaca", 175, {}),
    "selfinstruct_user_oriented.jsonl.gz": ("alpaca", 252, {}),
    "wizardlm_testset.jsonl.gz": ("alpaca", 0, {"missing_turns": 218}),
}


def real_records(path: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()).decode()
    if path.name.endswith(".json.gz"):
        return json.loads(text)
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def test_every_real_file_is_read_to_the_last_record(shared_data):
    for path in sorted((shared_data / "instruct").glob("*.gz")):
        records = real_records(path)
        schema, kept, dropped = REAL.get(path.name, ("alpaca", len(records), {}))
        reasons: Counter[str] = Counter()
        for record in records:
            wanted = {
                name: record.get(name) for name in CHAT_SCHEMAS[schema].fields if name in record
            }
            try:
                conversation_reader(schema)(wanted)
            except BadRecordError as bad:
                reasons[bad.reason] += 1
        assert reasons == dropped, path.name
        assert len(records) - reasons.total() == kept, path.name

"""Where chat templates are found, and the tokens that their configurations name."""

from __future__ import annotations

import json

import pytest

from pipelines.errors import UserError
from pipelines.templates.jinja_source import read_template

PLAIN = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
TOOLS = "{{ tools }}" + PLAIN


def write(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_jinja", ".jinja").replace(
            "_json", ".json"
        )
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def test_a_template_file_gets_the_tokens_of_the_configuration_beside_it(tmp_path):
    config = {"bos_token": None, "eos_token": {"content": "<end>", "special": True}}
    write(tmp_path, chat_template_jinja=PLAIN, tokenizer_config_json=config)
    for path in ("chat_template.jinja", "", "tokenizer_config.json"):
        template = read_template(f"{tmp_path}/{path}".rstrip("/"))
        assert (template.source, template.tool_use) == (PLAIN, None)
        assert template.tokens == {"bos_token": None, "eos_token": "<end>"}
    assert read_template(PLAIN).source == PLAIN
    assert read_template(PLAIN).tokens == {}


def test_a_configuration_may_hold_the_template_and_name_tokens_of_its_own(tmp_path):
    config = {
        "chat_template": PLAIN,
        "eos_token": "</s>",
        "image_token": "<image>",
        "add_bos_token": True,
        "extra_special_tokens": {"boi": "<boi>"},
    }
    write(tmp_path, tokenizer_config_json=config)
    template = read_template(str(tmp_path))
    assert template.source == PLAIN
    assert template.tokens == {"eos_token": "</s>", "image_token": "<image>", "boi": "<boi>"}


def test_the_template_of_a_configuration_counts_where_that_is_named(tmp_path):
    write(tmp_path, other_json={"chat_template": TOOLS}, chat_template_jinja=PLAIN)
    write(tmp_path, tokenizer_config_json={"bos_token": "<s>"})
    template = read_template(str(tmp_path / "other.json"))
    assert (template.source, template.tokens) == (TOOLS, {"bos_token": "<s>"})


def test_of_named_templates_one_is_for_conversations_and_one_for_those_with_tools(tmp_path):
    named = [{"name": "tool_use", "template": TOOLS}, {"name": "default", "template": PLAIN}]
    write(tmp_path, tokenizer_config_json={"chat_template": named})
    template = read_template(str(tmp_path))
    assert (template.source, template.tool_use) == (PLAIN, TOOLS)
    write(tmp_path, chat_template_jinja=PLAIN, additional_chat_templates__tool_use_jinja=TOOLS)
    template = read_template(str(tmp_path))
    assert (template.source, template.tool_use) == (PLAIN, TOOLS)


def test_an_older_map_of_tokens_counts_where_the_configuration_lists_none(tmp_path):
    write(tmp_path, chat_template_jinja=PLAIN, special_tokens_map_json={"eos_token": "<old>"})
    write(tmp_path, tokenizer_config_json={"eos_token": "<new>"})
    assert read_template(str(tmp_path)).tokens == {"eos_token": "<old>"}
    config = {"eos_token": "<new>", "added_tokens_decoder": {}}
    write(tmp_path, tokenizer_config_json=config)
    assert read_template(str(tmp_path)).tokens == {"eos_token": "<new>"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "no 'chat_template' in it"),
        ('{"chat_template": [{"name": "rag", "template": "x"}]}', "no chat template is called"),
        (None, "cannot read the chat template"),
    ],
)
def test_a_file_without_a_template_is_a_fault(tmp_path, content, message):
    path = tmp_path / "tokenizer_config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_template(str(path))

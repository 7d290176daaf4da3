"""What a mixture may not ask of templates, said before anything is read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_mixture_file import GOOD

from pipelines.errors import FaultsError
from pipelines.mixture_file import load_mixture


@pytest.fixture
def load(tmp_path: Path):
    """Reads a text as a mixture file."""

    def read(text: str):
        path = tmp_path / "m.yaml"
        path.write_text(text)
        return load_mixture(str(path))

    return read


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("chat: {template: llama2}", "`chat` and a schema of conversations need each other"),
        ("schema: messages", "`chat` and a schema of conversations need each other"),
        ("schema: messages, chat: {}", "give either `template` or `jinja`"),
        ("fill_in: {}, long_qa: {}", "give one template, not fill_in and long_qa"),
        ("schema: c4, long_qa: {}", "long_qa names fields itself; leave `schema` and"),
        ("policy: few_shot", "policy few_shot needs examples of tasks"),
        ("loss: answers", "loss: answers needs to know what the answers are"),
        ("schema: redpajama, loss: answers", "loss: answers needs to know what the answers are"),
        (
            "schema: alpaca, chat: {template: llama2, filters: {languages: en}}",
            "chat.filters.languages: records of alpaca name no language",
        ),
    ],
)
def test_what_templates_need_is_said_before_anything_is_read(load, source, fault):
    text = GOOD + f"  more: {{weight: 2, path: x, {source}}}\n"
    with pytest.raises(FaultsError, match=re.escape(fault)):
        load(text)


def test_what_would_be_cut_and_worthless_is_refused(load):
    more = "  more: {weight: 2, path: x, long_qa: {}, decontam: {policy: excise}}\n"
    text = GOOD.replace("sources:", "decontam: {index: i}\nsources:", 1) + more
    with pytest.raises(FaultsError, match=r"sources\.more: dialogues, .* cannot be cut"):
        load(text)

"""The examples in docs/templates.md are what the program makes of the records above them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Builder, write_jsonl

from pipelines import mixture
from pipelines.documents import DocumentReader
from pipelines.job import assemble
from pipelines.mixture_file import load_mixture
from pipelines.prepare import Preparer
from pipelines.readers import Block
from pipelines.records import RawRecord
from pipelines.rendering import Rendered
from pipelines.tokenizer import load_tokenizer
from pipelines.tokenizer_file import fetch_tokenizer

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "templates.md"
EXAMPLE = re.compile(r"```yaml\n(.*?)```\n```json\n(.*?)```\n```text\n(.*?)```", re.S)
PASSAGES = [
    {"title": "Bakery", "text": "The bakery on the island opens at ten."},
    {"title": "Lighthouse", "text": "The lighthouse was built of granite."},
    {"title": "Harbour", "text": "Boats from three villages use the harbour."},
]


TEMPLATES = """\
dataset: reviews
templates:
  a: !Template
    answer_choices: bad ||| good
    id: a
    jinja: "{{text}} Was it bad or good? ||| {{answer_choices[label]}}"
    metadata: !TemplateMetadata {original_task: true, languages: [en]}
    name: bad_or_good
"""


def marked(content: Rendered) -> str:
    """The text with answers and control tokens marked."""
    marks = [(start, 1, "⟦") for start, _ in content.answers]
    marks += [(end, 0, "⟧") for _, end in content.answers]
    marks += [(c.position, 1 if not c.loss else 0, f"‹{c.token}›") for c in content.controls]
    text, at = "", 0
    for position, _, mark in sorted(marks, key=lambda mark: mark[:2]):
        text += content.text[at:position] + mark
        at = position
    return text + content.text[at:]


def rendered(builder: Builder, options: dict[str, Any], record: Any) -> str:
    """What a source with these options makes of one record, its task's definition first."""
    data = write_jsonl(builder.folder / "a.jsonl", [record])
    write_jsonl(builder.folder / "passages.jsonl", PASSAGES)
    source = {"weight": 1, "path": str(data), "format": "jsonl", **options}
    if "promptsource" in options:
        place = builder.folder / options["promptsource"]["path"]
        place.write_text(TEMPLATES)
        source["promptsource"] = {"path": str(place)}
    recipe = load_mixture(str(builder.mixture({"a": source}, seq_len=4096)))
    file = fetch_tokenizer(recipe.tokenizer)
    folder = str(builder.folder)
    job = assemble(recipe, file, data_root=folder, store=f"{folder}/s", output=f"{folder}/o")
    spec, inputs = job.sources[0].spec, job.sources[0].inputs
    block = Block(0, 1, 1, [RawRecord(json.dumps(record).encode(), 0, 0)], [])
    preparer = Preparer(spec, load_tokenizer(file))
    texts = DocumentReader(spec).read(block, inputs).texts
    contents = [preparer._render(text) for text in texts]
    return "".join(marked(content) for content in contents if isinstance(content, Rendered))


@pytest.mark.parametrize("number", range(len(EXAMPLE.findall(DOCUMENT.read_text()))))
def test_the_example_in_the_document_is_what_the_program_makes(
    builder: Builder, number: int
) -> None:
    options, record, expected = EXAMPLE.findall(DOCUMENT.read_text())[number]
    assert rendered(builder, yaml.safe_load(options), json.loads(record)) + "\n" == expected


def test_every_template_has_an_example() -> None:
    text = "".join(options for options, _, _ in EXAMPLE.findall(DOCUMENT.read_text()))
    assert all(name in text for name in (*mixture.TEMPLATES, "few_shot", "jinja"))

"""promptsource templates on raw records: rendering, bad files and records, and P3's own rows."""

from __future__ import annotations

import io
import json
import random
import re
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.errors import FaultsError, UserError
from pipelines.rendering import BadRecordError, keyed_random
from pipelines.templates.promptsource import (
    Example,
    Promptsource,
    apply,
    apply_one,
    prompt_templates,
)
from pipelines.templates.promptsource_file import PromptTemplate, chosen, load_templates


def entry(name: str, jinja: str, choices: str | None = None, **metadata: object) -> str:
    """One template as promptsource writes it (JSON strings are YAML)."""
    metadata = {"languages": ["en"], "original_task": True} | metadata
    return (
        f"  id-{name}: !Template\n    answer_choices: {json.dumps(choices)}\n    id: id-{name}\n"
        f"    jinja: {json.dumps(jinja)}\n    metadata: !TemplateMetadata {json.dumps(metadata)}\n"
        f"    name: {json.dumps(name)}\n    reference: ''\n"
    )


def file_of(*entries: str) -> bytes:
    return ("dataset: films\nsubset: 3.0\ntemplates:\n" + "".join(entries)).encode()


def template(jinja: str, choices: str | None = None) -> PromptTemplate:
    (only,) = load_templates(file_of(entry("Good or bad?", jinja, choices)), "films/templates.yaml")
    return only


def example(jinja: str, choices: str | None = None, **record: object) -> Example:
    return apply(template(jinja, choices), record, random.Random(1))


def reason(jinja: str, choices: str | None = None, **record: object) -> str:
    with pytest.raises(BadRecordError) as bad:
        example(jinja, choices, **record)
    return bad.value.reason


def test_a_record_becomes_input_and_target_of_the_task_that_p3_names():
    got = example(
        "{{text}} \nGood or bad? ||| \n{{answer_choices[label]}} ",
        "bad ||| good",
        text="A.",
        label=1,
    )
    assert got == Example("A. \nGood or bad?", "good", "films_3.0_Good_or_bad_")


def test_separators_inside_a_record_are_text():
    got = example("{{text}} ||| {{more[0]}}", text="a ||| b", more=["||||"])
    assert got[:2] == ("a ||| b", "||||")
    assert example("{{a}} ||| {{answer_choices[0]}}", "{{a}} ||| x", a="1|||2").target == "1|||2"


def test_answer_choices_are_made_from_the_record():
    got = example("{{q}} ||| {{answer_choices[1]}}", '{{ o | join("|||") }}', q="?", o=["a", " b "])
    assert got.target == "b"
    assert reason("{{q}} ||| {{answer_choices[2]}}", "a ||| b", q="?") == "template_failed"


def test_hyphens_in_field_names_are_underscores_as_in_p3():
    assert example("{{q}} ||| {{long_answer}}", q="?", **{"long-answer": "x"}).target == "x"


def test_functions_of_promptsource_are_there():
    assert example(
        "{% for i, x in enumerate(a) %}{{i}}{{x}}{% endfor %} ||| "
        "{% for x, y in zip(a, b) %}{{x}}{{y}}{% endfor %}{{ range(3) | list }}",
        a="pq", b="rs",
    )[:2] == ("0p1q", "prqs[0, 1, 2]")  # fmt: skip
    assert example("? ||| {{ a | most_frequent | join(',') }}", a=[2, 1, 1, 3, 3]).target == "1,3"
    assert example("? ||| {{ 'x' | highlight }}").target == "x"


def test_what_a_template_draws_depends_on_the_record_s_random_numbers_alone():
    drawn = template("{{ [1, 2, 3, 4, 5] | choice }} ||| {{ range(50) | list | shuffle | first }}")
    state = random.getstate()
    outcomes = [apply(drawn, {}, keyed_random(1, "p", str(i))) for i in range(50)]
    assert outcomes == [apply(drawn, {}, keyed_random(1, "p", str(i))) for i in range(50)]
    assert {one.input for one in outcomes} == set("12345")
    assert len({one.target for one in outcomes}) > 20
    assert random.getstate() == state
    assert reason("{{ lipsum() }} ||| a") == "template_failed"


def test_records_that_a_template_cannot_take_are_refused_with_a_reason():
    assert reason("{{text}} ||| a") == "template_failed", "no such field"
    assert reason("{{text / 0}} ||| a", text=1) == "template_failed"
    assert reason("{{text.x.y}} ||| a", text={}) == "template_failed"
    assert reason("a ||| b ||| c") == "template_failed", "two separators"
    assert reason("a ||| b", answer_choices=[]) == "template_failed"
    assert reason("{% if label %}a ||| b{% endif %}", label=0) == "no_answer"
    assert reason("a ||| {{text}}", text=" \n") == "no_answer"
    assert reason("{{text}} ||| a", text="") == "empty_input"
    assert reason("{{text.__class__.__mro__}} ||| a", text="") == "template_failed", "sandboxed"


CHOOSING = [
    ("{{text}} ||| {{answer_choices[label]}}", "bad ||| good"),
    ("{{text}} ||| {{['bad', 'good'][label]}}", None),
    ("{{text}} ||| {{'AB'[label]}}", None),
    ("{{text}} ||| {% set a = {0: 'bad', 1: 'good'} %}{{a[label]}}", None),
    ("{{text}} ||| {% if label == 0 %}bad{% else %}good{% endif %}", None),
    ("{{text}} ||| {{'good' if label else 'bad'}}", None),
]


@pytest.mark.parametrize("label", [-1, 255, None, "-1", "-"])
@pytest.mark.parametrize(("jinja", "choices"), CHOOSING)
def test_a_label_that_says_there_is_none_chooses_no_answer(jinja, choices, label):
    assert example(jinja, choices, text="q", label=0).target in ("bad", "A")
    assert example(jinja, choices, text="q", label=1).target in ("good", "B")
    assert reason(jinja, choices, text="q", label=label) == "no_answer"


def test_no_number_of_a_record_counts_from_the_end_of_a_list():
    two = {"text": "q", "words": ["a", "b"]}
    assert reason("{{text}} ||| {{words[best]}}", **two, best=-1) == "no_answer"
    assert reason("{{text}} ||| {{words[best]}}", **two, best=2) == "no_answer"
    assert reason("{{text}} ||| {{words[a.b - 1]}}", **two, a={"b": 0}) == "no_answer"
    assert example("{{text}} ||| {{words[-1]}}", **two).target == "b"
    assert example("{{text}} ||| {{words[:best]}}", **two, best=-1).target == "['a']"
    named = {"text": "q", "words": {-1: "c"}}
    assert example("{{text}} ||| {{words[best]}}", **named, best=-1).target == "c"


def test_a_record_is_not_changed_by_a_template():
    record = {"words": ["a"], "deep": {"x": ["y"]}}
    got = apply(
        template("{% set _ = words.append(deep.x.pop()) %}{{words|join}} ||| t"),
        record, random.Random(),
    )  # fmt: skip
    assert got.input == "ay"
    assert record == {"words": ["a"], "deep": {"x": ["y"]}}


def test_one_template_is_drawn_and_those_without_an_example_are_passed_over():
    entries = [entry(str(i), f"{i} ||| x") for i in range(4)]
    entries.append(entry("never", "{% if false %} a ||| b {% endif %}"))
    templates = load_templates(file_of(*entries), "f")
    drawn = [apply_one(templates, {}, keyed_random(7, "p", str(i))).input for i in range(400)]
    assert all(70 < drawn.count(name) < 130 for name in "0123")
    with pytest.raises(BadRecordError, match="no_answer"):
        apply_one(templates[-1:], {}, random.Random())
    failing = load_templates(file_of(entry("a", "a ||| b"), entry("b", "{{gone}} ||| b")), "f")
    with pytest.raises(BadRecordError, match="template_failed"):  # a fault is not passed over
        for i in range(50):
            apply_one(failing, {}, random.Random(i))


def test_the_default_is_every_english_template_for_the_original_task():
    content = file_of(
        entry("b", "a ||| b"),
        entry("other task", "a ||| b", original_task=False),
        entry("french", "a ||| b", languages=["fr"]),
        entry("a", "a ||| b"),
    )
    options = Promptsource(path="films.yaml")
    assert [t.name for t in prompt_templates(options, content)] == ["a", "b"]
    options = Promptsource(path="films.yaml", names=["french", "french", "b"])
    assert [t.name for t in prompt_templates(options, content)] == ["french", "b"]
    with pytest.raises(UserError, match=r"films.yaml: no template 'frensh'; did you mean 'french'"):
        prompt_templates(Promptsource(path="films.yaml", names=["frensh"]), content)
    with pytest.raises(UserError, match="none of 0 templates is in English"):
        chosen([], [], "films.yaml")


def test_every_broken_template_of_a_file_is_named():
    with pytest.raises(FaultsError) as error:
        load_templates(
            file_of(
                entry("open", "{{text ||| a"),
                entry("one side", "{{text}}"),
                entry("odd choices", "a ||| b", "{% if %}"),
                entry("twice", "a ||| b"),
                entry("filter", "\n{{ a | frobnicate }} ||| b"),
                entry("metadata", "a ||| b", languages="en"),
            ).replace(b"name: \"filter\"", b"name: \"filter\" ")
            + b"  id-5: 17\n  id-6: !Template {name: 3}\n"
            + entry("twice", "a ||| b").replace("id-", "id2-").encode(),
            "films.yaml",
        )  # fmt: skip
    shown = str(error.value)
    assert shown.startswith("films.yaml: 8 faults\n")
    assert "template 'open', line 1: " in shown
    assert "template 'one side': `jinja` has no '|||' between input and target" in shown
    assert "template 'odd choices', line 1: " in shown
    assert "template 'filter', line 2: No filter named 'frobnicate'" in shown
    assert "template 'metadata': `metadata` must be a mapping, and its `languages` a list" in shown
    assert "template id-5: must be a mapping" in shown
    assert "template id-6: `name` and `jinja` must be texts" in shown
    assert "template 'twice' is there 2 times" in shown


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[1", b"a: b", b"templates: 3", b"\xff\xfe\x00", b"x: 2020-99-99",
        b"templates: &a [*a]", b"templates: {a: !!python/object/apply:os.system [ls]}",
        b"templates: {a: !Other {}}", b"[" * 5000,
    ],
)  # fmt: skip
def test_files_that_are_none_of_promptsource_s_are_refused_by_name(content):
    with pytest.raises(UserError, match=r"films\.yaml: not a promptsource file"):
        load_templates(content, "films.yaml")


# ---- the real files, and P3's own rows ------------------------------------------------------


def template_files(shared_data: Path) -> Iterator[tuple[str, bytes]]:
    archive = shared_data / "p3" / "promptsource_templates.tar.zst"
    with pa.input_stream(str(archive), compression="zstd") as stream:
        content = stream.read()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for member in tar:
            if member.isfile():
                yield member.name.split("templates/", 1)[1], tar.extractfile(member).read()


def test_every_real_file_compiles(shared_data):
    loaded = [load_templates(content, name) for name, content in template_files(shared_data)]
    assert (len(loaded), sum(map(len, loaded))) == (279, 2085)
    assert len({t.task for templates in loaded for t in templates}) == 2085


def parts_of(pattern: str, text: str) -> tuple[str, ...]:
    found = re.fullmatch(pattern, text, re.DOTALL)
    assert found, (pattern, text)
    return found.groups()


SENTENCES = r"I want .*?same thing\.\n(.*?)\n(.*?)\nDo they\?"
RAW: dict[str, tuple[str, Callable[[str, str], dict[str, object]]]] = {
    # data set: a template whose rows show the raw record whole, and how to read it from them
    "imdb": ("imdb_Reviewer_Enjoyment_Yes_No", lambda i, t: {
        "text": parts_of("(.*) Did the reviewer enjoy the movie\\?", i)[0],
        "label": ["No", "Yes"].index(t)}),
    "rotten_tomatoes": ("rotten_tomatoes_Reviewer_Opinion_bad_good_choices", lambda i, t: {
        "text": parts_of("(.*) Did the reviewer find this movie good or bad\\?", i)[0],
        "label": ["bad", "good"].index(t)}),
    "xsum": ("xsum_article_DOC_summary", lambda i, t: {
        "document": parts_of("Article: (.*)\n\nSummary:", i)[0], "summary": t}),
    "gigaword": ("gigaword_TLDR", lambda i, t: {
        "document": parts_of("(.*)\n\nTL;DR:", i)[0], "summary": t}),
    "ag_news": ("ag_news_which_section", lambda i, t: {
        "text": parts_of("(.*) \n\nWhich section of a newspaper .*", i)[0],
        "label": ["World News", "Sports", "Business", "Science and Technology"].index(t)}),
    "yelp_review_full": ("yelp_review_full_format_score", lambda i, t: {
        "text": parts_of("Review text:\n(.*)\n\nReview score \\(between 1 and 5\\):", i)[0],
        "label": int(t) - 1}),
    "samsum": ("samsum_To_sum_up_this_dialog", lambda i, t: {
        "dialogue": parts_of("(.*)\nTo sum up this dialog:", i)[0], "summary": t}),
    "glue/mrpc": ("glue_mrpc_want_to_know", lambda i, t: {
        "sentence1": parts_of(SENTENCES, i)[0], "sentence2": parts_of(SENTENCES, i)[1],
        "label": ["no", "yes"].index(t)}),
}  # fmt: skip


def p3_rows(shared_data: Path) -> dict[str, list[tuple[str, str]]]:
    path = shared_data / "p3" / "p3_t0train_50k.jsonl.zst"
    with pa.input_stream(str(path), compression="zstd") as stream:
        lines = stream.read().rstrip(b"\n").split(b"\n")
    rows = defaultdict(list)
    for line in lines:
        if line.startswith(b'{"inputs_pretokenized"'):
            row = json.loads(line)
            rows[row["task"]].append((row["inputs_pretokenized"], row["targets_pretokenized"]))
    return rows


def test_p3_s_own_rows_come_out_byte_for_byte(shared_data):
    """P3 holds the same record in each template of its data set: from the row of one template the
    record is read back, and every other template must give its own row."""
    rows, files = p3_rows(shared_data), dict(template_files(shared_data))
    compared = templates_compared = 0
    for dataset, (base, read) in RAW.items():
        records = [read(*row) for row in rows[base]]
        for one in load_templates(files[f"{dataset}/templates.yaml"], dataset):
            made = []
            for record in records:
                try:
                    made.append(apply(one, record, keyed_random(1, "promptsource", one.task))[:2])
                except BadRecordError as bad:  # mrpc: paraphrases of sentences that are none
                    assert bad.reason == "no_answer"
            if one.task in rows:
                assert made == rows[one.task], one.task
                compared += len(made)
                templates_compared += 1
    assert (templates_compared, compared) == (68, 13_484)

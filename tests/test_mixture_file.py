"""Reading a mixture: what is accepted, and that faults are named with their place and a way out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import FaultsError, UserError
from pipelines.mixture import Mixture
from pipelines.mixture_file import load_mixture

GOOD = """\
name: small
tokens: 20_000
tokenizer:
  path: tokenizer.model
order:
  window: 2
sources:
  books:
    weight: 3
    path: books.jsonl
    schema: redpajama
  web:
    weight: 1
    path: [web/*.jsonl, more.jsonl.zst]
    filters: {min_words: 10}
"""

Load = Callable[..., Mixture]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Reads a text as a mixture file."""

    def read(text: str | bytes, *overrides: str) -> Mixture:
        path = tmp_path / "m.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_mixture(str(path), overrides)

    return read


def faults(load: Load, text: str, *overrides: str) -> Sequence[str]:
    with pytest.raises(FaultsError) as caught:
        load(text, *overrides)
    return caught.value.faults


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new, 1)


def with_source(**values: Any) -> dict[str, Any]:
    source = {"weight": 1, "path": "a.jsonl"} | values
    return {"name": "m", "tokens": 10, "tokenizer": {"path": "t"}, "sources": {"a": source}}


# What is accepted


def test_a_good_file_gives_a_mixture_with_defaults(load):
    mixture = load(GOOD)
    assert (mixture.tokens, mixture.seq_len, mixture.order.window) == (20_000, 32_768, 2)
    assert list(mixture.sources) == ["books", "web"]
    assert mixture.sources["books"].path == ["books.jsonl"]
    assert mixture.filters_of("web").min_words == 10
    assert mixture.filters_of("books").min_words == 0


def test_weights_are_exact_decimals_not_floats(load):
    text = changed("weight: 3", "weight: 0.1")
    weights = [s.weight for s in load(text, "sources.web.weight=0.2").sources.values()]
    assert weights == [Fraction(1, 10), Fraction(1, 5)]
    assert sum(weights) == Fraction(3, 10)


@pytest.mark.parametrize(
    ("written", "weight"),
    [("25", Fraction(25)), ("1/3", Fraction(1, 3)), ("1e-3", Fraction(1, 1000)),
     ("0.30000000000000004", Fraction(30000000000000004, 10**17)), ("'0.1'", Fraction(1, 10))],
)  # fmt: skip
def test_weights_can_be_written_as_decimals_and_as_quotients(load, written, weight):
    assert load(changed("weight: 3", f"weight: {written}")).sources["books"].weight == weight


def test_names_of_sources_are_text_whatever_yaml_takes_them_for(load):
    mixture = load(changed("books:", "2020:").replace("web:", "yes:"))
    assert list(mixture.sources) == ["2020", "yes"]


def test_a_merged_mapping_fills_keys_in_and_names_none_twice(load):
    text = GOOD + "  more:\n    <<: {weight: 2, path: x, loss: answers, schema: p3}\n    path: y\n"
    more = load(text).sources["more"]
    assert (more.weight, more.path, more.loss) == (2, ["y"], "answers")


def test_a_mixture_cannot_be_changed(load):
    with pytest.raises(ValueError, match="frozen"):
        load(GOOD).tokens = 3


# The recipe


def test_the_recipe_survives_json_and_gives_the_same_mixture_again(load):
    recipe = load(GOOD).recipe()
    again = json.loads(json.dumps(recipe))
    assert again == recipe
    assert Mixture.model_validate(again) == load(GOOD)
    assert Mixture.model_validate(again).recipe() == recipe


@given(
    st.fractions(min_value=Fraction(1, 10**9), max_value=10**6), st.floats(0.25, 9), st.booleans()
)
def test_a_recipe_is_stable_through_json(weight, max_passes, stream):
    values: dict[str, Any] = {"weight": weight, "max_passes": max_passes}
    values |= {"policy": "stream", "stream_sequences": 4} if stream else {}
    mixture = Mixture.model_validate(with_source(**values))
    again = Mixture.model_validate(json.loads(json.dumps(mixture.recipe())))
    assert again == mixture
    assert again.recipe() == mixture.recipe()


def test_equal_mixtures_have_equal_recipes_however_they_are_written(load):
    other = yaml.safe_load(GOOD) | {"seq_len": 32768, "seed": 0, "duplicates": "drop"}
    other["sources"]["books"] |= {"weight": "3.0", "path": ["books.jsonl"], "sample": 1}
    assert load(yaml.safe_dump(other, sort_keys=False)).recipe() == load(GOOD).recipe()


@pytest.mark.parametrize(
    "override", ["tokens=20001", "sources.web.weight=1.0000001", "tokenizer.bos=false", "seed=1"]
)
def test_different_mixtures_have_different_recipes(load, override):
    assert load(GOOD, override).recipe() != load(GOOD).recipe()


# Faults


def test_all_faults_are_named_at_once_by_line_with_the_rule_and_a_suggestion(load):
    text = """\
name: a b
tokens: 1e9
max_record_mib: 0
tokenizer: tokenizer.model
filters: {min_words: -1}
sources:
  a:
    wieght: 1
    path: a.jsonl
  b:
    weight: heavy
    path: [1]
    policy: packed
"""
    assert faults(load, text, "order.windw=2", "sources.c=null") == (
        "--set sources.c=null: there is no 'c' to remove",
        "--set order.windw=2: order.windw: no such key; did you mean 'window'?",
        "line 1: name: must be letters, digits, '.', '_' or '-', no sign first (given: 'a b')",
        "line 2: tokens: must be a whole number (given: '1e9'); write 1_000_000_000",
        "line 3: max_record_mib: must be greater than or equal to 1 (given: 0)",
        "line 4: tokenizer: must hold keys: path, bos, eos, tiktoken (given: 'tokenizer.model')",
        "line 5: filters.min_words: must be greater than or equal to 0 (given: -1)",
        "line 7: sources.a.weight: is missing",
        "line 8: sources.a.wieght: no such key; did you mean 'weight'?",
        "line 11: sources.b.weight: must be a number, such as 25, 0.25 or 1/3 (given: 'heavy')",
        "line 12: sources.b.path.0: must be text; put it in quotes (given: 1)",
        "line 13: sources.b.policy: must be 'pack', 'pad', 'stream' or 'few_shot' (given: "
        "'packed'); did you mean 'pack'?",
    )


def test_the_message_begins_with_the_file_and_the_number_of_faults(load, tmp_path):
    with pytest.raises(FaultsError) as caught:
        load(changed("tokens: 20_000", "tokens: 0"))
    fault = "line 2: tokens: must be greater than or equal to 1 (given: 0)"
    assert str(caught.value) == f"{tmp_path}/m.yaml: 1 fault\n  {fault}"


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("tokens: 20_000", "tokens: 20,000", "line 2: tokens: must be a whole number "
         "(given: '20,000'); write 20_000"),
        ("tokens: 20_000", "tokens: 1.5", "line 2: tokens: must be a whole number (given: 1.5)"),
        ("tokens: 20_000", "tokens: 2024-01-01", "line 2: tokens: must be a whole number"),
        ("weight: 3", "weight: -1", "line 9: sources.books.weight: must be greater than 0 "
         "(given: -1)"),
        ("weight: 3", "weight: .inf", "line 9: sources.books.weight: must be a number, such as 25, "
         "0.25 or 1/3 (given: inf)"),
        ("weight: 3", "weight: yes", "line 9: sources.books.weight: must be a number, such as 25, "
         "0.25 or 1/3 (given: true)"),
        ("weight: 3", "weight: [3]", "line 9: sources.books.weight: must be a number, such as 25, "
         "0.25 or 1/3"),
        ("weight: 3", "weight: 1/0", "line 9: sources.books.weight: must be a number, such as 25, "
         "0.25 or 1/3 (given: '1/0')"),
        ("path: books.jsonl", "path: []", "line 10: sources.books.path: needs at least one item"),
        ("path: books.jsonl", "path: {a: b}", "line 10: sources.books.path: must be text or a list "
         "of texts"),
        ("schema: redpajama", "schema: redpyjama", "line 11: sources.books.schema: must be 'text', "
         "'redpajama', 'long_data', 'oig', 'pile', 'c4', 'p3', 'natural_instructions', 'sharegpt', "
         "'messages', 'prompt_completion', 'openorca', 'alpaca', 'oasst' or 'inst_text' (given: "
         "'redpyjama'); did you mean 'redpajama'?"),
        ("schema: redpajama", "sample: 1.5", "line 11: sources.books.sample: must be less than or "
         "equal to 1 (given: 1.5)"),
        ("schema: redpajama", "stream_sequences: 2", "line 8: sources.books: stream_sequences "
         "needs `policy: stream`"),
        ("schema: redpajama", "schema: oig\n    fields: {text: t}", "line 8: sources.books: give "
         "either `schema` or `fields`, not both"),
        ("schema: redpajama", "abstracts: {paths: x, path: y}", "line 11: "
         "sources.books.abstracts.paths: no such key; did you mean 'path'?"),
        ("window: 2", "xyz: 2", "line 6: order.xyz: no such key; known: global_batch, window"),
        ("  path: tokenizer.model", "  pth: t\n  path: t", "line 4: tokenizer.pth: no such key; "
         "did you mean 'path'?"),
    ],
)  # fmt: skip
def test_a_fault_names_line_key_rule_and_value(load, old, new, fault):
    assert faults(load, changed(old, new)) == (fault,)


def test_faults_of_a_source_are_found_whatever_its_name(load):
    text = changed("  web:", "  weight:").replace("filters: {min_words: 10}", "filtres: {}")
    assert faults(load, text) == (
        "line 15: sources.weight.filtres: no such key; did you mean 'filters'?",
    )


def test_a_key_named_twice_is_a_fault_at_its_second_line(load):
    twice = GOOD + "  books: {weight: 1, path: x}\n"
    assert faults(load, twice) == ("line 16: sources.books: is named twice",)


def test_no_sources_are_a_fault(load):
    empty = GOOD[: GOOD.index("sources:")]
    assert faults(load, empty) == ("sources: is missing",)
    (fault,) = faults(load, empty + "sources: {}\n")
    assert fault.startswith("line 7: sources: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: b: c", "not valid YAML: mapping values are not allowed here"),
        ("? [a]\n: 1\n", "not valid YAML"),
        ("name: x\n---\nname: y\n", "not valid YAML: expected a single document"),
        ("name: !!python/object:os.system x", "not valid YAML: could not determine a constructor"),
        ("name: \x01", "not valid YAML"),
        ("- name", "a mixture is a mapping with `name`, `tokens` and `sources`"),
        ("", "a mixture is a mapping"),
        ("just text", "a mixture is a mapping"),
        ("sources: &s {a: *s}", "an alias (*name) stands inside itself"),
        (b"name: \xff", "cannot read the mixture"),
    ],
)
def test_what_is_no_mapping_is_refused_with_the_reason(load, tmp_path, content, message):
    with pytest.raises(UserError) as caught:
        load(content)
    assert str(caught.value).startswith(f"{tmp_path}/m.yaml: ")
    assert message in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(UserError, match="cannot read the mixture") as caught:
            load_mixture(str(path))
        assert str(path) in str(caught.value)


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("ab1. $", max_size=4),
    lambda inner: st.lists(inner, max_size=2)
    | st.dictionaries(st.sampled_from(["weight", "path", "local", "fields", "filters", "x"]), inner,
                      max_size=3),
    max_leaves=6,
))  # fmt: skip
def test_no_value_of_a_source_is_more_than_a_fault(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(with_source() | {"sources": {"a": value, "weight": value}}))
    try:
        load_mixture(str(path))
    except FaultsError as error:
        assert all(fault.startswith("line ") for fault in error.faults)


# Overrides and variables


def test_overrides_change_add_and_remove_keys(load):
    mixture = load(GOOD, "tokens=30_000", "order.global_batch=4", "sources.books=null",
                   "sources.web.path=[x, y]", "filters.min_tokens=7")  # fmt: skip
    assert (mixture.tokens, mixture.order.global_batch, mixture.order.window) == (30_000, 4, 2)
    assert list(mixture.sources) == ["web"]
    assert mixture.sources["web"].path == ["x", "y"]
    assert mixture.filters.min_tokens == 7


def test_removing_a_key_gives_its_default_back(load):
    assert load(GOOD, "order.window=null").order.window == 8


def test_later_overrides_win_and_may_hold_equals_signs(load):
    mixture = load(GOOD, "tokens=1", "tokens=2", "sources.web.path=https://x/?a=b")
    assert mixture.tokens == 2
    assert mixture.sources["web"].path == ["https://x/?a=b"]


def test_an_override_changes_one_of_two_sources_that_share_their_keys(load):
    text = GOOD.replace("  books:\n", "  books: &books\n") + "  copy: *books\n"
    sources = load(text, "sources.copy.weight=9").sources
    assert (sources["books"].weight, sources["copy"].weight) == (3, 9)


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("tokens", "--set tokens: write KEY=VALUE, for instance tokens=20000000"),
        ("=3", "--set =3: write KEY=VALUE, for instance tokens=20000000"),
        ("order..window=3", "--set order..window=3: write KEY=VALUE, for instance tokens=20000000"),
        ("tokens=[", "--set tokens=[: the value is not valid YAML; quote it"),
        ("tokens.x=3", "--set tokens.x=3: 'tokens' holds no keys"),
        ("sources.boks=null", "--set sources.boks=null: there is no 'boks' to remove; "
         "did you mean 'books'?"),
        ("filtres.min_words=null", "--set filtres.min_words=null: there is no 'filtres' to remove"),
        ("tokens=many", "--set tokens=many: tokens: must be a whole number (given: 'many')"),
        ("sources.web.wieght=2", "--set sources.web.wieght=2: sources.web.wieght: no such key; "
         "did you mean 'weight'?"),
    ],
)  # fmt: skip
def test_a_fault_of_an_override_names_the_override_not_a_line(load, override, fault):
    assert faults(load, GOOD, override) == (fault,)


def test_variables_stand_for_the_environment_and_python_paths(load, monkeypatch):
    monkeypatch.setenv("CORPUS", "/corpus")
    monkeypatch.setenv("BUDGET", "12")
    text = changed("path: books.jsonl", 'path: ["${CORPUS}/b", "${stdlib}/*.py"]')
    mixture = load(text.replace("20_000", '"${BUDGET}"'), "sources.web.path=${CORPUS}/w")
    assert mixture.sources["books"].path[0] == "/corpus/b"
    assert not mixture.sources["books"].path[1].startswith("$")
    assert mixture.sources["web"].path == ["/corpus/w"]
    assert mixture.tokens == 12


def test_an_unset_variable_is_a_fault_unless_its_source_is_removed(load):
    text = changed("path: books.jsonl", "path: ${NO_SUCH_NAME_1}/x")
    assert faults(load, text) == (
        "line 10: sources.books.path: no environment variable ${NO_SUCH_NAME_1} is set",
    )
    assert list(load(text, "sources.books=null").sources) == ["web"]
    (fault,) = faults(load, changed("path: books.jsonl", "path: ${purelb}/x"))
    assert fault.endswith("${purelb} is set; did you mean 'purelib'?")


def test_a_recipe_with_fields_survives_json():
    mixture = Mixture.model_validate(with_source(fields={"text": "body"}))
    assert Mixture.model_validate(json.loads(json.dumps(mixture.recipe()))) == mixture


@pytest.mark.parametrize(
    ("old", "new"),
    [("tokens: 20_000", "tokens: yes"), ("window: 2", "window: yes"),
     ("schema: redpajama", "max_passes: yes"), ("schema: redpajama", "max_passes: .inf")],
)  # fmt: skip
def test_a_number_is_neither_a_boolean_nor_infinite(load, old, new):
    assert len(faults(load, changed(old, new))) == 1

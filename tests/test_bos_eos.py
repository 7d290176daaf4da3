"""BOS and EOS are what the model's files say, in the order that is written down."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import processors
from vocabularies import added, byte_level, sentencepiece_model

from pipelines.errors import UserError
from pipelines.mixture import TokenizerSpec
from pipelines.rendering import BOS, EOS
from pipelines.tokenizer import load_tokenizer
from pipelines.tokenizer_file import TokenizerFile, fetch_tokenizer, kept_tokenizer, reference

ADDED = (
    added("<s>"), added("</s>"), added("<h1>"), added("<bos>", special=True),
    added("<eos>", special=True), added("<|im_end|>", special=True),
    added("<｜begin▁of▁sentence｜>", special=True), added("<｜end▁of▁sentence｜>", special=True),
)  # fmt: skip
"""A vocabulary with much to be mistaken for BOS and EOS; <|endoftext|> is 0."""


@cache
def vocabulary() -> str:
    return byte_level(*ADDED).to_str()


def token_id(text: str) -> int:
    found = reference(TokenizerFile(vocabulary().encode(), "tokenizer.json")).token_id(text)
    assert found is not None
    return found


def folder(path: Path, *, framed: tuple[str, str] | None = None, **configs: Any) -> Path:
    """A model's folder: a tokenizer.json, and JSON files by their names without the ending."""
    value = json.loads(vocabulary())
    if framed:
        before, after = framed
        special = [(text, token_id(text)) for text in {before, after}]
        processor = processors.TemplateProcessing(
            single=f"{before} $A {after}", special_tokens=special
        )
        value["post_processor"] = json.loads(processor.__getstate__())
    (path / "tokenizer.json").write_text(json.dumps(value))
    for name, content in configs.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def fetch(path: Path, **keys: Any) -> TokenizerFile:
    return fetch_tokenizer(TokenizerSpec.model_validate({"path": str(path), **keys}))


def tokens(file: TokenizerFile) -> tuple[str | None, str | None]:
    return file.bos_token.text, file.eos_token.text


CONFIG = {"bos_token": "<bos>", "eos_token": "<eos>"}
OBJECTS = {key: {"content": text, "lstrip": False} for key, text in CONFIG.items()}
END, BEGIN = "<|endoftext|>", "<｜begin▁of▁sentence｜>"


@pytest.mark.parametrize(
    ("keys", "framed", "configs", "want", "origins"),
    [
        ({}, None, {"tokenizer_config": CONFIG}, ("<bos>", "<eos>"),
         ("tokenizer_config.json: bos_token", "tokenizer_config.json: eos_token")),
        ({}, None, {"tokenizer_config": OBJECTS}, ("<bos>", "<eos>"),
         ("tokenizer_config.json: bos_token", "tokenizer_config.json: eos_token")),
        ({"bos": "<h1>", "eos": 0}, None, {"tokenizer_config": CONFIG}, ("<h1>", END),
         ("tokenizer.bos", "tokenizer.eos")),
        # What ends turns does not end documents where tokenizer_config.json names another token.
        ({}, None, {"tokenizer_config": CONFIG,
                    "generation_config": {"bos_token_id": 0, "eos_token_id": ["<|im_end|>"]}},
         ("<bos>", "<eos>"),
         ("tokenizer_config.json: bos_token", "tokenizer_config.json: eos_token")),
        ({}, None, {"generation_config": {"bos_token_id": "<bos>", "eos_token_id": ["<eos>"]},
                    "special_tokens_map": {"bos_token": "<s>", "eos_token": "</s>"}},
         ("<bos>", "<eos>"),
         ("generation_config.json: bos_token_id", "generation_config.json: eos_token_id")),
        # Of several ends, the first file that names one of them decides.
        ({}, None, {"generation_config": {"eos_token_id": ["<|im_end|>", "<eos>"]},
                    "special_tokens_map": {"bos_token": "<bos>", "eos_token": "</s>"},
                    "config": {"eos_token_id": "<eos>", "bos_token_id": 0}},
         ("<bos>", "<eos>"),
         ("special_tokens_map.json: bos_token", "config.json: eos_token_id")),
        ({}, ("<bos>", "<eos>"), {"generation_config": {"eos_token_id": ["<|im_end|>", "<eos>"]}},
         ("<bos>", "<eos>"), ("the tokenizer file", "the tokenizer file")),
        ({}, (BEGIN, END), {"config": {"bos_token_id": None, "eos_token_id": None}},
         (BEGIN, END), ("the tokenizer file", "the tokenizer file")),
        ({"bos": False}, None, {"tokenizer_config": {"bos_token": None, "eos_token": END}},
         (None, END), ("tokenizer_config.json: bos_token is null: the model has none",
                       "tokenizer_config.json: eos_token")),
        # A guess takes special tokens alone: <s> and </s> are HTML here.
        ({}, None, {}, ("<bos>", "<eos>"), ("guessed from its name",) * 2),
    ],
)  # fmt: skip
def test_the_first_that_says_something_decides(
    tmp_path: Path, keys: Any, framed: Any, configs: Any, want: Any, origins: Any
) -> None:
    for content in configs.values():
        for key, value in content.items():
            if key.endswith("_id"):  # written by name above
                ids = [token_id(x) if isinstance(x, str) else x for x in _listed(value)]
                content[key] = ids if isinstance(value, list) else ids[0]
    file = fetch(folder(tmp_path, framed=framed, **configs), **keys)
    assert tokens(file) == want
    assert (file.bos_token.origin, file.eos_token.origin) == origins
    assert file.eos_token.id == token_id(want[1])
    assert any("guessed" in note for note in file.notes) == (origins[1] == "guessed from its name")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize(
    ("keys", "configs", "message"),
    [
        ({}, {"tokenizer_config": {"bos_token": "<bos>", "eos_token": "<|imend|>"}},
         r"tokenizer\.eos: tokenizer_config\.json: eos_token names '<\|imend\|>', which is not in "
         r"the vocabulary; did you mean '<\|im_end\|>'\? \(its special tokens: <\|endoftext\|>, "
         r".*\); take the vocabulary that belongs to that file, or name the token "
         r"\(tokenizer\.eos: TEXT or ID\)"),
        ({}, {"tokenizer_config": {"bos_token": None, "eos_token": "<eos>"}},
         r"tokenizer\.bos: tokenizer_config\.json: bos_token is null: the model has none; name the "
         r"token \(tokenizer\.bos: TEXT or ID\), or set it to false"),
        ({"eos": "<nd>"}, {}, r"tokenizer\.eos: names '<nd>', which is not in the vocabulary"),
        ({"bos": 5000}, {}, r"tokenizer\.bos: names id 5000, and the vocabulary has 408 ids"),
        ({"bos": -1}, {}, r"tokenizer\.bos: names id -1, and the vocabulary has 408 ids"),
        ({"bos": False}, {"generation_config": {"eos_token_id": [0, 405]}},
         r"tokenizer\.eos: generation_config\.json: eos_token_id names '<\|endoftext\|>' \(0\), "
         r"'<\|im_end\|>' \(405\), ends of documents and of turns; name the one that documents"),
        ({}, {"tokenizer_config": {"bos_token": 3}},
         r"tokenizer\.bos: tokenizer_config\.json: bos_token is 3, which is no token"),
        ({}, {"tokenizer_config": ["<s>"]}, r"tokenizer_config\.json: no JSON object"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_the_file_that_says_it_and_the_way_out(
    tmp_path: Path, keys: Any, configs: Any, message: str
) -> None:
    assert token_id("<|im_end|>") == 405
    with pytest.raises(UserError, match=message):
        fetch(folder(tmp_path, **configs), **keys)


def test_a_post_processor_that_puts_an_id_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path, framed=("<bos>", "<eos>"))
    value = json.loads((path / "tokenizer.json").read_text())
    value["post_processor"]["special_tokens"]["<bos>"]["ids"] = [5000]
    (path / "tokenizer.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match="the tokenizer file names id 5000, and the vocabulary has"):
        fetch(path)


def test_broken_json_beside_the_vocabulary_is_named(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": ')
    with pytest.raises(UserError, match=r"generation_config\.json: no JSON"):
        fetch(tmp_path)


def test_a_vocabulary_in_which_nothing_is_called_bos_says_so(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(byte_level().to_str())
    with pytest.raises(UserError, match=r"tokenizer\.bos: nothing names one, .* set it to false"):
        fetch(tmp_path)
    assert tokens(fetch(tmp_path, bos=False)) == (None, END)


def test_a_model_without_bos_frames_documents_by_eos_alone(tmp_path: Path) -> None:
    config = {"bos_token": None, "eos_token": END}
    loaded = load_tokenizer(fetch(folder(tmp_path, tokenizer_config=config), bos=False))
    ids, offsets = loaded.encode(["a", "b"])
    assert ids[offsets[1:] - 1].tolist() == [0, 0]
    assert loaded.control_ids(BOS) == []
    assert loaded.control_ids(EOS) == [0]
    frame = "no BOS, EOS <|endoftext|> (0; tokenizer_config.json: eos_token)"
    assert loaded.describe().endswith(frame)


@pytest.mark.parametrize("place", ["folder", "tokenizer_config.json", "tokenizer.json"])
def test_a_path_may_be_the_folder_its_config_or_the_file(tmp_path: Path, place: str) -> None:
    folder(tmp_path, tokenizer_config=CONFIG)
    file = fetch(tmp_path if place == "folder" else tmp_path / place)
    assert tokens(file) == ("<bos>", "<eos>")
    assert file.digest == fetch(tmp_path).digest


def test_in_a_folder_with_both_the_file_that_transformers_loads_is_taken(tmp_path: Path) -> None:
    folder(tmp_path, tokenizer_config=CONFIG)
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    assert fetch(tmp_path).kind == "tokenizer.json"
    (tmp_path / "tokenizer_config.json").unlink()
    file = fetch(tmp_path / "tokenizer.model")
    assert (file.kind, *tokens(file)) == ("SentencePiece model", "<s>", "</s>")
    assert file.bos_token.origin == "the tokenizer file"


def test_a_folder_without_a_tokenizer_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer\.json or tokenizer\.model or .* in this"):
        fetch(tmp_path)
    with pytest.raises(UserError, match=r"cannot read .*nowhere: no such file"):
        fetch(tmp_path / "nowhere")


def test_folders_may_lie_on_any_filesystem_or_in_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    folder(tmp_path, tokenizer_config=CONFIG)
    memory: Any = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/", "memory://model/", recursive=True)
    (tmp_path / "a_model").mkdir()
    (tmp_path / "a_model" / "__init__.py").touch()
    folder(tmp_path / "a_model", tokenizer_config=CONFIG)
    monkeypatch.syspath_prepend(str(tmp_path))
    here = fetch(tmp_path).digest
    places = ("memory://model", "package://a_model")
    for path in (f"{place}{file}" for place in places
                 for file in ("", "/", "/tokenizer_config.json", "/tokenizer.json")):  # fmt: skip
        found = fetch_tokenizer(TokenizerSpec(path=path))
        assert found.digest == here, path
        assert tokens(found) == ("<bos>", "<eos>")


def test_the_digest_covers_bos_and_eos_but_not_who_names_them(tmp_path: Path) -> None:
    folder(tmp_path, tokenizer_config=CONFIG)
    named = fetch(tmp_path, bos="<bos>", eos="<eos>")
    assert named.digest == fetch(tmp_path).digest
    others = [fetch(tmp_path, **keys).digest for keys in
              ({"bos": False}, {"eos": False}, {"eos": END}, {"bos": "<s>"})]  # fmt: skip
    assert len({named.digest, *others}) == 5


def test_an_end_that_is_not_marked_as_special_is_made_by_no_text(tmp_path: Path) -> None:
    file = fetch(folder(tmp_path), eos="</s>", bos=False)
    assert file.controls == ("</s>",)
    loaded = load_tokenizer(file)
    ids = loaded.encode_bare(["a</s><s>"])[0].tolist()
    assert token_id("</s>") not in ids
    assert token_id("<s>") in ids
    assert loaded.encode(["a"])[0].tolist()[-1] == token_id("</s>")
    about = file.describe() | {"vocab_size": loaded.vocab_size}
    assert (about["eos_id"], about["eos_token"], about["eos_from"]) == (
        token_id("</s>"), "</s>", "tokenizer.eos"
    )  # fmt: skip
    assert (about["bos_id"], about["bos_token"], about["bos_from"]) == (None, None, None)
    kept = kept_tokenizer(file.content, json.loads(json.dumps(about)))
    assert "</s>" in reference(kept).specials


def test_white_space_may_end_documents_and_stays_text(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(byte_level(added("\n\n")).to_str())
    file = fetch(tmp_path, bos=False, eos="\n\n")
    assert file.controls == ()
    assert file.eos_token.id in load_tokenizer(file).encode_bare(["a\n\nb"])[0].tolist()
    assert any("is ordinary text of the vocabulary" in note for note in file.notes)


def test_a_bos_that_the_models_own_tokenizer_does_not_put_is_noted(tmp_path: Path) -> None:
    config = CONFIG | {"add_bos_token": False}
    (note,) = fetch(folder(tmp_path, tokenizer_config=config)).notes
    assert "add_bos_token is false" in note
    assert fetch(tmp_path, bos=False).notes == ()


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("false", False), ("1", 1), ("'<s>'", "<s>"), ("<s>", "<s>"), ("'1'", "1")],
)
def test_the_key_is_read_as_it_is_written(text: str, value: Any) -> None:
    spec = TokenizerSpec.model_validate({"path": "x", "bos": yaml.safe_load(text)})
    assert (spec.bos, type(spec.bos)) == (value, type(value))

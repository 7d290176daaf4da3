"""Texts on which the library of a vocabulary fails, and files that it cannot read."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Builder, write_jsonl
from vocabularies import added, byte_level, unigram_json

from pipelines.mixture import TokenizerSpec
from pipelines.tokenizer import load_tokenizer
from pipelines.tokenizer_file import TokenizerFile, fetch_tokenizer
from pipelines.vocabulary import EncodingError

# The first takes the blanks behind it along, and the second those before it: `tokenizers` panics.
FAILS = byte_level(added("'s", rstrip=True), added("  ", lstrip=True)).to_str()
TEXT = "a's   b"


def test_a_panic_of_the_library_is_an_exception() -> None:
    tokenizer = load_tokenizer(TokenizerFile(FAILS.encode(), "tokenizer.json"), proved="reference")
    with pytest.raises(EncodingError, match="bad split"):
        tokenizer.encode_bare([TEXT])
    assert len(tokenizer.encode_bare(["a's b"])[0])


@pytest.mark.parametrize("filters", [{}, {"loss": "answers", "fields": {"prompt": "question"}}])
def test_a_record_on_which_the_library_fails_is_dropped_and_the_others_stay(
    builder: Builder, tmp_path: Path, filters: dict[str, object]
) -> None:
    (tmp_path / "tokenizer.json").write_text(FAILS)
    records = [{"question": "", "text": text} for text in ("one", TEXT, "three", "four")]
    write_jsonl(builder.folder / "a.jsonl", records)
    built = builder.build(
        {"a": {"weight": 1, "path": "a.jsonl", "max_passes": 1_000, **filters}},
        tokens=20,
        tokenizer={"path": str(tmp_path / "tokenizer.json"), "bos": False},
    )
    (account,) = built.dataset.manifest["sources"]
    assert account["documents_dropped"] == {"tokenizer_failed": 1}
    assert account["documents_kept"] == 3


def test_why_an_engine_is_not_taken_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(unigram_json().to_str())
    file = fetch_tokenizer(TokenizerSpec(path=str(tmp_path), bos=False, eos=False))
    refused = load_tokenizer(file).refused
    assert any("Unigram" in why for why in refused)
    assert not any("\n" in why for why in refused)

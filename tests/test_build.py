"""The build as a whole, without Beam: exact shares, determinism, resume, accounting."""

from __future__ import annotations

from conftest import Builder, documents, write_jsonl


def test_shares_are_exact_to_the_token(builder: Builder) -> None:
    write_jsonl(builder.folder / "a.jsonl", documents(1, 120))
    write_jsonl(builder.folder / "b.jsonl", documents(2, 120))
    built = builder.build({"a": {"weight": 2, "path": "a.jsonl"}, "b": {"weight": 1, "path": "b.jsonl"}})
    assert [a.tokens_placed for a in built.accounts] == [13_333, 6_667]
    assert built.dataset.manifest["totals"]["tokens"] == 20_000

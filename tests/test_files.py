"""Files on other systems: what their clients raise becomes one message; nothing half written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.spec import AbstractFileSystem

from pipelines import files
from pipelines.errors import UserError
from pipelines.listing import list_files
from pipelines.mixture import TokenizerSpec
from pipelines.tokenizer_file import fetch_tokenizer


class ClientError(Exception):
    """As network clients raise it: no OSError."""


class Unreachable(AbstractFileSystem):
    """A store whose network is down."""

    protocol = "unreachable"

    def _fail(self, *_: Any, **__: Any) -> Any:
        raise ClientError("name or service not known")

    info = glob = find = cat_file = _open = ls = _fail


@pytest.fixture
def unreachable() -> Iterator[str]:
    fsspec.register_implementation("unreachable", Unreachable, clobber=True)
    yield "unreachable://bucket/file.jsonl"


def test_an_unreachable_store_is_named_with_what_its_client_said(unreachable: str) -> None:
    for path in (unreachable, unreachable.replace("file", "*")):
        with pytest.raises(UserError, match="cannot list it: ClientError: name or service not"):
            list_files([path], root=None, any_ending=False)
    with pytest.raises(UserError, match=r"tokenizer\.path: cannot read .*ClientError"):
        fetch_tokenizer(TokenizerSpec(path=unreachable))


def test_an_unknown_kind_of_store_is_named() -> None:
    with pytest.raises(UserError, match=r"nonesuch://x: Protocol not known.*docs/running\.md"):
        files.filesystem("nonesuch://x")


def test_an_error_in_our_own_code_is_not_dressed_up_as_the_networks() -> None:
    with pytest.raises(ZeroDivisionError), files.reachable("local/file"):
        _ = 1 / 0


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    with pytest.raises(RuntimeError), files.write_atomic(str(path)) as file:
        file.write(b"half")
        raise RuntimeError
    assert list(path.parent.iterdir()) == []
    files.write_bytes(str(path), b"whole")
    assert path.read_bytes() == b"whole"
    assert files.list_names(str(path.parent)) == ["file"]


def test_equal_values_are_equal_json_bytes(tmp_path: Path) -> None:
    files.write_json(str(tmp_path / "a"), {"b": 1, "a": [2, None]})
    files.write_json(str(tmp_path / "b"), {"a": [2, None], "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert files.read_json(str(tmp_path / "a")) == {"a": [2, None], "b": 1}

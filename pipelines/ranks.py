"""tekken.json and tiktoken rank files as a tokenizer.json, proved against their own libraries."""

import base64
import binascii
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.byte_level import Json, added_token, byte_level_json, frame, merges_of_ranks, spell
from pipelines.errors import UserError
from pipelines.probe import probe_texts
from pipelines.published_ranks import PUBLISHED, RANK_USES, RankUse

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class Ranks:
    """A vocabulary of ranks."""

    ranks: Mapping[bytes, int]
    first: int
    """Id of rank 0."""

    pattern: str
    special: Mapping[str, int]
    """Special tokens and their ids; text never makes them."""

    bos: str | None
    eos: str | None
    normalizer: Mapping[str, Any] | None
    library: str
    encode: Encode
    """What the library that defines the format gives for a text, without BOS and EOS."""

    def tokenizer_json(self) -> Json:
        """The same vocabulary as a tokenizer.json."""
        ids = {spell(token): rank + self.first for token, rank in self.ranks.items()}
        value = byte_level_json(
            {**self.special, **ids} if self.first else {**ids, **self.special},
            merges_of_ranks(self.ranks),
            patterns=[self.pattern],
            added=[added_token(text, i, special=True) for text, i in self.special.items()],
            normalizer=dict(self.normalizer) if self.normalizer else None,
        )
        return value | {"post_processor": frame(self.bos, self.eos, self.special)}


def is_tekken(value: Json) -> bool:
    """Whether a JSON file is a tekken.json."""
    return isinstance(value.get("config"), dict) and "pattern" in value["config"]


def read_tekken(content: bytes) -> Ranks:
    """Read a tekken.json as `mistral-common` does.

    Raises:
        ValueError: it is damaged, or of a version that the installed `mistral-common` cannot read.
    """
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tekken.json"  # the library reads files alone
        path.write_bytes(content)
        try:
            library = Tekkenizer.from_file(path)
        except (AssertionError, KeyError, TypeError) as error:  # how it speaks of damage
            raise ValueError(f"mistral-common cannot read it: {error!r}") from error
    value: Json = json.loads(content)
    count, first = library.n_words, library.num_special_tokens
    tokens = {base64.b64decode(t["token_bytes"]): t["rank"] for t in value["vocab"]}
    return Ranks(
        ranks={token: rank for token, rank in tokens.items() if rank < count - first},
        first=first,
        pattern=value["config"]["pattern"],
        special={library.id_to_piece(i): i for i in range(first)},
        bos=library.id_to_piece(library.bos_id),
        eos=library.id_to_piece(library.eos_id),
        normalizer=None,
        library="mistral-common",
        encode=lambda text: library.encode(text, bos=False, eos=False),
    )


def parse_ranks(content: bytes) -> dict[bytes, int]:
    """Tokens and ranks of a tiktoken rank file; empty where it is none."""
    ranks: dict[bytes, int] = {}
    for line in content.splitlines():
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            return {}
    return ranks


def read_ranks(
    content: bytes,
    ranks: Mapping[bytes, int],
    said: RankUse | Mapping[str, Any] | None,
    config: Mapping[str, Any],
) -> Ranks:
    """Read a tiktoken rank file with what it leaves out.

    Args:
        content: the bytes of the file.
        ranks: what `parse_ranks` makes of it.
        said: `tokenizer.tiktoken` of the mixture: the name of a published use, or a pattern and
            special tokens.
        config: the tokenizer_config.json beside it, which may list special tokens.

    Raises:
        UserError: nothing says how text is split, or special tokens have ids of others.
    """
    named = said if isinstance(said, str) else _published_as(content)
    if isinstance(said, Mapping):
        pattern, special = said["pattern"], dict[str, int](said["special_tokens"])
        bos = eos = normalizer = None
    elif named is not None:
        use = PUBLISHED[named]
        pattern, special = use.pattern, dict(use.special(len(ranks)))
        bos, eos, normalizer = use.bos, use.eos, use.normalizer
    else:
        raise UserError(
            "tokenizer.path: a rank file says neither how text is split nor its special tokens, "
            "and this one is none that is known by its digest; say what it belongs to "
            f"(tokenizer.tiktoken: {' | '.join(RANK_USES)}), or give both (tokenizer.tiktoken: "
            "{pattern: REGEX, special_tokens: {TEXT: ID}})"
        )
    listed = {t["content"]: int(i) for i, t in config.get("added_tokens_decoder", {}).items()}
    taken = set(listed.values())
    special = {text: i for text, i in special.items() if i not in taken and text not in listed}
    special |= listed
    if clash := sorted(set(special.values()) & set(ranks.values())):
        text = next(text for text, i in special.items() if i == clash[0])
        raise UserError(
            f"tokenizer.tiktoken: special token {text!r} has id {clash[0]}, which is a rank of the "
            "file; take the special tokens that belong to this file"
        )
    return Ranks(
        ranks=ranks, first=0, pattern=pattern, special=special,
        bos=bos if bos in special else None, eos=eos if eos in special else None,
        normalizer=normalizer, library="tiktoken",
        encode=_tiktoken(ranks, pattern, normalizer),
    )  # fmt: skip


def _published_as(content: bytes) -> RankUse | None:
    digest = hashlib.sha256(content).hexdigest()
    return next((name for name, use in PUBLISHED.items() if digest in use.digests), None)


def _tiktoken(
    ranks: Mapping[bytes, int], pattern: str, normalizer: Mapping[str, Any] | None
) -> Encode:
    import unicodedata

    import tiktoken

    try:
        encoding = tiktoken.Encoding(
            "ranks", pat_str=pattern, mergeable_ranks=dict(ranks), special_tokens={}
        )
    except ValueError as error:
        raise UserError(f"tokenizer.tiktoken.pattern: {error}") from error
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise UserError(
            f"tokenizer.path: a rank file has a token for each of the 256 bytes; this one lacks "
            f"{len(missing)}, first {missing[0]:#04x}; it is damaged or cut off: fetch it again"
        )
    if normalizer is None:
        return encoding.encode_ordinary
    return lambda text: encoding.encode_ordinary(unicodedata.normalize("NFC", text))


def proved_json(vocabulary: Ranks) -> bytes:
    """The tokenizer.json of a vocabulary of ranks.

    Raises:
        UserError: it gives other ids than the vocabulary's own library.
    """
    from tokenizers import Tokenizer

    content = json.dumps(vocabulary.tokenizer_json(), ensure_ascii=False).encode()
    tokenizer: Any = Tokenizer.from_str(content.decode())
    tokenizer.encode_special_tokens = True
    texts = [*probe_texts(), *every_character()]
    encoded: Any = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    for text, got in zip(texts, encoded, strict=True):
        if got.ids != list(vocabulary.encode(text)):
            raise UserError(
                f"tokenizer.path: as a tokenizer.json this vocabulary gives other ids than "
                f"{vocabulary.library}, first for the text {text[:60]!r}; its pattern "
                f"{vocabulary.pattern!r} means something else to `tokenizers`: write the pattern "
                "so that both read it alike"
            )
    return content


@cache
def every_character() -> tuple[str, ...]:
    """Every character of the scripts, each beside letters, digits, spaces and marks.

    Libraries know characters of different editions of Unicode, and patterns ask what a character
    is. Of the large blocks of ideographs and syllables, which editions seldom touch, only ends.
    """
    edges = (0x3400, 0x4DBF, 0x4E00, 0x9FFF, 0xAC00, 0xD7A3, 0x20000, 0x2A6DF, 0x30000, 0x323AF)
    codes = [
        *range(0x3400), *range(0xA000, 0xAC00), *range(0xF900, 0x18000), *range(0x1A000, 0x20000),
        *(edge + i for edge in edges for i in range(-3, 4)), *range(0xE0000, 0xE0200),
    ]  # fmt: skip
    kept = [chr(code) for code in codes if not 0xD800 <= code < 0xE000]
    beside = [f"a{c}b {c}{c}1{c}'{c}\n" for c in kept]
    return tuple("".join(beside[i : i + 512]) for i in range(0, len(beside), 512))

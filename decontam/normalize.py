"""Text → words: the one definition that benchmark texts and documents share.

`default`: what two copies of a text still have in common after they were typeset, scraped,
wrapped or escaped. In this order:

1. HTML entities (`&eacute;`, `&#39;`, `&amp;quot;`) are what they stand for; tags (`<br />`,
   `<a href="…">`) and `~` are spaces.
2. Characters are decomposed (NFKD), stripped of accents and case-folded: `É`, `é` and `e` are
   equal, so are `ﬁ` and `fi`, `²` and `2`. Digits stay digits.
3. Zero-width characters, soft hyphens and control characters are nothing.
4. A word is a run of letters and digits. Characters of scripts that put no spaces between words
   (Han, kana, Thai, Lao, Khmer, Burmese) are a word each.
5. Punctuation between two such runs without any space (`don't`, `well-known`, `1,000`,
   `caf\'e`), and a hyphen at the end of a line, can be read in two ways. Both are used: the
   *split* reading (`don t`, `1 000`) and the *joined* one (`dont`, `1000`). TeX commands
   (`\\emph`) are punctuation; only where they begin like an escaped line end (`\n`, `\r`, `\t`)
   does the split reading take the letters behind it for a word.
   Two texts agree where the split or the joined readings of a passage agree.

`helm`: HELM's own rule (scripts/data_overlap, `default` normalization): lower case, split at runs
of white space and ASCII punctuation; punctuation at the ends of a text gives an empty word there.
(What is no letter in Unicode and stands above U+32400, as private characters do, splits too.)

The character table is computed from Python's Unicode data once, and kept in every index, so a
document is read by the rules that the index was built with.
"""

import hashlib
import html.entities
import string
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from decontam.character_kernels import (
    DELETED,
    ENTITY_SLOTS,
    LETTERS,
    NUMBER,
    PUNCTUATION,
    SINGLE,
    SPACE,
    SPECIAL,
    entity_hash,
)
from decontam.word_kernels import fill_words, join_readings, new_stream

NormalizationName = Literal["default", "helm"]

_BYTES_A_WORD = 4  # with the space behind it; a guess, for how much room words take
_CODE_POINTS = 0x32400  # the last plane with letters ends here; what is above is punctuation
_INVISIBLE = ("Mn", "Mc", "Me", "Cf", "Cc")  # marks, formats, controls
_SCRIPTS_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF),
)  # fmt: skip


class Reading(NamedTuple):
    """The words of some texts in one reading, W of them."""

    hashes: npt.NDArray[np.uint64]
    """[W]; the lowest bit says whether the word has a letter."""

    spans: npt.NDArray[np.int64]
    """[W, 2] first byte of each word in its text, and first behind it."""

    offsets: npt.NDArray[np.int64]
    """[T + 1] where each text's words begin."""

    differs: npt.NDArray[np.bool_]
    """[W] whether the other reading has not this very word here."""

    def of(self, text: int) -> "Reading":
        """The words of one text."""
        here = slice(self.offsets[text], self.offsets[text + 1])
        arrays = (self.hashes[here], self.spans[here])
        return Reading(*arrays, np.array([0, len(arrays[0])]), self.differs[here])


class Words(NamedTuple):
    """The words of some texts in both readings."""

    split: Reading
    joined: Reading


@dataclass(frozen=True)
class Normalizer:
    """A rule and its character table."""

    name: NormalizationName
    kinds: npt.NDArray[np.uint8]
    """[code points] what a character is to the rule."""

    fold_at: npt.NDArray[np.uint32]
    """[code points] where its folded form ends in `folds`; that of c begins at fold_at[c - 1], and
    that of 0 at 0."""

    folds: npt.NDArray[np.uint8]
    """UTF-8 of the folded forms, one after the other; for NUL 255, since 0 would change no hash."""

    entities: npt.NDArray[np.uint64]
    """[2, slots] hashes of the names of HTML entities, and their code points."""

    @classmethod
    def of(cls, name: NormalizationName) -> "Normalizer":
        """The rule of that name, with this Python's Unicode data."""
        fold = _fold_default if name == "default" else _fold_helm
        kinds, ends, folds = np.zeros(_CODE_POINTS, np.uint8), [0] * _CODE_POINTS, bytearray()
        for code in range(_CODE_POINTS):
            kind, form = fold(chr(code))
            kinds[code] = kind
            folds += form
            ends[code] = len(folds)
        names = html.entities.html5 if name == "default" else {}
        table = np.array(ends, np.uint32), np.frombuffer(bytes(folds), np.uint8)
        return cls(name, kinds, *table, _entity_table(names))

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits; equal digests mean equal words for every text."""
        arrays = (self.kinds, self.fold_at, self.folds, self.entities)
        content = b"\0".join([self.name.encode(), *(array.tobytes() for array in arrays)])
        return hashlib.sha256(content).hexdigest()[:32]

    @property
    def tables(self) -> tuple[Any, ...]:
        """What the kernels take."""
        helm = self.name == "helm"
        return self.kinds, self.fold_at, self.folds, self._ascii_folds, self.entities, helm

    @cached_property
    def _ascii_folds(self) -> npt.NDArray[np.uint8]:
        """[256] folded ASCII letters and digits; 0 for all other bytes."""
        table = np.zeros(256, np.uint8)
        for code in range(1, 128):
            if self.kinds[code] in (LETTERS, NUMBER):
                table[code] = self.folds[self.fold_at[code] - 1]
        return table

    def words(self, texts: Sequence[bytes]) -> Words:
        """All words of UTF-8 texts; `Searcher` goes through corpora without holding them."""
        data, bounds = join_texts(texts)
        position = np.zeros(2, np.int64)
        chunks = [tuple(array[:0] for array in new_stream())]
        before = 0
        while position[0] < len(texts):
            stream = new_stream(chunk=len(data) // _BYTES_A_WORD)
            n, m = fill_words(data, bounds, self.tables, stream, 0, 0, position)
            hashes, spans, patches, patch_hashes = stream
            chunks.append((hashes[:n], spans[:n], patches[:m] + before, patch_hashes[:m]))
            before += n
        hashes, spans, patches, patch_hashes = map(np.concatenate, zip(*chunks, strict=True))
        joined, joined_spans = np.zeros_like(hashes), np.zeros_like(spans)
        sources = np.zeros_like(spans)
        arrays = (hashes, spans, patches, patch_hashes)
        n, _ = join_readings(*arrays, 0, len(hashes), 0, 0, joined, joined_spans, sources)
        patched = np.zeros(len(hashes) + 1, np.int64)
        np.add.at(patched, patches[:, 0], 1)
        np.add.at(patched, patches[:, 1], -1)
        differs = np.cumsum(patched)[:-1] > 0
        split = _reading(hashes, spans, differs, bounds)
        text = np.searchsorted(bounds[:, 1], joined_spans[:n, 0])
        other = _joined_differs(sources[:n], split.offsets[text])
        return Words(split, _reading(joined[:n], joined_spans[:n], other, bounds))


def join_texts(texts: Sequence[bytes]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Texts as one array, padded for the kernels, and the bounds [T, 2] of each text."""
    ends = np.cumsum([len(text) + 1 for text in texts], dtype=np.int64) - 1
    bounds = np.stack([ends - [len(text) for text in texts], ends], axis=1).astype(np.int64)
    return np.frombuffer(b" ".join([*texts, bytes(64)]), np.uint8), bounds


def _joined_differs(
    sources: npt.NDArray[np.int64], begins: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """[J] whether a joined word is no split word, or stands behind one that only the other has.

    Args:
        sources: the words [first, last) of the split reading that each is, [J, 2].
        begins: the first word of its text in the split reading, [J].
    """
    joined = sources[:, 1] - sources[:, 0] > 1
    before = np.concatenate([[0], sources[:-1, 1]])
    return joined | (sources[:, 0] > np.maximum(before, begins))


def _reading(
    hashes: npt.NDArray[np.uint64],
    spans: npt.NDArray[np.int64],
    differs: npt.NDArray[np.bool_],
    bounds: npt.NDArray[np.int64],
) -> Reading:
    """Words with spans in the joined data → words with spans in their texts."""
    text = np.searchsorted(bounds[:, 1], spans[:, 0])
    offsets = np.searchsorted(text, np.arange(len(bounds) + 1)).astype(np.int64)
    begin = bounds[text, 0] if len(text) else np.zeros(0, np.int64)
    return Reading(hashes, spans - begin[:, None], offsets, differs)


def _fold_helm(char: str) -> tuple[int, bytes]:
    if char.isspace() or char in string.punctuation:
        return SPACE, b""
    return LETTERS, b"\xff" if char == "\0" else char.lower().encode(errors="ignore")


def _fold_default(char: str) -> tuple[int, bytes]:
    """The kind of a character and its folded form."""
    category = unicodedata.category(char)
    if category[0] in "LN":
        return _fold_letter(char, category)
    if char in "&<\\":
        return SPECIAL, b""
    if char.isspace() or char == "~" or category[0] == "Z":
        return SPACE, b""
    return (DELETED if category in _INVISIBLE else PUNCTUATION), b""


def _fold_letter(char: str, category: str) -> tuple[int, bytes]:
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", char).casefold())
    kept = "".join(c for c in folded if unicodedata.category(c)[0] in "LN")
    if not kept or (category == "Lm" and kept == char and 0x2B0 <= ord(char) < 0x300):
        return PUNCTUATION, b""  # signs such as the modifier apostrophe U+02BC
    if any(low <= ord(char) <= high for low, high in _SCRIPTS_WITHOUT_SPACES):
        return SINGLE, kept.encode()
    is_word = any(unicodedata.category(c)[0] == "L" for c in kept)
    return LETTERS if is_word else NUMBER, kept.encode()


def _entity_table(names: Mapping[str, str]) -> npt.NDArray[np.uint64]:
    """Open addressing by the hash of the name; entities of several characters are left out."""
    table = np.zeros((2, ENTITY_SLOTS if names else 1), np.uint64)
    for name, value in sorted(names.items()):
        if name.endswith(";") and len(value) == 1 and ord(value) < sys.maxunicode:
            key = entity_hash(np.frombuffer(name[:-1].encode(), np.uint8), 0, len(name) - 1)
            slot = int(key) % ENTITY_SLOTS
            while table[0, slot] not in (0, key):
                slot = (slot + 1) % ENTITY_SLOTS
            table[:, slot] = key, ord(value)
    return table

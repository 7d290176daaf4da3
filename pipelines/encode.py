"""Documents with answers and control tokens → ids, and which of them carry no loss.

A text is cut where an answer, a control token or what may be shortened begins or ends, and each
part is encoded on its own: no token reaches across, so the tokens of an answer are the answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.rendering import BOS, EOS, Control, Rendered
from pipelines.tokenizer import Tokenizer

Ids = npt.NDArray[Any]
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
"""What Unicode calls white space; Python also counts four separators of ASCII."""

TokenSpan = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A document as ids."""

    ids: Ids
    no_loss: tuple[TokenSpan, ...]
    """Tokens [start, end) that carry no loss where only answers do."""

    n_frame: int
    """BOS and EOS around it."""

    n_shortened: int = 0
    """Tokens that were cut out of it to make it fit."""

    @property
    def n_learned(self) -> int:
        """Tokens with loss that a model can predict: all but the first, which nothing precedes."""
        silent = sum(end - max(start, 1) for start, end in self.no_loss)
        return len(self.ids) - 1 - silent


class _Part(NamedTuple):
    ids: Ids
    loss: bool
    shrinks: bool


def has_parts(content: Rendered) -> bool:
    """Whether a document is more than one text between BOS and EOS."""
    parts = (content.answers, content.controls, content.framed, content.shrink, content.inside)
    return any(parts)


def encode_documents(
    contents: Sequence[Rendered], tokenizer: Tokenizer, *, max_tokens: int | None
) -> list[Encoded | None]:
    """Encode documents; None for one that does not fit into `max_tokens`.

    Raises:
        ValueError: the vocabulary lacks a control token.
    """
    pieces = [_without_eaten(_pieces(content, tokenizer), tokenizer) for content in contents]
    encoded = iter(_encode_texts([p for parts in pieces for p in parts], tokenizer))
    documents: list[Encoded | None] = []
    for content, parts in zip(contents, pieces, strict=True):
        ids = [next(encoded) for _ in parts]
        documents.append(_fit(_assemble(content, parts, ids, tokenizer), max_tokens))
    return documents


class _Piece(NamedTuple):
    """A stretch of text, or a control token."""

    text: str
    control: Control | None
    begins: bool
    """The tokenizer takes it for the beginning of a text, and may put a space before it."""

    loss: bool = False
    shrinks: bool = False


def _pieces(content: Rendered, tokenizer: Tokenizer) -> list[_Piece]:
    text, controls = content.text, list(content.controls)
    shrink = content.shrink or (0, 0)
    edges = {0, len(text), *shrink, *(c.position for c in controls)}
    edges |= {edge for span in content.answers for edge in span}
    ordered = sorted(edges)
    answers = iter([*content.answers, (len(text) + 1, len(text) + 1)])
    answer = next(answers)
    pieces: list[_Piece] = []
    begins = not content.inside
    for start, end in zip(ordered, [*ordered[1:], len(text)], strict=True):
        while controls and controls[0].position == start:
            control = controls.pop(0)
            begins = tokenizer.begins_behind(control.token)
            pieces.append(_Piece("", control, begins, control.loss))
        while answer[1] <= start:
            answer = next(answers)
        if end > start:
            in_answer, shrinks = answer[0] <= start, shrink[0] <= start and end <= shrink[1]
            pieces.append(_Piece(text[start:end], None, begins, in_answer, shrinks))
            begins = False
    return pieces


def _without_eaten(pieces: list[_Piece], tokenizer: Tokenizer) -> list[_Piece]:
    """The pieces without the white space that control tokens take along, as the library has it."""
    for i, piece in enumerate(pieces):
        if piece.control is None:
            continue
        before, behind = tokenizer.eats(piece.control.token)
        if before:
            _strip(pieces, range(i - 1, -1, -1), str.rstrip)
        if behind:
            _strip(pieces, range(i + 1, len(pieces)), str.lstrip)
    return pieces


def _strip(pieces: list[_Piece], places: range, strip: Callable[[str, str], str]) -> None:
    """Take white space off texts in these places, up to a control token or what is not blank."""
    begins = False
    for place in places:
        piece = pieces[place]
        if piece.control is not None:
            return
        left = strip(piece.text, WHITE_SPACE)
        pieces[place] = piece._replace(text=left, begins=piece.begins or begins)
        if left:
            return
        begins = piece.begins and strip is str.lstrip


def _encode_texts(pieces: Sequence[_Piece], tokenizer: Tokenizer) -> list[Ids]:
    """The ids of every piece; beginnings get the space that the vocabulary may put in front."""
    ids: list[Ids] = [np.zeros(0, tokenizer.token_type)] * len(pieces)
    for inside in (False, True):
        chosen = [i for i, p in enumerate(pieces) if p.control is None and p.begins != inside]
        tokens, offsets = tokenizer.encode_bare([pieces[i].text for i in chosen], inside=inside)
        for number, i in enumerate(chosen):
            ids[i] = tokens[offsets[number] : offsets[number + 1]]
    for i, piece in enumerate(pieces):
        if piece.control:
            ids[i] = np.array(tokenizer.control_ids(piece.control.token), tokenizer.token_type)
    return ids


def _assemble(
    content: Rendered, pieces: Sequence[_Piece], ids: Sequence[Ids], tokenizer: Tokenizer
) -> tuple[list[_Part], int]:
    parts = [_Part(i, p.loss, p.shrinks) for i, p in zip(ids, pieces, strict=True)]
    if content.framed:
        return parts, 0
    before, after = (np.array(tokenizer.control_ids(t), tokenizer.token_type) for t in (BOS, EOS))
    ends_with_answer = bool(content.answers) and content.answers[-1][1] == len(content.text)
    framed = [_Part(before, False, False), *parts, _Part(after, ends_with_answer, False)]
    return framed, len(before) + len(after)


def _fit(assembled: tuple[list[_Part], int], max_tokens: int | None) -> Encoded | None:
    parts, n_frame = assembled
    excess = sum(len(part.ids) for part in parts) - (max_tokens or 0) if max_tokens else 0
    if excess <= 0:
        return _join(parts, n_frame)
    shrinking = [i for i, part in enumerate(parts) if part.shrinks]
    if sum(len(parts[i].ids) for i in shrinking) <= excess:
        return None
    left = excess
    for i in reversed(shrinking):
        cut = min(left, len(parts[i].ids))
        parts[i] = parts[i]._replace(ids=parts[i].ids[: len(parts[i].ids) - cut])
        left -= cut
    return replace(_join(parts, n_frame), n_shortened=excess)


def _join(parts: Sequence[_Part], n_frame: int) -> Encoded:
    spans: list[TokenSpan] = []
    at = 0
    for part in parts:
        end = at + len(part.ids)
        if not part.loss and end > at:
            if spans and spans[-1][1] == at:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((at, end))
        at = end
    return Encoded(np.concatenate([part.ids for part in parts]), tuple(spans), n_frame)

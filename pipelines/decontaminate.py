"""Documents of a block → those without benchmark text, pieces of others, and every overlap found.

What an overlap is and what a policy does is decided in `decontam/`; this is its place in the build.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import xxhash

from decontam.records import BOILERPLATE_RULES, Overlap
from decontam.report import OVERLAP_SCHEMA, describe_overlap
from pipelines.benchmark_index import BenchmarkTexts, load_index
from pipelines.cleaning import Decontam
from pipelines.errors import UserError
from pipelines.mixture import Source, digest
from pipelines.records import Document, Dropped
from pipelines.rendering import Rendered
from pipelines.schemas import schema_of

if TYPE_CHECKING:  # numba takes a second to import; builds that compare nothing do without
    from decontam.policy import Policy, Verdict

BATCH_SCHEMA = pa.schema(
    [
        pa.field("file", pa.int32()) if column.name == "file" else column
        for column in OVERLAP_SCHEMA
        if column.name != "source"
    ]
    + [pa.field("offset", pa.int64())]
)
"""The overlaps of a batch of the token store; `file`, `line` and `offset` as in its index."""

CONTAMINATED, CONTAMINATED_TASK = "contaminated", "contaminated_task"
_EVIDENCE_CHARACTERS = 200
_PASSAGE_CHARACTERS = 100


@dataclass(frozen=True)
class DecontamSpec:
    """Everything that decontamination makes of a source's documents depends on."""

    index: str
    """Path of the benchmark's index; what counts is its digest."""

    index_digest: str
    policy: "Policy"
    code: str
    """Digest of the modules that do the work."""

    dropped_groups: Mapping[str, str] = field(default_factory=dict[str, str])
    """Tasks whose documents are all dropped, each with the evidence."""

    @cached_property
    def digest(self) -> str:
        """Part of the name of the token store's folder; the same wherever the index lies."""
        groups = sorted(self.dropped_groups.items())
        return digest(self.index_digest, self.policy, groups, self.code)

    def describe(self) -> dict[str, Any]:
        """What a folder of the token store says of it."""
        return {
            "index_digest": self.index_digest,
            "policy": asdict(self.policy),
            "dropped_groups": dict(self.dropped_groups),
            "program": self.code,
        }


class Text(NamedTuple):
    """A document on its way through the prepare stage."""

    document: Document
    utf8: bytes
    uid: bytes
    piece: str = ""
    """`piece 2 of 3: ` where it was cut out of a longer document; begins the evidence."""

    def window(self, number: int, n: int) -> "Text":
        """One of the `n` windows that it is divided into, by number from 1, with an id of its own.

        Windows with equal texts stay apart, but those of documents with equal texts are equal.
        """
        uid = xxhash.xxh3_128_digest(self.uid + number.to_bytes(8, "little"))
        return self._replace(uid=uid, piece=f"{self.piece}window {number} of {n}: ")

    def of(self, content: Rendered) -> "Text":
        """The same with another content, which cannot be divided."""
        document = self.document._replace(content=content, parts=None)
        return self._replace(document=document, utf8=content.text.encode())

    def dropped(self, reason: str, evidence: str) -> Dropped:
        """The record of its not being kept."""
        return self.document.dropped(reason, f"{self.piece}{evidence}", self.uid)


@dataclass(frozen=True, slots=True)
class Decontaminated:
    """What became of the documents of a block."""

    kept: list[Text]
    dropped: list[Dropped]
    overlaps: list[dict[str, Any]]
    """Rows of `BATCH_SCHEMA`: every overlap, boilerplate too, by document."""

    counts: Mapping[str, int]
    """Sums of `count_document`, and documents and bytes of tasks that are dropped whole."""

    @property
    def n_split_off(self) -> int:
        """Pieces of documents beyond the first piece of each."""
        return self.counts.get("pieces", 0) - self.counts.get("cut", 0)


def policy_of(source: Source, general: Decontam | None) -> "Policy | None":
    """What is done to documents of a source that overlap; None where nothing is compared.

    Builds and `decontam.scan` ask this one function. Documents that are worth nothing in pieces,
    those of tasks, dialogues and questions, are dropped where nothing else is asked for.

    Args:
        source: its `decontam` goes before the mixture's.
        general: the mixture's.
    """
    if general is None:
        return None
    whole = bool(schema_of(source).group) or source.must_fit
    chosen = source.decontam.model_dump(exclude_none=True) if source.decontam else {}
    action = chosen.pop("policy", general.policy) or ("drop" if whole else "excise")
    if action == "none":
        return None
    from decontam.policy import Policy

    keys = ("margin_words", "threshold", "boilerplate")
    return Policy(action=action, **({k: getattr(general, k) for k in keys} | chosen))


class BlockDecontaminator:
    """Compares the documents of one source with the benchmarks, block by block."""

    def __init__(self, spec: DecontamSpec) -> None:
        from decontam.policy import Decontaminator

        self._spec = spec
        index = load_index(spec.index)
        if index.header["digest"] != spec.index_digest:
            raise UserError(
                f"decontam.index: {spec.index}: not the index that this build began with; put it "
                "back, or build into another --output"
            )
        self._texts = BenchmarkTexts(index)
        self._decontaminator = Decontaminator(index, spec.policy)

    def clean(self, texts: Sequence[Text]) -> Decontaminated:
        """Drop, cut or keep each of the documents."""
        counts: Counter[str] = Counter()
        kept: list[Text] = []
        dropped: list[Dropped] = []
        overlaps: list[dict[str, Any]] = []
        to_check: list[Text] = []
        for text in texts:
            if (group := text.document.group) in self._spec.dropped_groups:
                why = f"{group}: {self._spec.dropped_groups[group]}"[:_EVIDENCE_CHARACTERS]
                dropped.append(text.dropped(CONTAMINATED_TASK, why))
                counts.update(task_documents=1, task_bytes=len(text.utf8))
            else:
                to_check.append(text)
        verdicts = self._decontaminator.check([t.utf8 for t in to_check]) if to_check else []
        for text, verdict in zip(to_check, verdicts, strict=True):
            pieces = cut(text, verdict.kept)
            kept += pieces
            if not pieces:
                dropped.append(text.dropped(CONTAMINATED, describe(text, verdict.overlaps)))
            overlaps += self._rows(text, verdict)
            counts.update(count_document(text, verdict))
        return Decontaminated(kept, dropped, overlaps, counts)

    def _rows(self, text: Text, verdict: "Verdict") -> Iterator[dict[str, Any]]:
        document = text.document
        place = {"file": document.file, "line": document.line, "offset": document.offset}
        for overlap in verdict.overlaps:
            yield {
                "uid": text.uid,
                "origin": document.origin,
                "decision": _decision(overlap, verdict),
                **describe_overlap(text.utf8, overlap, self._texts.of(overlap)),
                **place,
            }


def cut(text: Text, ranges: Sequence[tuple[int, int]]) -> list[Text]:
    """The pieces of a document that lie in byte ranges of its text, each a document of its own.

    A document that is kept whole stays as it is. A piece has the id of its own text, and the
    answers and control tokens that lie in it.
    """
    if list(ranges) == [(0, len(text.utf8))]:
        return [text]
    pieces: list[Text] = []
    n_characters = end_of_last = 0
    for number, (start, end) in enumerate(ranges, 1):
        n_characters += len(text.utf8[end_of_last:start].decode())
        utf8 = text.utf8[start:end]
        piece = utf8.decode()
        content = text.document.content.cut(n_characters, n_characters + len(piece))
        pieces.append(
            Text(
                text.document._replace(content=content),
                utf8,
                xxhash.xxh3_128_digest(utf8),
                f"piece {number} of {len(ranges)}: ",
            )
        )
        n_characters, end_of_last = n_characters + len(piece), end
    return pieces


def _decision(overlap: Overlap, verdict: "Verdict") -> str:
    """What became of a passage: it is still there only where one range holds all of it."""
    if not verdict.kept:
        return "dropped"
    whole = any(start <= overlap.start and overlap.end <= end for start, end in verdict.kept)
    return "kept" if whole else "cut"


def describe(text: Text, overlaps: Sequence[Overlap]) -> str:
    """The evidence for dropping a document: its longest overlap, boilerplate last."""
    o = max(overlaps, key=lambda o: (o.rule not in BOILERPLATE_RULES, o.n_words, -o.start))
    passage = text.utf8[o.start : o.end].decode()[:_PASSAGE_CHARACTERS]
    place = f"{o.scenario}/{o.split}/{o.instance} {o.part}"
    return f"{place[: _EVIDENCE_CHARACTERS - _PASSAGE_CHARACTERS - 2]}: {passage}"


def count_document(text: Text, verdict: "Verdict") -> dict[str, int]:
    """What is counted of one document: itself, and what was found and done.

    `touched` documents have an overlap, `boilerplate` ones only overlaps that are reported apart.
    """
    n = len(text.utf8)
    kept = sum(end - start for start, end in verdict.kept)
    touched = any(o.rule not in BOILERPLATE_RULES for o in verdict.overlaps)
    is_cut = bool(verdict.kept) and kept < n
    return {
        "documents": 1,
        "bytes": n,
        "touched": touched,
        "boilerplate": bool(verdict.overlaps) and not touched,
        "dropped": not verdict.kept,
        "cut": is_cut,
        "pieces": len(verdict.kept) if is_cut else 0,
        "bytes_removed": n - kept,
        "words": verdict.n_words,
        "words_removed": verdict.words_removed,
    }

"""What a pass over a source chooses among: its documents, or contexts of its examples."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.contexts import Frame, compose, subset_of
from pipelines.corpus import Corpus
from pipelines.mixing import keyed_hash
from pipelines.mixture import Mixture, Source
from pipelines.spans import tokens_holding

Int64 = npt.NDArray[np.int64]

_MOST_TRIED = 256


@dataclass(frozen=True, slots=True)
class Units:
    """U units of P pieces; a document is a unit of one piece."""

    key: list[bytes]
    """[U] what random numbers are drawn by."""

    first: Int64
    """[U + 1] first piece of each unit."""

    document: Int64
    """[P] index into the corpus."""

    begin: Int64
    """[P] first token of the document that is used."""

    take: Int64
    """[P] tokens of it that are used."""

    weighed: Int64
    """[P] tokens of these that count towards the quota."""

    n_tokens: Int64
    """[U] tokens that are accounted for where the unit is chosen: more than it takes where a
    sequence cannot hold the document."""

    def sum(self, of_pieces: Int64) -> Int64:
        """[U] a figure of pieces, added up."""
        total = np.concatenate([[0], np.cumsum(of_pieces)])
        return total[self.first[1:]] - total[self.first[:-1]]

    def take_units(self, units: Int64) -> "Units":
        """Some of the units, in their order."""
        n = self.first[units + 1] - self.first[units]
        first = np.concatenate([[0], np.cumsum(n)]).astype(np.int64)
        piece = np.repeat(self.first[units] - first[:-1], n) + np.arange(int(n.sum()))
        return Units(
            key=[self.key[i] for i in units.tolist()],
            first=first,
            document=self.document[piece],
            begin=self.begin[piece],
            take=self.take[piece],
            weighed=self.weighed[piece],
            n_tokens=self.n_tokens[units],
        )

    def followed_by(self, other: "Units") -> "Units":
        """These units and then others."""
        return Units(
            self.key + other.key,
            np.concatenate([self.first[:-1], other.first + self.first[-1]]),
            np.concatenate([self.document, other.document]),
            np.concatenate([self.begin, other.begin]),
            np.concatenate([self.take, other.take]),
            np.concatenate([self.weighed, other.weighed]),
            np.concatenate([self.n_tokens, other.n_tokens]),
        )


def usable_documents(corpus: Corpus, mixture: Mixture) -> Int64:
    """Which documents may be used: all but duplicates, unless they are kept."""
    keep = corpus.is_unique if mixture.duplicates == "drop" else np.ones(len(corpus.uid), np.bool_)
    return np.flatnonzero(keep)


def units_of(name: str, mixture: Mixture, corpus: Corpus, *, pass_: int) -> Units:
    """All units of one pass over a source."""
    source = mixture.sources[name]
    documents = usable_documents(corpus, mixture)
    uids = [corpus.uid[i] for i in documents.tolist()]
    if source.policy != "few_shot":
        return _documents(corpus, documents, uids, source, mixture)
    keys = keyed_hash(uids, seed=mixture.seed, source=name, purpose=f"examples {pass_}")
    contexts = compose(
        corpus, documents, keys, frame=_frame(mixture), seq_len=mixture.seq_len, pass_=pass_
    )
    weighed = _weighed(corpus, contexts.document, contexts.begin, contexts.take, source, mixture)
    total = np.concatenate([[0], np.cumsum(contexts.take)])
    n_tokens = total[contexts.first[1:]] - total[contexts.first[:-1]]
    return Units(
        contexts.key, contexts.first, contexts.document, contexts.begin, contexts.take, weighed,
        n_tokens,
    )  # fmt: skip


def _frame(mixture: Mixture) -> Frame:
    return Frame(int(mixture.tokenizer.bos), int(mixture.tokenizer.eos))


def _documents(
    corpus: Corpus, documents: Int64, uids: list[bytes], source: Source, mixture: Mixture
) -> Units:
    n_tokens = corpus.n_tokens[documents]
    take = np.minimum(n_tokens, mixture.seq_len) if source.policy == "pad" else n_tokens
    begin = np.zeros_like(take)
    weighed = _weighed(corpus, documents, begin, take, source, mixture)
    return Units(uids, np.arange(len(uids) + 1), documents, begin, take, weighed, n_tokens)


def _weighed(
    corpus: Corpus, document: Int64, begin: Int64, take: Int64, source: Source, mixture: Mixture
) -> Int64:
    """Tokens of pieces that count towards the quota."""
    if mixture.weight_by == "tokens" or source.loss == "all":
        return take
    return take - corpus.no_loss.take(document).clip(begin, begin + take).lengths()


def last_unit(
    name: str, units: Units, candidates: Int64, wanted: int, corpus: Corpus, mixture: Mixture
) -> tuple[int, Units]:
    """The unit that fills a quota, and what is used of it.

    That is the first candidate, but for contexts the first one with examples that hold exactly
    what is wanted, so that none has to be cut.
    """
    first = int(candidates[0])
    if mixture.sources[name].policy == "few_shot":
        for unit in candidates[:_MOST_TRIED].tolist():
            whole = units.take_units(np.array([unit]))
            if int(whole.weighed.sum()) == wanted:
                return unit, whole
            if fewer := _fewer_examples(whole, wanted, corpus, mixture):
                return unit, fewer
    return first, cut_unit(units, first, wanted, corpus)


def cut_unit(units: Units, unit: int, wanted: int, corpus: Corpus) -> Units:
    """One unit without its end, so that it has only `wanted` of its weighed tokens."""
    whole = units.take_units(np.array([unit]))
    if int(whole.weighed.sum()) == wanted:
        return whole
    before = np.cumsum(whole.weighed) - whole.weighed
    last = int(np.flatnonzero(before < wanted)[-1])
    left = wanted - int(before[last])
    take = whole.take[: last + 1].copy()
    take[last] = left
    if int(whole.weighed[last]) != int(whole.take[last]):
        spans = corpus.no_loss.take(whole.document[[last]])
        inside = spans.clip(whole.begin[[last]], whole.begin[[last]] + whole.take[[last]])
        pairs = list(zip(inside.start.tolist(), inside.end.tolist(), strict=True))
        take[last] = tokens_holding(left, int(whole.take[last]), pairs)
    weighed = np.append(whole.weighed[:last], left)
    columns = (whole.document[: last + 1], whole.begin[: last + 1], take, weighed)
    return Units(whole.key, np.array([0, last + 1]), *columns, whole.n_tokens)


def _fewer_examples(whole: Units, wanted: int, corpus: Corpus, mixture: Mixture) -> Units | None:
    """Examples of a context that hold exactly `wanted` weighed tokens with its frame."""
    frame = _frame(mixture)
    inner = whole.weighed.copy()
    by_tokens = bool((whole.weighed == whole.take).all())
    if by_tokens:  # else BOS and EOS carry no loss, and weigh nothing
        inner[0] -= frame.bos
        inner[-1] -= frame.eos
        wanted -= frame.bos + frame.eos
    header = corpus.header[whole.document] > 0
    examples = np.flatnonzero(~header)
    for headers in (np.flatnonzero(header), examples[:0]):
        left = wanted - int(inner[headers].sum())
        chosen = subset_of(inner[examples], left) if left > 0 else None
        if chosen is not None:
            kept = np.concatenate([headers, examples[chosen]])
            return _reframed(whole, kept, inner, frame, by_tokens=by_tokens)
    return None


def _reframed(whole: Units, kept: Int64, inner: Int64, frame: Frame, *, by_tokens: bool) -> Units:
    """One unit of some pieces of a context, with BOS and EOS where it now begins and ends."""
    n = len(whole.take)
    begin = np.full(n, frame.bos)
    take = whole.take.copy()
    take[0] -= frame.bos
    take[-1] -= frame.eos
    begin, take, weighed = begin[kept], take[kept], inner[kept].copy()
    begin[0] -= frame.bos
    take[0] += frame.bos
    take[-1] += frame.eos
    if by_tokens:
        weighed[0] += frame.bos
        weighed[-1] += frame.eos
    first = np.array([0, len(kept)])
    n_tokens = np.array([int(take.sum())])
    return Units(whole.key, first, whole.document[kept], begin, take, weighed, n_tokens)

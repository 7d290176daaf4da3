"""What decontamination finds of texts planted in a user's own corpus, and what it costs there.

Nothing is written: documents are chosen from the corpus, benchmark texts are put into copies of
them, and the index is searched for as in a scan or a build.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import xxhash

from decontam.grid import Grid
from decontam.index import Index
from decontam.plants import LENGTHS, Plant, make_plants
from decontam.policy import Decontaminator, Policy
from decontam.records import BOILERPLATE_RULES, DecontamError
from decontam.search import Found, Searcher

_CLASSES = (100, 1_000, 10_000, 100_000)  # words: length classes of documents end here
_HOSTS = 8  # documents of each length class that texts are planted in
_BATCH_BYTES = 1 << 22
_MISSES_SHOWN = 10
_LARGEST_HOST = 8 << 20


class Account(NamedTuple):
    """What became of documents that nothing was planted in."""

    documents: int = 0
    overlapping: int = 0
    dropped: int = 0
    cut: int = 0
    words: int = 0
    words_removed: int = 0


@dataclass
class Survey:
    """The corpus as it is: an account by length class, and documents to plant in."""

    accounts: dict[int, Account] = field(default_factory=dict[int, Account])
    hosts: dict[int, list[tuple[int, str]]] = field(default_factory=dict[int, list[Any]])
    """By length class, the documents without any overlap that have the greatest hashes."""

    def add(self, text: bytes, verdict: Any, seed: int) -> None:
        """One more document."""
        size = sum(verdict.n_words >= limit for limit in _CLASSES)
        touched = any(o.rule not in BOILERPLATE_RULES for o in verdict.overlaps)
        dropped = not verdict.kept
        cut = bool(verdict.words_removed) and not dropped
        new = Account(1, touched, dropped, cut, verdict.n_words, verdict.words_removed)
        old = self.accounts.get(size, Account())
        self.accounts[size] = Account(*(a + b for a, b in zip(old, new, strict=True)))
        if verdict.overlaps or not verdict.n_words or len(text) > _LARGEST_HOST:
            return
        hosts = self.hosts.setdefault(size, [])
        heapq.heappush(hosts, (xxhash.xxh3_64_intdigest(text, seed), text.decode()))
        if len(hosts) > _HOSTS:
            heapq.heappop(hosts)


def self_test(
    index: Index, texts: Iterable[bytes], policy: Policy, *, plants: int, seed: int
) -> Iterator[str]:
    """Lines of the report.

    Args:
        index: what is looked for.
        texts: the corpus, UTF-8 documents.
        policy: what a build would do.
        plants: items of each kind, length and position.
        seed: chooses documents and items; equal seeds give equal reports.

    Raises:
        DecontamError: there is no document to plant in.
    """
    survey = take_survey(index, texts, policy, seed)
    hosts = [text for size in sorted(survey.hosts) for _, text in sorted(survey.hosts[size])]
    if not hosts:
        raise DecontamError(
            "self-test: every document repeats benchmark text, or is empty; give a corpus with "
            "some that do not"
        )
    results = try_plants(index, make_plants(index, hosts, plants=plants, seed=seed))
    yield from recall_lines(results, index.n)
    yield ""
    yield from removal_lines(survey.accounts, policy)


def take_survey(index: Index, texts: Iterable[bytes], policy: Policy, seed: int) -> Survey:
    """Go through the corpus as it is."""
    survey = Survey()
    decontaminator = Decontaminator(index, policy)
    for batch in _batches(texts):
        for text, verdict in zip(batch, decontaminator.check(batch), strict=True):
            survey.add(text, verdict, seed)
    return survey


def _batches(texts: Iterable[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@dataclass
class Results:
    """Counts by (kind, group, outcome), and what was missed."""

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter[tuple[str, str, str]])
    missed: list[Plant] = field(default_factory=list[Plant])


def try_plants(index: Index, plants: Iterable[Plant]) -> Results:
    """Search every planted document."""
    results = Results()
    searcher = Searcher(index)
    waiting: list[Plant] = []
    size = 0

    def search() -> None:
        for planted, found in zip(waiting, searcher.search([p.text for p in waiting]), strict=True):
            outcome = outcome_of(planted, found)
            results.counts[planted.kind, planted.group, outcome] += 1
            if outcome == "missed" and planted.group in LENGTHS:
                results.missed.append(planted)

    for planted in plants:
        waiting.append(planted)
        size += len(planted.text)
        if size >= _BATCH_BYTES:
            search()
            waiting, size = [], 0
    search()
    return results


def outcome_of(planted: Plant, found: Found) -> Literal["found", "apart", "missed"]:
    """`apart`: found, and reported as boilerplate only."""

    def within(spans: Sequence[tuple[int, int]]) -> bool:
        return any(start < planted.end and planted.start < end for start, end in spans)

    return "found" if within(found.spans) else "apart" if within(found.boilerplate) else "missed"


def recall_lines(results: Results, n: int) -> Iterator[str]:
    """The table of what was found of what was planted."""
    kinds = dict.fromkeys(kind for kind, _, _ in results.counts)
    rows = [
        (kind, *(_cell(results.counts, kind, length) for length in LENGTHS))
        for kind in kinds
        if any((kind, length, o) in results.counts for length in LENGTHS for o in _OUTCOMES)
    ]
    rows.append(("recall", *(_recall(results.counts, length) for length in LENGTHS)))
    header = ("planted", f"{n} words or more", "shorter, whole", "with an answer")
    yield str(Grid("Found of benchmark texts planted in this corpus", header, "<>>>", rows))
    for planted in results.missed[:_MISSES_SHOWN]:
        yield f"missed: {planted.kind}, {planted.where}"
    if (more := len(results.missed) - _MISSES_SHOWN) > 0:
        yield f"and {more:,} more"
    apart = sum(n for (_, g, o), n in results.counts.items() if o == "apart" and g in LENGTHS)
    if apart:
        yield f"{apart:,} of them are not counted: all of their n-grams are boilerplate"
    yield "\nby design:"
    yield from _design_lines(results.counts)


_OUTCOMES = ("found", "apart", "missed")


def _sums(counts: Mapping[tuple[str, str, str], int], kind: str, group: str) -> list[int]:
    return [counts.get((kind, group, outcome), 0) for outcome in _OUTCOMES]


def _cell(counts: Mapping[tuple[str, str, str], int], kind: str, group: str) -> str:
    found, _, missed = _sums(counts, kind, group)
    return f"{found:,} of {found + missed:,}" if found + missed else "-"


def _recall(counts: Mapping[tuple[str, str, str], int], group: str) -> str:
    found = sum(n for (_, g, o), n in counts.items() if g == group and o == "found")
    missed = sum(n for (_, g, o), n in counts.items() if g == group and o == "missed")
    return f"{found / (found + missed):.2%}" if found + missed else "-"


def _design_lines(counts: Mapping[tuple[str, str, str], int]) -> Iterator[str]:
    found, apart, missed = _sums(counts, "answer only", "answer")
    if total := found + apart + missed:
        yield (
            f"  answer only: {found:,} of {total:,} found; a short answer without its question is "
            "ordinary text"
        )
    found, apart, missed = _sums(counts, "numbers only", "numbers")
    if total := found + apart + missed:
        yield (
            f"  numbers only: {apart:,} of {total:,} found and reported apart, {found:,} counted; "
            "figures in a row are boilerplate"
        )
    else:
        yield "  numbers only: this benchmark has no n-gram of figures alone"


def removal_lines(accounts: Mapping[int, Account], policy: Policy) -> Iterator[str]:
    """The table of what a policy removes of the corpus as it is."""
    rows: list[tuple[str, ...]] = []
    for size in sorted(accounts):
        rows.append((_class_name(size), *_removal_cells(accounts[size])))
    if len(accounts) > 1:
        total = Account(*(sum(column) for column in zip(*accounts.values(), strict=True)))
        rows.append(("all", *_removal_cells(total)))
    header = ("words", "documents", "overlapping", "dropped", "cut", "words in all", "removed",
              "share")  # fmt: skip
    caption = f"Removed of this corpus with nothing planted (`policy: {policy.action}`)"
    yield str(Grid(caption, header, "<>>>>>>>", rows))
    yield (
        "Whatever is removed here is benchmark text that the corpus holds, or a false alarm: a "
        "scan\nwith --report shows each passage beside its benchmark text"
    )


def _removal_cells(account: Account) -> Iterator[str]:
    yield from (f"{n:,}" for n in account)
    yield f"{account.words_removed / max(account.words, 1):.3%}"


def _class_name(size: int) -> str:
    if size == 0:
        return f"under {_CLASSES[0]:,}"
    if size == len(_CLASSES):
        return f"{_CLASSES[-1]:,} and more"
    return f"{_CLASSES[size - 1]:,} to {_CLASSES[size] - 1:,}"

"""Results of all tasks → the published files and the account."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines import files
from pipelines.errors import UserError
from pipelines.synthesis.prompts import prompt_digests
from pipelines.synthesis.settings import Settings, Transport
from pipelines.synthesis.stages import read_rows, result_path, write_rows

if TYPE_CHECKING:
    from decontam.normalize import Normalizer

KEPT, DROPPED, REPORT = "qa.jsonl.zst", "dropped.jsonl.zst", "report.json"

_BANDS, _PERMUTATIONS, _SHINGLE = 32, 128, 2


def read_results(work: str, n_tasks: int) -> Iterator[dict[str, Any]]:
    """The results of all documents, in the order of the input."""
    for task in range(n_tasks):
        yield from read_rows(result_path(work, task))


def near_duplicates(questions: Mapping[str, str], *, threshold: float) -> dict[str, str]:
    """Questions that are too much like one of another document that is kept.

    Of two near duplicates the one with the lower uid is kept; one that is dropped drops no other.
    A question without words is like none.

    Args:
        questions: by the uid of the document, in hexadecimal digits.
        threshold: least share of equal positions of their MinHash signatures.

    Returns:
        For each that is dropped, the uid of the one that is kept.
    """
    if len(questions) < 2:
        return {}
    from decontam.minhash import is_empty
    from decontam.sketches import sketches_of_texts
    from pipelines.near_duplicates import choose

    uids = sorted(questions)
    texts = [questions[uid].encode() for uid in uids]
    signatures = sketches_of_texts(
        texts, _normalizer(), shingle=_SHINGLE, one_in=1, permutations=_PERMUTATIONS
    ).signatures
    words = np.flatnonzero(~is_empty(signatures))
    numbers = np.frombuffer(bytes.fromhex("".join(uids)), np.uint8).reshape(-1, 16)
    choice = choose(
        signatures[words], np.zeros(len(words), np.int64), numbers[words],
        threshold=threshold, bands=_BANDS,
    )  # fmt: skip
    kept = words[choice.kept]
    return {uids[i]: uids[k] for i, k in zip(words.tolist(), kept.tolist(), strict=True) if i != k}


@cache
def _normalizer() -> "Normalizer":
    """Made once: its tables take a second."""
    from decontam.normalize import Normalizer

    return Normalizer.of("default")


def publish(
    work: str, output: str, n_tasks: int, settings: Settings
) -> tuple[Counter[str], Counter[str]]:
    """Write the kept and the dropped records; returns sums, and the dropped by reason."""
    questions = {
        row["uid"]: row["question"]
        for row in read_results(work, n_tasks)
        if "unfinished" not in row and "reason" not in row
    }
    near = near_duplicates(questions, threshold=settings.near_threshold)
    sums: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for row in read_results(work, n_tasks):
        _count(row, near, sums, reasons)
    results = read_results(work, n_tasks)
    write_rows(files.join(output, DROPPED), _dropped_rows(results, near))
    results = read_results(work, n_tasks)
    write_rows(files.join(output, KEPT), _kept_rows(results, near))
    return sums, reasons


def _kept_rows(rows: Iterator[dict[str, Any]], near: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for row in rows:
        if not {"unfinished", "reason"} & row.keys() and row["uid"] not in near:
            yield row


def _dropped_rows(
    rows: Iterator[dict[str, Any]], near: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    for row in rows:
        if row["uid"] in near:
            rest = {name: value for name, value in row.items() if name != "document"}
            yield {**rest, "reason": "near_duplicate", "evidence": near[row["uid"]]}
        elif "reason" in row:
            yield row


def _count(
    row: dict[str, Any], near: Mapping[str, str], sums: Counter[str], reasons: Counter[str]
) -> None:
    if "unfinished" in row:
        sums["unfinished"] += 1
        return
    reason = "near_duplicate" if row["uid"] in near else row.get("reason")
    if reason is None:
        sums["kept"] += 1
    else:
        reasons[reason] += 1
    verdict = row["verdict"] or {}
    sums["asked"] += row["generation"] is not None
    sums["parsed"] += row["question"] is not None
    sums["judged"] += bool(verdict)
    sums["critique_right"] += verdict.get("critique") == "right"
    sums["in_chunk"] += verdict.get("in_chunk") is True
    sums["in_question"] += verdict.get("in_question") is True
    sums["round_trip_agrees"] += verdict.get("round_trip") is True
    sums["leaked"] += verdict.get("leaked") is True
    for kind in ("normal", "short"):
        sums[f"kind_{kind}"] += row["kind"] == kind
    for name in ("requests", "tokens_in", "tokens_out"):
        sums[name] += row[name]


def account(
    chosen: int,
    reading: Mapping[str, int],
    sums: Mapping[str, int],
    reasons: Mapping[str, int],
    settings: Settings,
    transport: Transport,
) -> dict[str, Any]:
    """The report. Its sums close: chosen = kept + dropped + unfinished.

    Raises:
        ArithmeticError: they do not; a defect of the program.
    """
    dropped = sum(reasons.values())
    if chosen != sums["kept"] + dropped + sums["unfinished"]:
        raise ArithmeticError(f"{chosen} documents chosen, but {dict(sums)} and {dict(reasons)}")
    return {
        "settings": settings.describe(),
        "prompts": prompt_digests(),
        "reading": dict(reading),
        "documents": chosen,
        "kept": sums["kept"],
        "dropped": dict(reasons),
        "unfinished": sums["unfinished"],
        "complete": sums["unfinished"] == 0,
        "counts": {name: sums[name] for name in (
            "asked", "parsed", "judged", "critique_right", "in_chunk", "in_question",
            "round_trip_agrees", "leaked", "kind_normal", "kind_short",
        )},
        "requests": sums["requests"],
        "tokens_in": sums["tokens_in"],
        "tokens_out": sums["tokens_out"],
        "cost": round(transport.cost(sums["tokens_in"], sums["tokens_out"]), 6),
        "price_per_million": {"in": transport.price_in, "out": transport.price_out},
    }  # fmt: skip


def refuse_unfinished(rows: Sequence[Mapping[str, Any]], chosen: int) -> None:
    """Stop where the server failed; nothing is published then.

    Raises:
        UserError: documents got no answer, or the server refused most requests.
    """
    failed = [row for row in rows if row.get("unfinished") == "failed"]
    if failed:
        raise UserError(
            f"{len(failed):,} of {chosen:,} documents got no answer from the server, e.g. "
            f"{failed[0]['uid']}: {failed[0]['evidence']}; nothing is published yet, every answer "
            "that came is kept: the same command goes on"
        )
    refused = [row for row in rows if row.get("reason") == "request_refused"]
    if 2 * len(refused) > chosen:
        raise UserError(
            f"the server refused requests for {len(refused):,} of {chosen:,} documents, e.g. "
            f"{refused[0]['uid']}: {refused[0]['evidence']}; is --chunk-words too large for the "
            "model? nothing is published"
        )

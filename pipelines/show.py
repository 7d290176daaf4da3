"""Look inside a finished data set.

python -m pipelines.show data/phase1                      what it holds
python -m pipelines.show data/phase1 --sequence 42        one sequence, decoded
python -m pipelines.show data/phase1 --document UID       where a document went
python -m pipelines.show data/phase1 --verify             check every digest
"""

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.audit import SourceAudit
from pipelines.clusters import cluster_lines
from pipelines.errors import UserError
from pipelines.marks import MARKS, marked_text, template_of
from pipelines.report import (
    audit_table,
    decontam_table,
    dropped_table,
    near_table,
    plural,
    size,
)
from pipelines.shards import (
    DOCUMENTS,
    DROPPED,
    NEAR_DUPLICATES,
    OVERLAPS,
    OVERLAPS_PAGE,
    ShardedDataset,
    shard_name,
)
from pipelines.tokenizer_file import kept_tokenizer, reference

_compute = cast(Any, pc)  # made at import time, which type checkers cannot see
_UID_DIGITS = 32
_MOST_DOCUMENTS = 50


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status (1 where --verify finds damage)."""
    args = parser().parse_args(argv)
    try:
        status = _run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyError, TypeError) as error:
        print(f"error: {args.folder}: not as docs/formats.md has it: {error!r}", file=sys.stderr)
        return 2
    except (UserError, OSError, ValueError, IndexError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return status


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(
        prog="python -m pipelines.show",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("folder", metavar="DIR", help="a finished data set on a local disk")
    what = command.add_mutually_exclusive_group()
    what.add_argument("--sequence", type=int, metavar="N", help="decode sequence N, from 0")
    what.add_argument("--document", metavar="UID", help="32 hexadecimal digits, or their beginning")
    what.add_argument("--verify", action="store_true", help="check every digest")
    command.add_argument("--full", action="store_true", help="with --sequence: the whole text")
    return command


def _run(args: argparse.Namespace) -> int:
    dataset = ShardedDataset(args.folder)
    if args.verify:
        return _verify(dataset)
    if args.sequence is not None:
        lines = sequence_lines(dataset, args.sequence, full=args.full)
    elif args.document is not None:
        lines = document_lines(dataset, args.document)
    else:
        lines = summary_lines(dataset)
    for line in lines:
        print(line)
    return 0


def _verify(dataset: ShardedDataset) -> int:
    sound = True
    for fault in dataset.verify():
        print(fault, flush=True)
        sound = False
    if sound:
        shards = plural(len(dataset.manifest["shards"]), "shard")
        print(f"{shards}, {plural(len(dataset), 'sequence')}: every digest holds")
    return int(not sound)


def summary_lines(dataset: ShardedDataset) -> Iterator[str]:
    """What the data set holds and how it came about."""
    manifest = dataset.manifest
    totals, order, tokenizer = (manifest[key] for key in ("totals", "order", "tokenizer"))
    places = len(dataset) * dataset.seq_len
    yield f"{manifest['name']}  {manifest['dataset_id']}"
    yield (
        f"{totals['tokens']:,} tokens ({totals['loss_tokens']:,} with loss) in {len(dataset):,} "
        f"sequences of {dataset.seq_len:,}; {totals['segments']:,} segments, "
        f"{totals['padding'] / max(1, places):.3%} padding; "
        f"{plural(len(manifest['shards']), 'shard')}, {size(places * dataset.dtype.itemsize)}"
    )
    yield (
        f"{tokenizer['file']}: {tokenizer['vocab_size']:,} ids as {manifest['token_type']}, "
        f"{_frame_token(tokenizer, 'bos')}, {_frame_token(tokenizer, 'eos')}"
    )
    yield (
        f"every beginning of the data set keeps the shares to within "
        f"{order['max_deviation_tokens']:,.0f} tokens; of {order['global_batch']:,} ranks, the "
        f"busiest does {order['rank_imbalance_mean'] - 1:.1%} more attention work than the mean"
    )
    accounts = [
        SourceAudit(**{k: v for k, v in s.items() if k != "tokens_left_over"})
        for s in manifest["sources"]
    ]
    yield f"\n{audit_table(accounts, seq_len=dataset.seq_len)}"
    if dropped := dropped_table(accounts):
        yield f"\n{dropped}"
    if compared := decontam_table(accounts):
        yield f"\n{compared}"
        yield f"every overlap: {OVERLAPS}; side by side: {OVERLAPS_PAGE}"
    if compared := near_table(accounts):
        yield f"\n{compared}"
        yield f"every cluster: {NEAR_DUPLICATES}"


def _frame_token(about: dict[str, Any], role: str) -> str:
    """BOS or EOS with its text, id and who named it."""
    if about[f"{role}_id"] is None:
        return f"no {role.upper()}"
    if f"{role}_token" not in about:  # data sets made before these were written down
        return f"{role.upper()} {about[f'{role}_id']}"
    token, token_id, origin = (about[f"{role}_{key}"] for key in ("token", "id", "from"))
    return f"{role.upper()} {token} ({token_id}; {origin})"


def sequence_lines(dataset: ShardedDataset, position: int, *, full: bool) -> Iterator[str]:
    """One sequence: its segments, where each comes from, and its text."""
    sequence = dataset.sequence(position)
    shard, row = dataset.locate(position)
    about = dataset.manifest["tokenizer"]
    content = (dataset.folder / about["file"]).read_bytes()
    vocabulary = reference(kept_tokenizer(content, about))
    decode = vocabulary.decode
    controls = {i: token for token in vocabulary.specials if (i := vocabulary.special_id(token))}
    n_loss = sequence.n_real - sum(end - start for start, end in sequence.no_loss)
    yield (
        f"sequence {position:,} (row {row:,} of {shard_name(shard)}.tok): {sequence.source}"
        f"{template_of(dataset, sequence.source)}, pass {sequence.pass_ + 1}, "
        f"{plural(len(sequence.segments), 'segment')}, "
        f"{sequence.n_real:,} tokens ({n_loss:,} with loss), "
        f"{dataset.seq_len - sequence.n_real:,} padding"
    )
    source = dataset.sources.index(sequence.source)
    uids = {segment["document"] for segment in sequence.segments}
    lineage = {d["uid"]: d for d in _documents(dataset, uids) if d["source"] == source}
    if sequence.no_loss:
        yield f"only what stands in {MARKS[0]}…{MARKS[1]} carries loss"
    for segment in sequence.segments:
        yield f"\n{_segment_title(segment, lineage.get(segment['document']))}"
        text = marked_text(sequence, segment, decode, controls)
        yield text if full else f"  {_snippet(text)}"


def _snippet(text: str) -> str:
    """The beginning and the end, on one line."""
    return repr(text) if len(text) <= 200 else f"{text[:120]!r} … {text[-60:]!r}"


def _segment_title(segment: dict[str, Any], document: dict[str, Any] | None) -> str:
    start, length = segment["start"], segment["length"]
    cuts = [name for name in ("continues", "head_cut", "tail_cut") if segment[name]]
    title = f"[{start:,}, {start + length:,})  {segment['document'].hex()}  tokens {_span(segment)}"
    if document:
        title += f" of {document['n_tokens']:,}  {_place(document)}"
    return title + (f"  ({', '.join(cuts)})" if cuts else "")


def _span(segment: dict[str, Any]) -> str:
    """Which tokens of its document a segment holds."""
    return f"[{segment['offset']:,}, {segment['offset'] + segment['length']:,})"


def _place(document: dict[str, Any]) -> str:
    return f"{document['file']}:{document['line']}  {document['origin']}".rstrip()


def document_lines(dataset: ShardedDataset, prefix: str) -> Iterator[str]:
    """Where a document came from and every place it went to.

    Raises:
        UserError: no document has an id that begins like this, or too many have.
    """
    prefix = prefix.lower()
    if not re.fullmatch(f"[0-9a-f]{{1,{_UID_DIGITS}}}", prefix):
        raise UserError(
            f"--document {prefix}: an id is {_UID_DIGITS} hexadecimal digits, or their beginning"
        )
    uids = _uids(_lineage(dataset), prefix)
    compared = [*_compared_lines(dataset, prefix), *cluster_lines(dataset.folder, prefix)]
    if not uids and not compared:
        raise UserError(
            f"--document {prefix}: no kept document has this id; {DROPPED} lists those dropped"
        )
    if len(uids) > _MOST_DOCUMENTS:
        raise UserError(f"--document {prefix}: {len(uids):,} ids begin so; give more digits")
    found = sorted(_documents(dataset, uids), key=lambda d: (d["uid"], d["source"]))
    for (uid, source), documents in groupby(found, lambda d: (d["uid"], d["source"])):
        for d in documents:
            yield f"{uid.hex()}  {d['n_tokens']:,} tokens of {dataset.sources[source]}, {_place(d)}"
        places = list(_places(dataset, uid, source))
        yield from places or ["  in no sequence: no pass chose it"]
    yield from compared


def _uids(table: pa.Table, prefix: str) -> set[bytes]:
    """Ids in a table that begin with some hexadecimal digits."""
    uids = _compute.unique(table["uid"]).cast(pa.binary())
    whole_bytes = bytes.fromhex(prefix[: len(prefix) // 2 * 2])
    near = uids.filter(_compute.starts_with(uids, whole_bytes)).to_pylist()
    return {uid for uid in near if uid.hex().startswith(prefix)}


def _compared_lines(dataset: ShardedDataset, prefix: str) -> Iterator[str]:
    """The overlaps of documents as they were before anything was cut, and the pieces left."""
    if OVERLAPS not in dataset.manifest["files"]:
        return
    overlaps = _table(dataset, OVERLAPS)
    uids = sorted(_uids(overlaps, prefix))[:_MOST_DOCUMENTS]
    found = overlaps.filter(
        _compute.is_in(overlaps["uid"], value_set=pa.array(uids, pa.binary(16)))
    )
    place = ("uid", "source", "file", "line")
    rows = sorted(found.to_pylist(), key=lambda row: [row[name] for name in place])
    for (uid, source, file, line), group in groupby(rows, lambda row: [row[n] for n in place]):
        yield f"{uid.hex()}  as read, {source}, {file}:{line}: overlaps with benchmarks"
        for o in group:
            instance = f"{o['scenario']}/{o['split']}/{o['instance']} {o['part']}"
            words = f"{plural(o['n_words'], 'word')} at byte {o['start']:,}"
            yield f"  {o['decision']}: {words}, {instance} ({o['rule']}): {_snippet(o['passage'])}"
        for piece in _pieces(dataset, source, file, line):
            if piece["uid"] != uid:
                yield f"  piece: {piece['uid'].hex()}  {piece['n_tokens']:,} tokens"


def _pieces(dataset: ShardedDataset, source: str, file: str, line: int) -> list[dict[str, Any]]:
    """Kept documents that were read at a place."""
    lineage = _lineage(dataset)
    here = _compute.and_(
        _compute.equal(lineage["source"], dataset.sources.index(source)),
        _compute.equal(lineage["line"], line),
    )
    return [d for d in lineage.filter(here).to_pylist() if d["file"] == file]


def _places(dataset: ShardedDataset, uid: bytes, source: int) -> Iterator[str]:
    first = 0
    for shard in range(len(dataset.manifest["shards"])):
        meta = dataset.meta(shard)
        rows = _compute.list_parent_indices(meta["segments"])
        segments = _compute.list_flatten(meta["segments"])
        documents = _compute.struct_field(segments, "document")
        hits = _compute.and_(
            _compute.equal(documents, pa.scalar(uid, pa.binary(16))),
            _compute.equal(meta["source"].take(rows), source),
        )
        found = zip(rows.filter(hits).to_pylist(), segments.filter(hits).to_pylist(), strict=True)
        for row, segment in found:
            start = segment["start"]
            yield (
                f"  sequence {first + row:,}, pass {meta['pass'][row].as_py() + 1}, "
                f"positions [{start:,}, {start + segment['length']:,}): tokens {_span(segment)}"
            )
        first += len(meta)


def _documents(dataset: ShardedDataset, uids: set[bytes]) -> list[dict[str, Any]]:
    lineage = _lineage(dataset)
    wanted = _compute.is_in(lineage["uid"], value_set=pa.array(sorted(uids), pa.binary(16)))
    return lineage.filter(wanted).to_pylist()


def _lineage(dataset: ShardedDataset) -> pa.Table:
    return _table(dataset, DOCUMENTS)


def _table(dataset: ShardedDataset, name: str) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(dataset.folder / name))).read_all()


if __name__ == "__main__":
    sys.exit(main())

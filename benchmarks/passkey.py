"""A corpus that teaches a small model to look keys up in its memory, and its mixture.

Documents of about 2,000 tokens hide numbers in filler or in the sources of the standard library,
and ask for them at their end. benchmarks/README.md says what is done with it.
"""

import argparse
import json
import random
import sysconfig
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

from trainer.passkey import FILLER, prompt

NOUNS = [
    "door",
    "safe",
    "gate",
    "room",
    "box",
    "car",
    "desk",
    "phone",
    "house",
    "locker",
    "server",
    "archive",
    "garden",
    "boat",
]
COLORS = [
    "blue",
    "red",
    "green",
    "black",
    "white",
    "old",
    "new",
    "small",
    "large",
    "first",
    "second",
    "last",
    "secret",
]

MIXTURE = """name: passkey
tokens: {tokens}
seq_len: {seq_len}
tokenizer: {{path: {tokenizer}, bos: false, eos: true}}
order: {{global_batch: 64, window: 8}}
sources:
  passkey:
    weight: 1
    path: documents.jsonl
    schema: text
    policy: stream
    stream_sequences: 4
    max_passes: 2
"""


def sources() -> list[str]:
    """Pieces of about 400 characters of the standard library."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py"))
    texts = (file.read_text("utf-8", errors="ignore") for file in files)
    return [text[i : i + 400] for text in texts for i in range(0, len(text) - 400, 400)]


def asked_once(rng: random.Random) -> str:
    """The prompt of the evaluation, with its answer."""
    key = str(rng.randrange(10_000, 100_000))
    before = rng.randrange(0, 260)
    return f"{prompt(key, before=before, after=rng.randrange(260 - before, 280 - before))} {key}."


def asked_often(rng: random.Random, pieces: list[str]) -> str:
    """Several keys, each with a name, in code or filler; then questions for all of them."""
    names = rng.sample([f"{color} {noun}" for color in COLORS for noun in NOUNS], rng.randint(4, 8))
    keys = {name: str(rng.randrange(10_000, 100_000)) for name in names}
    if rng.random() < 0.5:
        start = rng.randrange(len(pieces))
        parts = list(islice(cycle(pieces), start, start + 12))
    else:
        parts = [" ".join(islice(cycle(FILLER.split("|")), 20)) for _ in range(12)]
    for name, key in keys.items():
        line = f"The pass key of the {name} is {key}. Remember it. {key} is the pass key."
        parts.insert(rng.randint(0, len(parts)), line)
    rng.shuffle(names)
    asked = [
        f"What is the pass key of the {name}? The pass key of the {name} is {keys[name]}."
        for name in names
    ]
    return "\n".join([*parts, *asked])


def documents(count: int, seed: int) -> Iterator[str]:
    """So many documents; half of them ask once."""
    rng, pieces = random.Random(seed), sources()
    for _ in range(count):
        yield asked_once(rng) if rng.random() < 0.5 else asked_often(rng, pieces)


def main() -> None:
    """Write documents.jsonl and mixture.yaml."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--output", type=Path, required=True)
    made.add_argument("--tokenizer", required=True, help="tokenizer file of the model")
    made.add_argument("--documents", type=int, default=12_000)
    made.add_argument("--tokens", type=int, default=16_777_216)
    made.add_argument("--seq-len", type=int, default=512)
    options = made.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with (options.output / "documents.jsonl").open("w", encoding="utf-8") as file:
        for text in documents(options.documents, seed=0):
            file.write(json.dumps({"text": text}) + "\n")
    tokenizer = Path(options.tokenizer).resolve()
    mixture = MIXTURE.format(tokens=options.tokens, seq_len=options.seq_len, tokenizer=tokenizer)
    (options.output / "mixture.yaml").write_text(mixture)


if __name__ == "__main__":
    main()

"""Shared fixtures: a small real tokenizer, generated corpora, and builds without Beam."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml

from pipelines.audit import SourceAudit
from pipelines.job import assemble, claim_output
from pipelines.mixture_file import load_mixture
from pipelines.progress import Reporter
from pipelines.run import build
from pipelines.shards import ShardedDataset
from pipelines.stages import Stage
from pipelines.tokenizer import load_tokenizer
from pipelines.tokenizer_file import fetch_tokenizer

# Of property tests neither examples nor their making is timed: a busy machine fails no test.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

WORDS = (
    "the of and to in a is that for it was on are as with his they at be this from have or by one "
    "had not but what all were when we there can an your which their said if do will each about "
    "how up out them then she many some so these would other into has more her two like him see "
    "time could no make than first been its who now people my made over did down only way find use"
).split()


def prose(rng: random.Random, n_words: int) -> str:
    """Words, sentences and paragraphs."""
    words = []
    for _ in range(n_words):
        word = rng.choice(WORDS) if rng.random() < 0.8 else "".join(rng.choices("aeioustrnl", k=7))
        words.append(word + rng.choice(["", "", "", "", ",", ".", ".\n\n"]))
    return " ".join(words)


@pytest.fixture(scope="session")
def tokenizer_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece BPE model of 600 pieces with byte fallback, as LLaMA's is built."""
    import sentencepiece

    rng = random.Random(1)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(prose(rng, 12) for _ in range(2000)),
        model_writer=model,
        vocab_size=600,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.9999,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


def write_jsonl(path: Path, records: Iterable[Any]) -> Path:
    """Records as JSON lines; bytes go in as they are, one line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def documents(seed: int, n: int, *, low: int = 40, high: int = 900) -> list[dict[str, str]]:
    """`n` records with text of `low` to `high` words, a few much longer."""
    rng = random.Random(seed)
    lengths = [rng.randint(low, high) * (6 if rng.random() < 0.05 else 1) for _ in range(n)]
    return [{"text": prose(rng, words), "id": f"{seed}-{i}"} for i, words in enumerate(lengths)]


def write_index(path: Path, inputs: Sequence[str], *, n: int = 10, scenario: str = "exam") -> Path:
    """A benchmark index of one scenario whose instances have these inputs, and `yes` to answer."""
    from decontam.index_build import build_index
    from decontam.normalize import Normalizer
    from decontam.records import Instance

    instances = [
        Instance(scenario, "", "test", f"id{i}", text, ("yes",), (True,))
        for i, text in enumerate(inputs)
    ]
    coverage = [{"scenario": scenario, "splits": {"test": len(inputs)}, "where": "a test"}]
    normalizer = Normalizer.of("default")
    build_index(instances, n=n, normalizer=normalizer, coverage=coverage).save(str(path))
    return path


def plain_loop(stage: type[Stage], work: str, workers: int) -> None:
    """Run a stage without Beam."""
    worker = stage(work)
    for task in stage.tasks(work):
        worker.run(task)


@dataclass
class Built:
    """A finished build."""

    dataset: ShardedDataset
    accounts: list[SourceAudit]

    def files(self) -> dict[str, bytes]:
        """Every file of the data set by name."""
        return {p.name: p.read_bytes() for p in self.dataset.folder.iterdir() if p.is_file()}

    def shard_bytes(self) -> dict[str, bytes]:
        """The shards alone."""
        return {n: b for n, b in self.files().items() if n.endswith((".tok", ".meta.arrow"))}


@dataclass
class Builder:
    """Writes a mixture file and builds it, without Beam."""

    folder: Path
    tokenizer: Path

    def mixture(self, sources: dict[str, Any], **values: Any) -> Path:
        """A mixture file; small defaults."""
        recipe = {
            "name": "test",
            "tokens": 20_000,
            "seq_len": 256,
            "tokenizer": {"path": str(self.tokenizer)},
            "order": {"global_batch": 4, "window": 2},
            "sequences_per_shard": 16,
            "sources": sources,
        } | values
        path = self.folder / "mixture.yaml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        return path

    def build(
        self,
        sources: dict[str, Any],
        *,
        output: str = "out",
        overrides: Sequence[str] = (),
        workers: int = 1,
        max_bad: float = 1.0,
        run_stage: Any = plain_loop,
        **values: Any,
    ) -> Built:
        """Build into `folder/output`; the token store is `folder/store`."""
        mixture = load_mixture(str(self.mixture(sources, **values)), overrides)
        file = fetch_tokenizer(mixture.tokenizer)
        out = str(self.folder / output)
        store = str(self.folder / "store")
        job = assemble(mixture, file, data_root=str(self.folder), store=store, output=out)
        claim_output(job)
        accounts = build(
            job,
            load_tokenizer(file),
            run_stage=run_stage,
            report=Reporter(quiet=True, log_json=False),
            max_bad=max_bad,
            workers=workers,
        )
        return Built(ShardedDataset(out), accounts)


@pytest.fixture
def builder(tmp_path: Path, tokenizer_model: Path) -> Builder:
    """A builder in an empty folder."""
    return Builder(tmp_path, tokenizer_model)


@pytest.fixture
def shared_data() -> Path:
    """Real corpora in their published schemas, where a checkout has them."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real corpora (shared/data beside the checkout) are not here")
    return SHARED_DATA

"""Every shipped mixture on real text: shares, layout, what carries loss."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import plain_loop
from loss_runs import learned, runs_of_tokens

from benchmarks.mixtures import overrides
from pipelines.audit import SourceAudit
from pipelines.job import assemble, claim_output
from pipelines.mixture_file import load_mixture
from pipelines.progress import Reporter
from pipelines.run import build
from pipelines.shards import Sequence, ShardedDataset
from pipelines.tokenizer import Tokenizer, load_tokenizer
from pipelines.tokenizer_file import fetch_tokenizer

MIXTURES = Path(__file__).resolve().parents[1] / "mixtures"
BUDGETS = {"phase2": 655_360, "llama2_long": 327_680, "longllama_instruct": 204_800,
           "longllama_pretrain": 409_600, "booksum": 327_680, "multi_document_qa": 327_680,
           "ul2": 393_216}  # fmt: skip

FEWER = {
    "phase2": ["sources.natural_instructions.path=ni/v2_other/task13*",
               "sources.book.path=books/rp_book_neardup_of_train.jsonl.zst"],
    "multi_document_qa": ["sources.natural_questions.multi_document.documents=[10, 30]"],
    "ul2": ["sources.dialogues.path=books/rp_book_neardup_of_train.jsonl.zst",
            "sources.denoisers.path=books/rp_book_heldout_pg19like.jsonl.zst",
            "sources.denoisers.sample=0.1"],
}  # fmt: skip
"""Less input than the benchmark takes."""


class Made:
    """A finished build of a shipped mixture."""

    def __init__(self, name: str, root: Path, output: Path, sets: list[str]) -> None:
        self.mixture = load_mixture(str(MIXTURES / f"{name}.yaml"), sets)
        file = fetch_tokenizer(self.mixture.tokenizer)
        self.tokenizer: Tokenizer = load_tokenizer(file)
        places = {"store": str(output / "store"), "output": str(output / "out")}
        job = assemble(self.mixture, file, data_root=str(root), **places)
        assert not claim_output(job)
        self.accounts: dict[str, SourceAudit] = {
            account.name: account
            for account in build(
                job, self.tokenizer, run_stage=plain_loop, max_bad=0.1, workers=2,
                report=Reporter(quiet=True, log_json=False),
            )
        }  # fmt: skip
        self.dataset = ShardedDataset(output / "out")
        assert list(self.dataset.verify()) == []
        self.check_shares()

    def check_shares(self) -> None:
        placed = {name: account.tokens_placed for name, account in self.accounts.items()}
        whole = sum(source.weight for source in self.mixture.sources.values())
        assert sum(placed.values()) == self.mixture.tokens
        for name, source in self.mixture.sources.items():
            asked = self.mixture.tokens * source.weight / whole
            assert abs(placed[name] - asked) < 1

    def sequences(self, source: str) -> list[Sequence]:
        every = map(self.dataset.sequence, range(len(self.dataset)))
        return [sequence for sequence in every if sequence.source == source]

    def runs(self, sequence: Sequence) -> list[tuple[bool, str]]:
        """A sequence as text, with loss where the shard has it."""
        loss = [True] * sequence.n_real
        for start, end in sequence.no_loss:
            loss[start:end] = [False] * (end - start)
        return runs_of_tokens(sequence.tokens[: sequence.n_real].tolist(), loss, self.tokenizer)

    def text(self, sequence: Sequence) -> str:
        return "".join(text for _, text in self.runs(sequence))

    def loss_share(self, source: str) -> float:
        return self.accounts[source].tokens_loss / self.accounts[source].tokens_placed


def recipe_of(name: str) -> dict[str, Any]:
    return yaml.safe_load((MIXTURES / f"{name}.yaml").read_text())


# --- what holds for a mixture whatever it is made from ---


def check_phase2(made: Made) -> None:
    """That contexts are of one task, and what is dropped, is in test_phase2.py."""
    for name in ("natural_instructions", "p3"):
        assert made.accounts[name].padding <= made.dataset.seq_len
        assert made.accounts[name].segments > 10 * made.accounts[name].sequences
    assert all(made.loss_share(name) > 0.9 for name in made.accounts)


def check_llama2_long(made: Made) -> None:
    for sequence in made.sequences("long_qa"):
        (segment,) = sequence.segments
        text = made.text(sequence)
        assert (segment["start"], segment["offset"]) == (0, 0)
        if not segment["tail_cut"]:
            assert text.startswith("⟦<s>⟧[INST] You are given a long text")
            assert text.endswith("⟦</s>⟧")
            assert text.count("\n[/INST]\n") == text.count('\n"""\nQuestion: ') == 1
        assert sequence.no_loss == []
    account = made.accounts["long_qa"]
    assert account.segments == account.sequences
    for sequence in made.sequences("dialogues"):
        for loss, text in made.runs(sequence):
            assert "[/INST]" not in text if loss else True
    assert 0.1 < made.loss_share("dialogues") < 0.95


def check_longllama_pretrain(made: Made) -> None:
    every = list(map(made.dataset.sequence, range(len(made.dataset))))
    units = [every[i : i + 4] for i in range(0, len(every), 4)]
    for unit in units:
        assert len({(sequence.source, sequence.pass_) for sequence in unit}) == 1
        for one, two in pairwise(unit):
            if not two.segments:
                continue  # the end of a pass
            last, first = one.segments[-1], two.segments[0]
            assert one.n_real == made.dataset.seq_len
            assert first["head_cut"] == last["tail_cut"]
            if last["tail_cut"]:
                assert last["document"] == first["document"]
                assert last["offset"] + last["length"] == first["offset"]
            else:
                assert first["offset"] == 0
    assert any(unit[-1].segments for unit in units)
    assert all(made.loss_share(name) > 0.99 for name in made.accounts)


def check_longllama_instruct(made: Made) -> None:
    for name in ("openorca", "sharegpt"):
        assert 0.05 < made.loss_share(name) < 0.95
    for sequence in made.sequences("sharegpt"):
        if any(s["head_cut"] or s["tail_cut"] for s in sequence.segments):
            continue
        runs = made.runs(sequence)
        assert all(text.startswith(" ") and text.endswith("⟦</s>⟧") for text in learned(runs))
        before = [text for loss, text in runs if not loss]
        assert all(text.endswith("\nASSISTANT:") for text in before)
    for sequence in made.sequences("openorca"):
        if not any(s["head_cut"] or s["tail_cut"] for s in sequence.segments):
            assert len(learned(made.runs(sequence))) == len(sequence.segments)


def check_asked(name: str, question: str) -> Callable[[Made], None]:
    def check(made: Made) -> None:
        whole = 0
        for sequence in made.sequences(name):
            if not any(s["head_cut"] or s["tail_cut"] for s in sequence.segments):
                assert made.text(sequence).count(question) == len(sequence.segments)
                whole += 1
        assert whole

    return check


def check_ul2(made: Made) -> None:
    dialogues = "".join(map(made.text, made.sequences("dialogues")))
    assert dialogues.count("<human>:") > 10
    assert dialogues.count("<bot>:") > 10
    denoisers = "".join(map(made.text, made.sequences("denoisers")))
    assert all(denoisers.count(mode) > 1 for mode in ("[NLU] ", "[S2S] ", "[NLG] "))
    assert denoisers.count("<extra_id_0>") > 10


CHECKS: dict[str, Callable[[Made], None]] = {
    "phase2": check_phase2,
    "llama2_long": check_llama2_long,
    "longllama_instruct": check_longllama_instruct,
    "longllama_pretrain": check_longllama_pretrain,
    "booksum": check_asked("booksum", "\n\nQ: Can you write an appropriate summary of the above"),
    "multi_document_qa": check_asked("natural_questions", "\nGold Document ID: "),
    "ul2": check_ul2,
}


def test_every_shipped_mixture_is_built_by_a_test():
    names = {path.stem for path in MIXTURES.glob("*.yaml")}
    assert names == {*CHECKS, "demo", "phase1"}, "demo: test_cli.py, phase1: test_build.py"


@pytest.mark.parametrize("name", CHECKS)
def test_mixtures_are_built_from_real_text(name, shared_data, tmp_path):
    pytest.importorskip("mistral_common")
    sets = [*overrides(name, recipe_of(name)), f"tokens={BUDGETS[name]}", *FEWER.get(name, [])]
    CHECKS[name](Made(name, shared_data, tmp_path, sets))

"""`python -m trainer.evaluate`: files and tables that agree, and one message for bad input."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
import torch
from conftest import Builder, prose, write_jsonl
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from trainer.evaluate import main
from trainer.passkey import model_answer
from trainer.texts import load_tokenizer, usual_bos


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_model: Path) -> Path:
    """A tiny model with its tokenizer, and `a.txt` and `b.txt`, of different lengths."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    config = LlamaConfig(
        vocab_size=640, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    shutil.copy(tokenizer_model, path / "tokenizer.model")
    (path / "a.txt").write_text(prose(random.Random(1), 300))
    (path / "b.txt").write_text(prose(random.Random(2), 40))
    (path / "half.jsonl").write_text('{"text": "a"}\n{"text": "half \\ud800"}\n')
    return path


@pytest.fixture
def evaluate(folder, capsys):
    """Runs the command; gives its status, output and errors."""

    def run(*arguments: object, model: object = folder) -> tuple[int, str, str]:
        status = main(["--model", str(model), *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def results(output: Path, printed: str) -> dict:
    """The record, after a look that Markdown, JSON, plot and what was printed agree."""
    record = json.loads((output / "results.json").read_text())
    markdown = (output / "results.md").read_text()
    assert (output / "results.svg").read_text().startswith("<?xml")
    table = markdown.split("\n\n- ")[0]
    assert table in printed
    assert table.startswith(f"**{record['title']}**")
    columns = [cell.strip() for cell in table.splitlines()[2].strip("|").split("|")]
    cells = [[c.strip() for c in r.strip("|").split("|")] for r in table.splitlines()[4:] if r]
    for cells_, row in zip(cells, record["table"], strict=True):
        assert columns == list(row)
        assert [float(c.replace(",", "")) for c in cells_] == pytest.approx(
            list(row.values()), abs=1e-4
        )
    return record


def test_perplexity_of_text_files(evaluate, folder, tmp_path):
    status, printed, errors = evaluate(
        "--output", tmp_path / "out", "perplexity", "--text", folder / "a.txt", folder / "b.txt",
        "--windows", "128,32", "--stride", 16, "--length", 200,
    )  # fmt: skip
    assert status == 0, errors
    record = results(tmp_path / "out", printed)
    assert [row["window"] for row in record["table"]] == [32, 128]
    # 200 tokens and BOS: 31 and then 16 at a time, or 127 and then 16 at a time.
    assert [row["windows"] for row in record["table"]] == [1 + 11, 1 + 5]
    assert [row["tokens scored"] for row in record["table"]] == [200, 200]
    assert all(500 < row["token-weighted"] < 800 for row in record["table"]), "about 640, untrained"
    assert record["data"]["tokens"] == {str(folder / "a.txt"): 200}, "b.txt is too short"
    assert record["bos"] == 1
    assert record["dtype"] == "torch.float32"
    assert record["options"]["stride"] == 16
    assert "window 32, batches: 3 of 3" in errors


def test_the_same_document_from_a_data_set_scores_the_same(evaluate, folder, builder: Builder):
    write_jsonl(builder.folder / "a.jsonl", [{"text": (folder / "a.txt").read_text()}])
    built = builder.build({"a": {"weight": 1, "path": "a.jsonl"}}, tokens=560)
    options = ("--windows", "64", "--stride", "32", "--length", "500")
    tables = []
    for source in ("--data", built.dataset.folder), ("--text", builder.folder / "a.jsonl"):
        output = builder.folder / source[0]
        status, printed, errors = evaluate("--output", output, "perplexity", *source, *options)
        assert status == 0, errors
        tables.append(results(output, printed))
    assert tables[0]["table"] == tables[1]["table"]
    assert tables[0]["data"]["sha256_ids"] == tables[1]["data"]["sha256_ids"]
    assert tables[0]["data"]["dataset_id"] == built.dataset.manifest["dataset_id"]


def test_loss_by_position(evaluate, folder, tmp_path):
    status, printed, errors = evaluate(
        "--no-bos", "--output", tmp_path, "positions", "--text", folder / "a.txt", "--length", 100
    )  # fmt: skip
    assert status == 0, errors
    rows = results(tmp_path, printed)["table"]
    assert [row["from position"] for row in rows] == [1, 2, 4, 8, 16, 32, 64]
    assert [row["tokens scored"] for row in rows] == [1, 2, 4, 8, 16, 32, 36]


def test_passkey_on_a_grid_of_depths(evaluate, tmp_path):
    status, printed, errors = evaluate(
        "--output", tmp_path, "passkey", "--lengths", "300,400", "--depths", 3, "--trials", 2
    )
    assert status == 0, errors
    record = results(tmp_path, printed)
    assert list(record["table"][0]) == ["tokens", "0%", "50%", "100%", "all"]
    assert len(record["trials"]) == 2 * 3 * 2
    assert record["k_max"] == 0, "a model that was never trained"
    assert "k_max: 0" in printed
    again = evaluate("passkey", "--lengths", "300,400", "--depths", 3, "--trials", 2)
    assert again[1] == printed


def test_the_plot_of_the_same_figures_is_the_same_file(evaluate, folder, tmp_path):
    for name in "ab":
        evaluate("--output", tmp_path / name, "passkey", "--lengths", "300", "--trials", 1)
    assert (tmp_path / "a/results.svg").read_bytes() == (tmp_path / "b/results.svg").read_bytes()


def test_rope_is_set_and_said(evaluate, folder, tmp_path):
    text = ("positions", "--text", folder / "a.txt", "--length", "128")
    tables = {}
    for rope in (), ("--rope", "linear"), ("--rope", "base", "--base", "500000"):
        status, printed, errors = evaluate(*rope, "--output", tmp_path, *text)
        assert status == 0, errors
        record = results(tmp_path, printed)
        tables[rope] = record["rope"], str(record["table"])
    parameters, losses = zip(*tables.values(), strict=True)
    assert parameters[1] == {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    assert parameters[2]["rope_theta"] == 500000.0
    assert len(set(losses)) == 3


@pytest.mark.parametrize(("rope", "reach"), [("keep", 64), ("yarn", 128)])
def test_the_reach_of_a_model_is_raised_only_by_what_extends_it(
    evaluate, folder, tmp_path, rope, reach
):
    text = ("positions", "--text", folder / "a.txt", "--length", "128")
    status, printed, errors = evaluate("--rope", rope, "--output", tmp_path, *text)
    assert status == 0, errors
    assert results(tmp_path, printed)["max_position_embeddings"] == reach


def test_settings_for_sampling_in_the_checkpoint_do_not_bend_answers(folder):
    model = LlamaForCausalLM.from_pretrained(folder)
    ids = [1, *range(5, 45)]
    plain = model_answer(model, str)(ids, 6)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=9.0, repetition_penalty=5.0, eos_token_id=2
    )
    assert model_answer(model, str)(ids, 6) == plain
    with torch.no_grad():
        for _ in range(6):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert str(ids[-6:]) == plain


def test_an_answer_ends_with_what_was_waited_for_or_before_eos(folder):
    model = LlamaForCausalLM.from_pretrained(folder)
    model.generation_config = GenerationConfig()
    ids = [1, *range(5, 45)]
    whole = json.loads(model_answer(model, str)(ids, 6))
    assert json.loads(model_answer(model, str, stop=f"{whole[2]}")(ids, 6)) == whole[:3]
    for ends in (whole[2], [639, whole[2]]):
        model.generation_config = GenerationConfig(eos_token_id=ends)
        assert json.loads(model_answer(model, str)(ids, 6)) == whole[:2]


def test_a_tokenizer_json_gives_plain_ids_and_its_bos(tmp_path):
    trained = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=False))
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet
    )
    trained.train_from_iterator(["some text"], trainer)
    trained.save(str(tmp_path / "tokenizer.json"))
    assert usual_bos(load_tokenizer(str(tmp_path))) is None
    trained.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    trained.enable_truncation(4)
    trained.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(str(tmp_path / "tokenizer.json"))
    ids = loaded.encode(["some text</s> and more"])[0].tolist()
    assert usual_bos(loaded) == 0
    assert len(ids) > 4
    assert not {0, 1} & set(ids), "text is no control token"
    assert loaded.decode(ids) == "some text</s> and more"
    assert max(ids) < loaded.vocab_size


def test_a_sentencepiece_model_gives_the_ids_of_its_library(tokenizer_model):
    truth = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))
    loaded = load_tokenizer(str(tokenizer_model))
    text = "the  people </s> of\n\nthat"
    assert loaded.encode([text])[0].tolist() == truth.encode(text)
    assert (usual_bos(loaded), loaded.vocab_size) == (1, 600)


KINDS = ("perplexity", "positions", "passkey", "memory", "classify")
SHORT = ("perplexity", "--text", "b.txt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("perplexity",), "either --data or --text"),
        (("perplexity", "--data", "x", "--text", "a.txt"), "either --data or --text"),
        (("perplexity", "--data", "x"), "x: no finished data set"),
        (("perplexity", "--text", "x.txt"), "x.txt"),
        (("perplexity", "--text", "half.jsonl"), "half.jsonl:2: no JSON object with a string"),
        (("--output", "a.txt", "passkey"), "--output a.txt: is a file"),
        ((*SHORT, "--windows", "256"), "--windows 256: has to be above --stride 256"),
        ((*SHORT, "--length", "1000"), "--windows 8192: documents are cut to --length 1000"),
        ((*SHORT, "--documents", "3"), "documents with 8,192 tokens or more: 0, wanted: 3"),
        (("positions", "--text", "a.txt", "--buckets", "9", "--length", "8"), "--buckets 9"),
        (("passkey", "--lengths", "64"), "64 tokens are too few"),
        (("--rope", "base", "passkey", "--lengths", "400"), "--rope base: 1 fault"),
        (("--rope", "linear", "passkey", "--lengths", "60"), "nothing to scale"),
        (("--tokenizer", "nowhere", "passkey"), "nowhere: no such file or folder"),
        (("--tokenizer", "/", "passkey"), "/: no tokenizer.json or tokenizer.model"),
        (("--tokenizer", "a.txt", "passkey"), "a.txt: no SentencePiece model"),
        (("--device", "nonsense", "passkey"), "--device nonsense: "),
    ],
)
def test_bad_input_is_one_message(evaluate, folder, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    status, printed, errors = evaluate(*arguments)
    assert (status, printed) == (2, "")
    assert errors.startswith("error: ")
    assert message in errors


def test_a_model_that_is_not_there_or_not_whole(evaluate, folder, tmp_path):
    tokenizer = ("--tokenizer", folder, "passkey", "--lengths", "300", "--trials", 1)
    assert str(tmp_path / "none") in evaluate(*tokenizer, model=tmp_path / "none")[2]
    assert str(tmp_path) in evaluate(*tokenizer, model=tmp_path)[2]
    (tmp_path / "run.json").touch()
    message = f"the folder of a run; its model is {tmp_path / 'model'}"
    assert message in evaluate(*tokenizer, model=tmp_path)[2]
    (tmp_path / "run.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    shutil.copy(folder / "model.safetensors", tmp_path)
    for changed, message in (
        ({"num_hidden_layers": 3}, "9 weights are missing, model.layers.2"),
        ({"vocab_size": 500}, "500 token ids, "),
        ({"model_type": "bert"}, "bert"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | changed))
        status, _, errors = evaluate(*tokenizer, model=tmp_path)
        assert status == 2
        assert message in errors


@pytest.mark.parametrize("option", ["--documents=0", "--stride=x", "--windows=1,,2"])
def test_numbers_that_are_none_are_refused_with_status_2(evaluate, option, capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluate("perplexity", "--text", "a.txt", option)
    assert stopped.value.code == 2
    assert "is no whole number" in capsys.readouterr().err


@pytest.mark.parametrize("command", [(), *((name,) for name in KINDS)])
def test_every_command_explains_itself(evaluate, command, capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluate(*command, "--help")
    assert stopped.value.code == 0
    assert "usage: python -m trainer.evaluate" in capsys.readouterr().out

"""The tokenizer of a data set as files that transformers' `AutoTokenizer` loads."""

import json
from pathlib import Path
from typing import Any

from pipelines.byte_level import frame
from pipelines.probe import probe_texts
from pipelines.sentencepiece_json import sentencepiece_json
from pipelines.sentencepiece_model import UnsupportedModel
from pipelines.tokenizer_file import TokenizerFile, kept_tokenizer, reference


def write_tokenizer(folder: Path, content: bytes, about: dict[str, Any]) -> str | None:
    """Write the files with which `AutoTokenizer` gives the ids of a data set.

    It puts BOS before a text where the data set has one before documents. EOS it leaves to the
    caller, as a prompt goes on: `AutoTokenizer.from_pretrained(folder, add_bos_token=…,
    add_eos_token=True)` frames a text as a document.

    Args:
        folder: of the run; has to exist.
        content: the data set's tokenizer file.
        about: what the manifest says of it.

    Returns:
        A note, where the files give other ids than the training.
    """
    file, note = kept_tokenizer(content, about), None
    (folder / file.file_name).write_bytes(content)
    if file.is_sentencepiece:
        try:
            value = sentencepiece_json(content)
        except UnsupportedModel as error:
            return (
                f"no tokenizer for AutoTokenizer: {error}; use sentencepiece and {file.file_name}"
            )
        note = _difference(file, value)
    else:
        value = json.loads(content)
    bos, eos = about.get("bos_token"), about.get("eos_token")
    value["post_processor"] = frame(bos, None, {bos: about["bos_id"]} if bos else {})
    (folder / "tokenizer.json").write_text(json.dumps(value, ensure_ascii=False))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # a class of a model builds its own steps
        "bos_token": bos,
        "eos_token": eos,
        "add_bos_token": bos is not None,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    text = json.dumps(config, ensure_ascii=False, indent=1) + "\n"
    (folder / "tokenizer_config.json").write_text(text)
    return note


def _difference(file: TokenizerFile, value: dict[str, Any]) -> str | None:
    """The first text of which a tokenizer.json makes other ids than its SentencePiece model."""
    from tokenizers import Tokenizer

    truth = reference(file)
    names = [*truth.specials, "<unk>"]
    texts = [text for text in probe_texts() if not any(name in text for name in names)]
    starts = [token + "x" for token in truth.text_tokens[:20]]
    texts += starts
    ids, offsets = truth.encode(texts)
    made: Any = Tokenizer.from_str(json.dumps(value))
    encoded = made.encode_batch_fast(texts, add_special_tokens=False)
    for i, got in enumerate(encoded):
        if got.ids != ids[offsets[i] : offsets[i + 1]].tolist():
            return (
                "AutoTokenizer gives other ids than the training for some texts, such as "
                f"{texts[i][:40]!r}; where that matters, use sentencepiece and {file.file_name}"
            )
    return None

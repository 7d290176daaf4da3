#!/bin/sh
# gigatoken and tokenizers divide text by the same pattern and disagree, because what \p{N} means
# comes with the library: one counts the digits of a script that is new in Unicode 17 as numbers,
# the other does not. With Llama 3's pattern the ids of such text differ, though the vocabulary, the
# merges and the pattern are equal. One would guess: two libraries that take the same tokenizer.json
# give the same ids for valid text.
set -eu
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check gigatoken==0.10.0 tokenizers==0.23.3 numpy
"$dir/venv/bin/python" - <<'PY'
import json
import sys
from importlib.metadata import version

import gigatoken
import tokenizers

print("gigatoken", version("gigatoken"), "tokenizers", version("tokenizers"))
pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def spelled(text):
    return level.pre_tokenize_str(text)[0][0]


new, old = "\U00011de0", "\u0669"  # TOLONG SIKI DIGIT ZERO (Unicode 17), an Arabic digit
# The last byte of a digit and the first of the next make a token, where one piece holds both.
merges = [[spelled(digit)[-1], spelled(digit)[0]] for digit in (new, old)]
vocabulary = {piece: i for i, piece in enumerate([*letters, *("".join(m) for m in merges)])}
split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
text = json.dumps({
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_]},
    "post_processor": None, "decoder": bytes_,
    "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
              "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
              "ignore_merges": False, "vocab": vocabulary, "merges": merges},
})
theirs, other = tokenizers.Tokenizer.from_str(text), gigatoken.Tokenizer.from_json(text)
differ = {}
for name, digit in (("new", new), ("old", old)):
    a = len(theirs.encode(digit * 4).ids)
    layout = other.encode_batch([digit * 4], parallel=False).layout
    b = len(layout.content.data)
    differ[name] = a != b
    print(f"four {name} digits (U+{ord(digit):04X}): tokenizers {a} ids, gigatoken {b} ids")
sys.exit(0 if differ == {"new": True, "old": False} else "changed")
PY

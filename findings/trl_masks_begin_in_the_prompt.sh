#!/bin/sh
# TRL's training templates do not agree where an answer begins. Some masks include tokens that the
# generation prompt of the same model has written already: for Qwen2.5 the newline behind
# `<|im_start|>assistant`, for gpt-oss `<|start|>assistant`. For Qwen3 and Llama 3 they do not. One would guess: the mask is what the model has to write.
set -eu
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 jinja2==3.1.6
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps trl==1.16.0
TRANSFORMERS_VERBOSITY=error "$dir/venv/bin/python" - <<'PY'
import sys
from importlib.metadata import version
from pathlib import Path
from sysconfig import get_paths

from transformers.utils.chat_template_utils import render_jinja_template

print("trl", version("trl"), "transformers", version("transformers"))
folder = Path(get_paths()["purelib"]) / "trl" / "chat_templates"
chat = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]
tokens = {"bos_token": "<bos>", "eos_token": "<eos>"}
given = {"qwen2_5": "\n", "gptoss": "<|start|>assistant",
         "qwen3_instruct_2507": "", "llama3": ""}
seen = {}
for name in given:
    source = (folder / f"{name}_training.jinja").read_text()
    [text], [[(start, _)]] = render_jinja_template(
        [chat], chat_template=source, return_assistant_tokens_mask=True, **tokens
    )
    # What the model is given before it writes: by the template that generation uses.
    plain = (folder / f"{name}.jinja").read_text()
    [prompt], _ = render_jinja_template(
        [chat[:1]], chat_template=plain, add_generation_prompt=True, **tokens
    )
    if not text.startswith(prompt):
        sys.exit(f"changed: {name}: the prompt is no prefix of the training text")
    seen[name] = text[start:len(prompt)]
    print(f"{name}: given by the prompt and learned all the same: {seen[name]!r}")
sys.exit(0 if seen == given else "changed: another part of the prompt is learned")
PY

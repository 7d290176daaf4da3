#!/bin/sh
# transformers gives a chat template more than the message holds: since version 5 reasoning that
# stands under one of its known names reaches the template under each of them. So a template that
# reads `reasoning_content` writes the reasoning of a record that says `reasoning` or `thinking`.
# One would guess: a message reaches the template as it is, and jinja2 renders the same text.
set -eu
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 jinja2==3.1.6
TRANSFORMERS_VERBOSITY=error "$dir/venv/bin/python" - <<'PY'
import sys
from importlib.metadata import version

from jinja2 import Template
from transformers.utils.chat_template_utils import render_jinja_template

print("transformers", version("transformers"))
source = "{% for m in messages %}<think>{{ m.reasoning_content }}</think>{{ m.content }}{% endfor %}"
seen = {}
for name in ("reasoning_content", "reasoning", "thinking", "thoughts"):
    messages = [{"role": "assistant", "content": "Yes.", name: "I see."}]
    [theirs], _ = render_jinja_template([messages], chat_template=source)
    plain = Template(source).render(messages=messages)
    seen[name] = theirs != plain
    print(f"{name}: transformers {theirs!r}, jinja2 alone {plain!r}")
expected = {"reasoning_content": False, "reasoning": True, "thinking": True, "thoughts": False}
sys.exit(0 if seen == expected else "changed")
PY

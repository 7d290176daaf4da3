"""Chat templates, written for the tests, that do what published ones do.

Each has `{% generation %}` around what is to be learned, which says what is right; without these
tags (see `unmarked`) the rules have to find the same.
"""

from __future__ import annotations

import re

CHATML = """\
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' }}
    {%- if m.role == 'assistant' %}
        {%- generation %}{{ m.content + '<|im_end|>\\n' }}{% endgeneration %}
    {%- else %}
        {{- m.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

ALTERNATING = """\
{%- if messages[0].role == 'system' %}
    {%- set system, rest = messages[0].content, messages[1:] %}
{%- else %}
    {%- set system, rest = '', messages %}
{%- endif %}
{{- bos_token }}
{%- for m in rest %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate') }}
    {%- endif %}
    {%- if m.role == 'user' %}
        {{- '[INST] ' }}
        {%- if system and loop.index0 == rest | length - 2 %}{{ system + '\\n\\n' }}{% endif %}
        {{- m.content | trim + ' [/INST]' }}
    {%- else %}
        {%- generation %}{{ ' ' + m.content | trim + eos_token }}{% endgeneration %}
    {%- endif %}
{%- endfor %}"""

TWO_ENDS = """\
{{- bos_token }}
{%- for m in messages %}
    {%- set role = m.role | lower %}
    {{- '<|turn|><|' + role + '|>' }}
    {%- if role == 'assistant' %}
        {%- generation %}{{ '<|answer|>' + m.content + '<|answered|><|end|>' }}{% endgeneration %}
    {%- else %}
        {{- m.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|turn|><|assistant|>' }}{% endif %}"""

TEXT_END = """\
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {{- '### Answer:' }}{% generation %}{{ ' ' + m.content + '\\n### End' }}{% endgeneration %}
        {{- '\\n\\n' if not loop.last }}
    {%- else %}
        {{- '### ' + m.role.capitalize() + ': ' + m.content + '\\n\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### Answer:' }}{% endif %}"""

CHANNELS = """\
{%- macro part(name, text) %}{{ '<|channel|>' + name + '<|message|>' + text }}{% endmacro %}
{{- '<|start|>system<|message|>Today is ' + strftime_now('%d %B %Y') + '<|end|>' }}
{%- for m in messages %}
    {{- '<|start|>' + m.role }}
    {%- if m.role == 'assistant' %}
        {%- generation %}
        {%- if m.thinking and loop.last %}
            {{- part('analysis', m.thinking) + '<|end|><|start|>assistant' }}
        {%- endif %}
        {{- part('final', m.content) + ('<|return|>' if loop.last else '<|end|>') }}
        {%- endgeneration %}
    {%- else %}
        {{- '<|message|>' + m.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""

THINKING = """\
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}
    {%- if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- if tools %}
    {{- '<|im_start|>tools\\n' }}
    {%- for tool in tools %}{{ tool | tojson + '\\n' }}{% endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {%- set content, thought = m.content, '' %}
        {%- if m.reasoning_content is string %}
            {%- set thought = m.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in m.tool_calls or [] %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {%- if call.function.arguments is string %}
                {{- call.function.arguments }}
            {%- else %}
                {{- call.function.arguments | tojson }}
            {%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
        {%- endgeneration %}
    {%- elif m.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

NAMED_RESULTS = """\
{{- bos_token }}
{%- if tools %}{{ '<|tools|>' + tools | tojson(indent=4) + '<|end|>' }}{% endif %}
{%- set ns = namespace(name='') %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {{- '<|assistant|>' }}
        {%- generation %}
        {%- if m.tool_calls %}
            {%- set call = m.tool_calls[0].function %}
            {%- set ns.name = call.name %}
            {{- m.content + '<|call|>' + call.name + call.arguments | tojson + '<|called|>' }}
        {%- else %}
            {{- m.content + '<|end|>' }}
        {%- endif %}
        {%- endgeneration %}
    {%- elif m.role == 'tool' or m.role == 'ipython' %}
        {{- '<|result|>' + ns.name + ':' + m.content | tojson + '<|end|>' }}
    {%- else %}
        {{- '<|' + m.role + '|>' + m.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""

CLOSED = """\
{%- for m in messages %}
    {{- '<|' + m.role + '|>\\n' }}
    {%- if m.role == 'assistant' %}
        {%- generation %}{{ m.content + '<|end|>\\n' }}{% endgeneration %}
    {%- else %}
        {{- m.content + '<|end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\\n' }}
{%- else %}
    {%- generation %}{{ eos_token }}{% endgeneration %}
{%- endif %}"""

UNASKED = """\
{%- for m in messages %}
    {{- '<|turn|><|' + m.role + '|>' }}
    {%- if m.role == 'assistant' %}
        {%- generation %}{{ m.content + '<|end|>' }}{% endgeneration %}
    {%- else %}
        {{- m.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{{- '<|turn|><|assistant|>' }}"""

PARTS = """\
{%- for m in messages %}
    {{- m.role.capitalize() + ':' }}
    {%- if m.role == 'assistant' %}
        {%- generation %}
        {%- for part in m.content %}{{ ' ' + part.text if part.type == 'text' }}{% endfor %}
        {{- '<|end|>\\n' }}
        {%- endgeneration %}
    {%- else %}
        {%- for part in m.content %}{{ ' ' + part.text if part.type == 'text' }}{% endfor %}
        {{- '<|end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""

TEMPLATES = {
    "chatml": CHATML,
    "alternating roles, the system prompt before the last question": ALTERNATING,
    "two control tokens behind an answer": TWO_ENDS,
    "an end of text": TEXT_END,
    "channels, a date, macros": CHANNELS,
    "reasoning in contents and fields, tools": THINKING,
    "results that name their function": NAMED_RESULTS,
    "a token that closes the text": CLOSED,
    "a prompt that nobody asks for": UNASKED,
}
"""Those that take contents as text."""

SPECIAL = (
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "<|turn|>", "<|user|>",
    "<|assistant|>", "<|system|>", "<|answer|>", "<|answered|>", "<|end|>", "<|start|>",
    "<|channel|>", "<|message|>", "<|return|>", "<|call|>", "<|called|>", "<|result|>", "<|tools|>",
)  # fmt: skip


def unmarked(source: str) -> str:
    """A template without its `{% generation %}`."""
    return re.sub(r"(\{%-?) (end)?generation (-?%\})", _if, source)


def _if(tag: re.Match[str]) -> str:
    return f"{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}"

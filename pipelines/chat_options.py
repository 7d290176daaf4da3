"""What a mixture says about the conversations of a source."""

import datetime
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import field_validator, model_validator

from pipelines.chat_filters import ChatFilters
from pipelines.options import Frozen

_FROM_RECORDS = ("messages", "tools", "documents", "add_generation_prompt")


class Chat(Frozen):
    """How conversations become text, and which of them are left out."""

    template: Literal["llama2", "longllama", "longllama_instruct"] | None = None
    """A published template; either this or `jinja`."""

    jinja: str | None = None
    """A chat template in Jinja: a folder with a tokenizer, the path of a tokenizer_config.json or
    chat_template.jinja, or the template itself."""

    arguments: Mapping[str, Any] = {}
    """Other variables of the Jinja template, such as `{enable_thinking: false}`."""

    date: datetime.datetime | None = None
    """The date, as `2024-07-26`, that the Jinja template gets from `strftime_now`."""

    without_end: bool = False
    """Accept a Jinja template that writes nothing behind an answer for the model to learn."""

    system: str | None = None
    """The system prompt of conversations that have no system turn; default: none, but LongLLaMA's
    sentence for `longllama`."""

    roles: Literal["named", "alternate"] = "named"
    """How turns say who speaks: `named` by a field of theirs; `alternate`: turns are plain texts,
    the first is the user's and the second the assistant's, and so on (LIMA, UltraChat)."""
    too_long: Literal["drop", "windows"] = "drop"
    """What becomes of a conversation that does not fit into a sequence: it is dropped, or divided
    between questions into conversations that fit, each with the system prompt."""

    filters: ChatFilters = ChatFilters()
    """Conversations to leave out."""

    @field_validator("arguments")
    @classmethod
    def _not_the_record(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        for name in value:
            if name in _FROM_RECORDS or name.endswith("_token"):
                raise ValueError(f"'{name}' comes from the record or the tokenizer")
        return value

    @model_validator(mode="after")
    def _one_template(self) -> "Chat":
        if (self.template is None) == (self.jinja is None):
            raise ValueError("give either `template` or `jinja`")
        for name in ("arguments", "date", "without_end"):
            if self.template and getattr(self, name):
                raise ValueError(f"`{name}` is for `jinja`; `template` has no use for it")
        return self

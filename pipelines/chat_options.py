"""What a mixture says about the conversations of a source."""

from typing import Literal

from pydantic import model_validator

from pipelines.chat_filters import ChatFilters
from pipelines.options import Frozen


class Chat(Frozen):
    """How conversations become text, and which of them are left out."""

    template: Literal["llama2", "longllama", "longllama_instruct"] | None = None
    """A published template; either this or `jinja`."""

    jinja: str | None = None
    """A chat template in Jinja: the path of a tokenizer_config.json or chat_template.jinja, or the
    template itself."""

    system: str | None = None
    """The system prompt of conversations that have none; default: none, but LongLLaMA's sentence
    for `longllama`."""

    roles: Literal["named", "alternate"] = "named"
    """How turns say who speaks: `named` by a field of theirs; `alternate`: turns are plain texts,
    the first is the user's and the second the assistant's, and so on (LIMA, UltraChat)."""

    filters: ChatFilters = ChatFilters()
    """Conversations to leave out."""

    @model_validator(mode="after")
    def _one_template(self) -> "Chat":
        if (self.template is None) == (self.jinja is None):
            raise ValueError("give either `template` or `jinja`")
        return self

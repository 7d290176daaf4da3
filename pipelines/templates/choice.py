"""Which template makes the documents of a source, and everything that its documents depend on."""

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import msgspec

from pipelines.chat_filters import chat_drop_reason
from pipelines.chat_options import Chat
from pipelines.chat_schemas import CHAT_SCHEMAS, conversation_reader, language_of
from pipelines.conversations import Conversation, texts_in, turn_texts
from pipelines.mixture import TEMPLATES, Source, digest
from pipelines.options import Frozen
from pipelines.records import Made
from pipelines.rendering import BadRecordError, Rendered, keyed_random
from pipelines.retrieval import PassageIndex
from pipelines.templates import long_qa, multi_document, summary
from pipelines.templates.chat import chat_renderer
from pipelines.templates.few_shot import render_example, render_prompt
from pipelines.templates.fill_in import FillIn, fill_in
from pipelines.templates.jinja_chat import JinjaChat
from pipelines.templates.jinja_source import ChatTemplate
from pipelines.templates.long_qa import LongQA
from pipelines.templates.multi_document import MultiDocument
from pipelines.templates.promptsource import Promptsource, apply_one, prompt_templates
from pipelines.templates.summary import Summary
from pipelines.tokenizer import Tokenizer
from pipelines.windows import parts_of_conversation

Record = Mapping[str, Any]
Rewriter = Callable[[str, bytes], Rendered]
"""Text and id of a document → what the model sees of it. Raises `BadRecordError`."""

_CHARACTERS_PER_TOKEN = 3
"""Fewer than any prose has, so that what fits in characters nearly always fits in tokens."""


@dataclass(frozen=True)
class Renderer:
    """A template that reads records itself."""

    fields: frozenset[str]
    """The top-level fields it reads."""

    render: Callable[[Record], Made]
    """Raises `BadRecordError` where it cannot."""

    is_chat: bool = False
    """It reads conversations: it judges all other fields itself, and a null is no value."""

    warning: str = ""
    """What a person should know of the template before the work."""


@dataclass(frozen=True)
class TemplateSpec:
    """A template with everything that its documents depend on; small and picklable."""

    name: str
    """The key of the mixture that chooses it."""

    options: Frozen
    schema: str
    seed: int
    seq_len: int
    few_shot: bool
    ignored: tuple[str, ...]
    """Of `chat`: fields that are read as if they were not there."""

    learns_all: bool
    """Whether every token carries loss, so that no answer can be shown without."""

    special: tuple[str, ...]
    """Special tokens of the vocabulary."""

    bos: str | None
    eos: str | None
    jinja: ChatTemplate | None = None
    """Of `chat`: what `jinja` names."""

    content: bytes = b""
    """Of `promptsource`: its file."""

    warning: str = ""
    """Of `chat`: what a person should know of the template before the work."""

    passages: str | None = None
    """Of `multi_document`: path of the index; its name is a digest of its content's origin."""

    @property
    def reads_records(self) -> bool:
        """Whether it makes documents of records; else it rewrites the text of documents."""
        return not isinstance(self.options, FillIn)

    @cached_property
    def digest(self) -> str:
        """What its documents depend on; where files lie does not count."""
        jinja = None
        if self.jinja:
            jinja = self.jinja.source, self.jinja.tool_use, sorted(self.jinja.tokens.items())
        tokens = (self.special, self.bos, self.eos) if jinja else None
        passages = self.passages.rsplit("/", 1)[-1] if self.passages else None
        return digest(
            self.name, self._plain_options(), self.schema, self.seed, self.seq_len, self.few_shot,
            self.ignored, self.learns_all, tokens, jinja, self.content, passages,
        )  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """What a folder of the token store says of it."""
        return {"name": self.name, "schema": self.schema, "options": self._plain_options()}

    def _plain_options(self) -> dict[str, Any]:
        """The options without the paths of files whose content counts."""
        return self.options.model_dump(mode="json", exclude={"jinja", "path", "passages"})

    def renderer(self) -> Renderer:
        """What makes a document of a record.

        Raises:
            UserError: a template file cannot be used.
        """
        match self.options:
            case Chat():
                return self._chat(self.options)
            case Promptsource():
                return self._promptsource(self.options)
            case MultiDocument() as options:
                render = partial(self._multi_document, self._retriever(), options)
                names = (options.question, options.answers, options.gold, options.title,
                         options.long_answer)  # fmt: skip
                return Renderer(_top(names), render)
            case LongQA() as options:
                most = self.seq_len * _CHARACTERS_PER_TOKEN
                render = partial(long_qa.render, options=options, max_characters=most)
                names = (options.document, options.question, options.answer, options.kind,
                         options.chunk)  # fmt: skip
                return Renderer(_top(names), lambda record: Made(render(record)))
            case Summary() as options:
                names = (options.text, options.summary)
                return Renderer(_top(names), lambda r: Made(summary.render(r, options=options)))
            case _:
                raise ValueError(f"{self.name} makes no documents of records")

    def _chat(self, options: Chat) -> Renderer:
        read = conversation_reader(self.schema, roles=options.roles, ignored=self.ignored)
        render = chat_renderer(
            options, special=self.special, bos=self.bos, eos=self.eos, jinja=self.jinja
        )

        def conversation(record: Record) -> Made:
            found = read(record)
            language = language_of(record, self.schema)
            if reason := chat_drop_reason(found, language, options.filters):
                raise BadRecordError(*reason)
            if self.learns_all:
                _refuse_silent(found)
            windows = options.too_long == "windows"
            return Made(
                render(found), parts=parts_of_conversation(found, render) if windows else None
            )

        fields = frozenset(CHAT_SCHEMAS[self.schema].fields)
        warning = render.warning if isinstance(render, JinjaChat) else ""
        return Renderer(fields, conversation, is_chat=True, warning=warning)

    def _promptsource(self, options: Promptsource) -> Renderer:
        templates = prompt_templates(options, self.content)

        def example(record: Record) -> Made:
            found = apply_one(templates, record, self._random(_identity(record)))
            texts = [found.input, found.target]
            content = render_example(texts, ()) if self.few_shot else render_prompt(texts)
            return Made(content, found.task)

        fields = frozenset[str]().union(*(template.fields for template in templates))
        return Renderer(fields, example)

    def _retriever(self) -> PassageIndex:
        if self.passages is None:
            raise ValueError(f"{self.name} without an index of passages")
        return PassageIndex(self.passages)

    def _multi_document(
        self, passages: PassageIndex, options: MultiDocument, record: Record
    ) -> Made:
        content = multi_document.render(
            record,
            passages,
            options=options,
            rng=self._random(_identity(record)),
            max_characters=self.seq_len * _CHARACTERS_PER_TOKEN,
        )
        return Made(content)

    def rewriter(self, tokenizer: Tokenizer) -> Rewriter:
        """What rewrites the text of a document."""
        options = self.options
        if not isinstance(options, FillIn):
            raise TypeError(f"{self.name} rewrites no texts")
        ends = tokenizer.reference.ends

        def rewrite(text: str, uid: bytes) -> Rendered:
            return fill_in(text, options=options, rng=self._random(uid), ends=ends)

        return rewrite

    def _random(self, key: bytes) -> random.Random:
        return keyed_random(self.seed, self.name, key)


def plain_conversations(source: Source) -> Renderer:
    """Conversations as all their texts in lines, for who only looks for what stands in them."""
    roles = source.chat.roles if source.chat else "named"
    read = conversation_reader(source.schema_, roles=roles, ignored=source.ignore_fields)

    def conversation(record: Record) -> Made:
        found = read(record)
        said = (text for turn in found.turns for text in turn_texts(turn))
        texts = [found.system or "", *texts_in(found.tools), *said]
        return Made(Rendered("\n".join(text for text in texts if text)))

    return Renderer(frozenset(CHAT_SCHEMAS[source.schema_].fields), conversation, is_chat=True)


def _refuse_silent(conversation: Conversation) -> None:
    """Drop a conversation with an answer that is not learned, where everything carries loss.

    Raises:
        BadRecordError: not_to_learn.
    """
    for place, turn in enumerate(conversation.turns, 1):
        if not turn.loss:
            said = f"turn {place}: `loss: all` would learn it, `loss: answers` shows it without"
            raise BadRecordError("not_to_learn", said)


def _top(paths: Iterable[str]) -> frozenset[str]:
    """The top-level fields of paths with dots."""
    return frozenset(path.split(".")[0] for path in paths)


def _identity(record: Record) -> bytes:
    """A record as bytes, whatever the order of its fields."""
    try:
        return msgspec.json.encode(record, order="deterministic", enc_hook=str)
    except UnicodeEncodeError:  # a lone surrogate, perhaps in a field that nobody looks at
        return json.dumps(record, sort_keys=True, default=str).encode()


def chosen_template(source: Source) -> tuple[str, Frozen] | None:
    """The template that a source of a mixture names, and its options."""
    found: Sequence[tuple[str, Frozen]] = [
        (name, options) for name in TEMPLATES if (options := getattr(source, name)) is not None
    ]
    return found[0] if found else None

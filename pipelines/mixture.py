"""The mixture: which sources, in which shares, as one checked and immutable value.

`mixture_file.py` reads it from YAML; everything else of the build takes it as it stands here.
"""

import hashlib
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipelines.chat_options import Chat
from pipelines.cleaning import Decontam, Dedup, SourceDecontam
from pipelines.options import Frozen, Names, Paths, Real, Token, Weight, Whole
from pipelines.published_ranks import RankUse
from pipelines.templates.fill_in import FillIn
from pipelines.templates.long_qa import LongQA
from pipelines.templates.multi_document import MultiDocument
from pipelines.templates.promptsource import Promptsource
from pipelines.templates.summary import Summary

TEMPLATES = ("chat", "fill_in", "long_qa", "multi_document", "promptsource", "summary")
"""Keys of a source that choose a template."""

CHATS = ("sharegpt", "messages", "prompt_completion", "openorca", "alpaca", "oasst", "inst_text")
"""Schemas of conversations."""

CANNOT_BE_CUT = "dialogues, questions, contexts and documents with `loss: answers` cannot be cut"

_NO_LANGUAGE = ("openorca", "alpaca", "inst_text")
_LISTS = ("sharegpt", "messages")
_TASKS = ("p3", "natural_instructions")


class Filters(Frozen):
    """Which documents are too short to keep."""

    min_words: Annotated[Whole, Field(ge=0)] = 0
    """Least number of whitespace-separated words."""

    min_tokens: Annotated[Whole, Field(ge=0)] = 0
    """Least number of tokens, BOS and EOS not counted."""


class Fields(Frozen):
    """Where a record of another schema keeps what we need; dots go into nested objects."""

    text: Paths = ["text"]
    """The document's text; several fields are joined by a newline (of a list, its first item)."""

    origin: Names = []
    """What a person would call the document (title, URL, id); the first that is present."""

    prompt: str | None = None
    """A field that the text begins with and that `loss: answers` takes no loss on; without it,
    all but the last of several text fields."""


class Abstracts(Frozen):
    """Metadata whose abstracts are appended to the papers, as in Long-Data-Collections."""

    path: Paths
    """JSON lines with one record a paper."""

    local: Paths | None = None
    """The same below --data-root."""

    id: str = "id"
    """Field of the metadata that equals the document's origin."""

    abstract: str = "abstract"
    """Field that holds the abstract."""


SchemaName = Literal[
    "text", "redpajama", "long_data", "oig", "pile", "c4", "p3", "natural_instructions",
    "sharegpt", "messages", "prompt_completion", "openorca", "alpaca", "oasst", "inst_text",
]  # fmt: skip
FormatName = Literal["auto", "jsonl", "parquet", "arrow", "csv", "tsv", "text", "html", "tar"]


class Source(Frozen):
    """Where some of a mixture's documents come from, and how much of it they make up."""

    weight: Weight
    """Share of the mixture's tokens, relative to the other sources."""

    path: Paths
    """Files, globs or folders: local, hf://, gs://, s3://, https://."""

    local: Paths | None = None
    """The same data below --data-root."""

    format: FormatName = "auto"
    """How files are read; `auto` goes by the ending of the name."""

    unknown_files: Literal["stop", "skip"] = "stop"
    """What happens where a folder or glob has files with unknown endings beside known ones."""

    schema_: Annotated[SchemaName, Field(alias="schema")] = "text"
    """The published schema the records follow."""

    fields: Fields | None = None
    """Field names of a schema of your own, instead of `schema`."""

    ignore_fields: Names = []
    """Fields of records, and of the turns of conversations, that are read as if they were not
    there, although they may belong to the text or speak of loss or training."""

    abstracts: Abstracts | None = None
    """Metadata to join by the document's origin."""

    group: Names = []
    """What names the task of a record, beside what the schema knows: a field, the first that is
    present, or `file` for the name of its file."""

    filters: Filters | None = None
    """Instead of the mixture's filters."""

    decontam: SourceDecontam | None = None
    """Instead of single keys of the mixture's `decontam`."""

    dedup: Dedup | None = None
    """Near duplicates to leave out of the source; without it only equal texts are."""

    sample: Annotated[Real, Field(gt=0, le=1)] = 1.0
    """Share of the documents to look at, drawn by a hash of their text."""

    max_passes: Annotated[Real, Field(gt=0)] = 1.0
    """How often a document may be used before the build stops with an error."""

    policy: Literal["pack", "pad", "stream", "few_shot"] = "pack"
    """How documents become sequences."""

    stream_sequences: Annotated[Whole, Field(ge=1)] = 1
    """k: consecutive sequences of one stream that stay together (policy `stream` only)."""

    loss: Literal["all", "answers"] = "all"
    """Loss on every token, or on what the model has to answer alone."""

    hold_out: Names = []
    """Tasks to leave out; `*` stands for anything."""

    chat: Chat | None = None
    """Records are conversations, and how they become text."""

    fill_in: FillIn | None = None
    """Parts of each text are hidden, and the model has to fill them in."""

    long_qa: LongQA | None = None
    """Records are a long document with a question and its answer."""

    multi_document: MultiDocument | None = None
    """Records are questions, put before many passages."""

    promptsource: Promptsource | None = None
    """Records are put into a template of promptsource."""

    summary: Summary | None = None
    """Records are a chapter and its summary."""

    @model_validator(mode="after")
    def _consistent(self) -> "Source":
        if self.stream_sequences > 1 and self.policy != "stream":
            raise ValueError("stream_sequences needs `policy: stream`")
        if self.fields is not None and "schema_" in self.model_fields_set:
            raise ValueError("give either `schema` or `fields`, not both")
        templates = [name for name in TEMPLATES if getattr(self, name) is not None]
        if len(templates) > 1:
            raise ValueError(f"give one template, not {' and '.join(templates)}")
        self._check_template(templates[0] if templates else None)
        return self

    @property
    def must_fit(self) -> bool:
        """Whether documents are worth nothing in pieces: what asks and what answers go together."""
        asked = [name for name in TEMPLATES if name != "fill_in" and getattr(self, name)]
        answers = self.loss == "answers" and not self.fill_in
        return self.policy == "few_shot" or bool(asked) or answers

    @property
    def never_cut(self) -> bool:
        """Whether a document has to fit into a sequence; one that does not is dropped, or divided
        where its template allows it.
        """
        return self.must_fit or self.loss == "answers"

    def would_be_cut(self, general: Decontam | None) -> bool:
        """Whether `excise` is asked for documents that are worth nothing in pieces."""
        policy = (self.decontam and self.decontam.policy) or (general and general.policy)
        return policy == "excise" and self.must_fit

    @property
    def is_whole(self) -> bool:
        """Whether a pass uses all of a document or nothing of it, as far as that can be."""
        return self.never_cut and (self.policy != "stream" or self.loss == "answers")

    def _check_template(self, template: str | None) -> None:
        """What a template needs, and what needs a template."""
        if (self.schema_ in CHATS) != (template == "chat"):
            rule = f"`chat` and a schema of conversations need each other ({', '.join(CHATS)})"
            raise ValueError(rule)
        described = self.fields is not None or "schema_" in self.model_fields_set
        if template not in (None, "chat", "fill_in") and described:
            raise ValueError(f"{template} names fields itself; leave `schema` and `fields` out")
        if self.chat and self.chat.roles == "alternate" and self.schema_ not in _LISTS:
            raise ValueError(f"chat.roles: alternate needs schema {' or '.join(_LISTS)}")
        if self.chat and self.chat.filters.languages and self.schema_ in _NO_LANGUAGE:
            raise ValueError(f"chat.filters.languages: records of {self.schema_} name no language")
        if self.loss == "answers" and not (template or self._knows_answers()):
            raise ValueError(
                "loss: answers needs to know what the answers are: a template, a schema with "
                "prompts (long_data, p3, natural_instructions), or `fields` with a `prompt` or "
                "several texts"
            )
        tasks = self.schema_ in _TASKS or bool(self.group and self.fields)
        if self.policy == "few_shot" and not (
            template == "promptsource" or (tasks and not template)
        ):
            raise ValueError(
                "policy few_shot needs examples of tasks: schema p3 or natural_instructions, "
                "promptsource, or `fields` with a `group`"
            )

    def _knows_answers(self) -> bool:
        if self.fields:
            return self.fields.prompt is not None or len(self.fields.text) > 1
        return self.schema_ in (*_TASKS, "long_data")


class RankFile(Frozen):
    """What a tiktoken rank file leaves out."""

    pattern: str
    """Regular expression that splits text, as its library reads it."""

    special_tokens: dict[str, int] = {}
    """Special tokens and their ids, beside those that a tokenizer_config.json lists."""


class TokenizerSpec(Frozen):
    """Which vocabulary, and what stands around each document."""

    path: str
    """A model's folder, its tokenizer_config.json, or a tokenizer file: local, a URL,
    hf://OWNER/REPO[/FILE] or package://PACKAGE/FILE."""

    bos: Token = True
    """What stands before each document: true for the BOS that the model's files name, false for
    none, or a token of the vocabulary by its text or id."""

    eos: Token = True
    """What stands after each document, likewise."""

    tiktoken: RankUse | RankFile | None = None
    """Of a tiktoken rank file: what it belongs to (r50k_base, p50k_base, cl100k_base, o200k_base,
    o200k_harmony, llama3, llama4, qwen or kimi), or how it splits text. The files that Llama 3,
    Llama 4 and OpenAI published are known by their digests, but that of o200k_base, which has two
    uses."""

    @property
    def rank_file(self) -> RankUse | dict[str, Any] | None:
        """`tiktoken`, as plain values."""
        return self.tiktoken.model_dump() if isinstance(self.tiktoken, RankFile) else self.tiktoken


class Order(Frozen):
    """What the training order is balanced for."""

    global_batch: Annotated[Whole, Field(ge=1)] = 128
    """Sequences in one optimizer step; data-parallel sizes that divide it are balanced."""

    window: Annotated[Whole, Field(ge=1)] = 8
    """Global batches within which attention work is levelled."""


class Mixture(Frozen):
    """Weighted sources, a budget in tokens, and how they become sequences."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """A short name, for messages and the manifest."""

    tokens: Annotated[Whole, Field(ge=1)]
    """Real tokens of the finished data set; padding does not count."""

    seq_len: Annotated[Whole, Field(ge=128, le=1 << 24)] = 32768
    """Tokens in a sequence."""

    seed: Annotated[Whole, Field(ge=0)] = 0
    """What every random choice is derived from."""

    weight_by: Literal["tokens", "loss_tokens"] = "tokens"
    """Which tokens the weights are shares of."""

    tokenizer: TokenizerSpec
    """The vocabulary."""

    filters: Filters = Filters()
    """Length floors for all sources."""

    decontam: Decontam | None = None
    """Benchmarks to keep out of the data set; without it nothing is compared."""

    after: str | None = None
    """Folder of a finished data set that this one follows: documents it has used come last."""

    duplicates: Literal["drop", "keep"] = "drop"
    """What happens to a document whose text occurred before in the same source."""

    max_record_mib: Annotated[Whole, Field(ge=1, le=1024)] = 64
    """Records larger than this are dropped, with the reason `record_too_large`."""

    order: Order = Order()
    """Balance of the training order."""

    sequences_per_shard: Annotated[Whole, Field(ge=1)] = 1024
    """Sequences in one shard file."""

    sources: Annotated[dict[str, Source], Field(min_length=1)]
    """The sources by name."""

    @model_validator(mode="after")
    def _comparable(self) -> "Mixture":
        for name, source in self.sources.items():
            if source.decontam and not self.decontam:
                raise ValueError(f"sources.{name}.decontam needs `decontam.index` of the mixture")
            if source.would_be_cut(self.decontam):
                raise ValueError(
                    f"sources.{name}: {CANNOT_BE_CUT}; give `decontam.policy` drop, threshold or "
                    "none"
                )
            if source.dedup and self.duplicates == "keep":
                raise ValueError(f"sources.{name}.dedup needs `duplicates: drop` of the mixture")
        return self

    def filters_of(self, source: str) -> Filters:
        """The filters that hold for one source."""
        return self.sources[source].filters or self.filters

    def identity(self) -> dict[str, Any]:
        """What tells builds apart: the recipe, but for where the benchmark's index lies, and the
        data set that this one follows.
        """
        recipe = self.recipe()
        del recipe["after"]
        if recipe["decontam"]:
            del recipe["decontam"]["index"]
        return recipe

    def recipe(self) -> dict[str, Any]:
        """The whole mixture as plain JSON values, defaults included."""
        recipe = self.model_dump(mode="json", by_alias=True)
        for source in recipe["sources"].values():
            del source["schema" if source["fields"] else "fields"]  # one describes the records
        return recipe


def digest(*parts: object) -> str:
    """32 hexadecimal digits that identify a list of values by their text."""
    return hashlib.sha256("\0".join(str(part) for part in parts).encode()).hexdigest()[:32]

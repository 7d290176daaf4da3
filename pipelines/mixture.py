"""The mixture: which sources, in which shares, as one checked and immutable value.

`mixture_file.py` reads it from YAML; everything else of the build takes it as it stands here.
"""

import hashlib
import os
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _number(value: Any) -> Any:
    """YAML reads `yes` as true, and Python counts true as 1; no person means that."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not yes or no")
    return value


def _exact(value: Any) -> Any:
    """Weights are decimal numbers a person wrote: 0.1 means one tenth, not its float."""
    return Fraction(str(value)) if isinstance(_number(value), int | float) else value


Paths = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]
Weight = Annotated[Fraction, BeforeValidator(_exact), Field(gt=0)]
Whole = Annotated[int, BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]


class Frozen(BaseModel):
    """Immutable, and strict about keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


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

    origin: Annotated[list[str], BeforeValidator(_as_list)] = []
    """What a person would call the document (title, URL, id); the first that is present."""

    prompt: str | None = None
    """A field that the text begins with and that `loss: completion` takes no loss on; without it,
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


Action = Literal["drop", "excise", "threshold", "none"]
Boilerplate = Literal["keep", "drop"]
Margin = Annotated[Whole, Field(ge=0)]
Share = Annotated[Real, Field(ge=0, le=1)]


class SourceDecontam(Frozen):
    """What one source does otherwise than the mixture's `decontam` says."""

    policy: Action | None = None
    """Instead of the mixture's."""

    margin_words: Margin | None = None
    """Instead of the mixture's."""

    threshold: Share | None = None
    """Instead of the mixture's."""

    boilerplate: Boilerplate | None = None
    """Instead of the mixture's."""


class TaskRules(Frozen):
    """Which tasks of sources with a `group` are dropped whole, beside what the rule finds."""

    keep: dict[str, str] = {}
    """Tasks that stay although the rule would drop them, each with the reason."""

    drop: dict[str, str] = {}
    """Tasks that are dropped although the rule would keep them, each with the reason."""

    min_examples: Annotated[Whole, Field(ge=1)] = 1
    """Benchmark instances that a task has to hold to be dropped."""

    @model_validator(mode="after")
    def _consistent(self) -> "TaskRules":
        if both := sorted(set(self.keep) & set(self.drop)):
            raise ValueError(f"{both[0]} is in `keep` and in `drop`; decide")
        return self


class Decontam(Frozen):
    """Which benchmark texts are kept out of the data set, and how."""

    index: str
    """The benchmark's index, as `python -m decontam.build_index` writes it; local or remote."""

    n: Annotated[Whole, Field(ge=1)] | None = None
    """Words in a row that make an overlap; must be what the index was made with."""

    normalization: Literal["default", "helm"] | None = None
    """How words are compared; must be what the index was made with."""

    require: Annotated[list[str], BeforeValidator(_as_list)] = ["all"]
    """Scenarios that the index has to cover; `all`: every core scenario, `[]`: none."""

    policy: Action | None = None
    """What happens to a document with an overlap; default: `drop` for sources with a `group`,
    `excise` for others."""

    margin_words: Margin = 32
    """Words that `excise` cuts on each side of an overlap."""

    threshold: Share = 0.05
    """Share of its words from which on `threshold` drops a document."""

    boilerplate: Boilerplate = "keep"
    """Whether overlaps that are common everywhere are only reported, or treated like others."""

    tasks: TaskRules = TaskRules()
    """Tasks that are a benchmark in another format, and are dropped whole."""

    @property
    def path(self) -> str:
        """The index's path wherever a worker runs; a relative one is below the working folder."""
        return self.index if "://" in self.index else os.path.abspath(self.index)


class Dedup(Frozen):
    """Which documents of a source are too much like another one to keep both."""

    threshold: Annotated[Real, Field(ge=0.5, le=1)] = 0.8
    """Near duplicates have at least this share of their shingles in common (Jaccard similarity)."""

    contained: Annotated[Real, Field(ge=0.5, le=1)] | None = 0.8
    """A document with at least this share of its shingles in a longer one is dropped too; null:
    lengths must match."""

    shingle: Annotated[Whole, Field(ge=1, le=64)] = 5
    """Words in a row that make a shingle."""


SchemaName = Literal[
    "text", "redpajama", "long_data", "oig", "pile", "c4", "p3", "natural_instructions"
]
FormatName = Literal["auto", "jsonl", "parquet", "arrow", "text"]


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

    schema_: Annotated[SchemaName, Field(alias="schema")] = "text"
    """The published schema the records follow."""

    fields: Fields | None = None
    """Field names of a schema of your own, instead of `schema`."""

    abstracts: Abstracts | None = None
    """Metadata to join by the document's origin."""

    group: Annotated[list[str], BeforeValidator(_as_list)] = []
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

    policy: Literal["pack", "pad", "stream"] = "pack"
    """How documents become sequences."""

    stream_sequences: Annotated[Whole, Field(ge=1)] = 1
    """k: consecutive sequences of one stream that stay together (policy `stream` only)."""

    loss: Literal["all", "completion"] = "all"
    """Loss on every token, or not on the prompt."""

    @model_validator(mode="after")
    def _consistent(self) -> "Source":
        if self.stream_sequences > 1 and self.policy != "stream":
            raise ValueError("stream_sequences needs `policy: stream`")
        if self.fields is not None and "schema_" in self.model_fields_set:
            raise ValueError("give either `schema` or `fields`, not both")
        return self


class TokenizerSpec(Frozen):
    """Which vocabulary, and what stands around each document."""

    path: str
    """A SentencePiece .model or a tokenizer.json: a file, hf://OWNER/REPO/FILE or
    package://PACKAGE/FILE."""

    bos: bool = True
    """Put the begin-of-sequence token before each document."""

    eos: bool = True
    """Put the end-of-sequence token after each document."""


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
            if source.dedup and self.duplicates == "keep":
                raise ValueError(f"sources.{name}.dedup needs `duplicates: drop` of the mixture")
        return self

    def filters_of(self, source: str) -> Filters:
        """The filters that hold for one source."""
        return self.sources[source].filters or self.filters

    def identity(self) -> dict[str, Any]:
        """What tells builds apart: the recipe, but for where the benchmark's index lies."""
        recipe = self.recipe()
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

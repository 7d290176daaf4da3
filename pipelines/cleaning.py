"""What a mixture says about benchmarks to keep out, and about near duplicates."""

import os
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field, model_validator

from pipelines.options import Frozen, Real, Share, Whole

Action = Literal["drop", "excise", "threshold", "none"]
Boilerplate = Literal["keep", "drop"]
Margin = Annotated[Whole, Field(ge=0)]


def _shares(value: Any) -> Any:
    """A name or a list of names asks for anything of each."""
    names = [value] if isinstance(value, str) else value
    return dict.fromkeys(names, 0.0) if _are_names(names) else value


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in cast(list[Any], value))


Require = Annotated[dict[str, Share], BeforeValidator(_shares)]
"""Least share of each scenario's published instances; 0 is content with a single instance."""


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

    require: Require = {"all": 0.0}
    """Scenarios that the index has to cover; `all`: every core scenario, `[]`: none. A mapping says
    how much of them: `{all: 0.9, raft: 0.5}`."""

    policy: Action | None = None
    """What happens to a document with an overlap; default: `drop` for sources with a `group` or a
    template for dialogues or questions, `excise` for others."""

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

"""Everything, beside the input, that the tokens of a document depend on."""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from pipelines.decontaminate import DecontamSpec
from pipelines.mixture import Filters, digest
from pipelines.schemas import Schema
from pipelines.sketch import SketchSpec
from pipelines.templates.choice import TemplateSpec
from pipelines.tokenizer_file import TokenizerFile


@dataclass(frozen=True)
class PrepareSpec:
    """Everything, beside the input, that the tokens of a document depend on."""

    schema: Schema
    answers_only: bool
    filters: Filters
    sample: float
    max_record: int
    tokenizer: TokenizerFile
    abstracts: str | None
    """Path of the abstract index; its name is a digest of its content's origin."""

    code: str
    """Digest of the modules that do the work."""

    decontam: DecontamSpec | None = None
    sketch: SketchSpec | None = None
    """How near duplicates are told; None where nobody looks for them."""

    few_shot: bool = False
    """Documents are examples that share a context with others of their task."""

    hold_out: tuple[str, ...] = ()
    """Tasks whose documents are dropped."""

    max_tokens: int | None = None
    """Documents with more are shortened where their template allows it, or dropped."""

    template: TemplateSpec | None = None
    """What makes documents of records, or of texts, instead of the schema."""

    @property
    def names_tasks(self) -> bool:
        """Whether documents belong to tasks that their template names."""
        return self.template is not None and self.template.name == "promptsource"

    @cached_property
    def digest(self) -> str:
        """Names the folder of the token store."""
        abstracts = self.abstracts.rsplit("/", 1)[-1] if self.abstracts else None
        return digest(
            self.documents_digest, abstracts, self.tokenizer.digest, self.max_tokens,
            self.decontam.digest if self.decontam else None,
            *([self.sketch.digest] if self.sketch else []),
        )  # fmt: skip

    @cached_property
    def documents_digest(self) -> str:
        """What the documents depend on before anything is compared or tokenized."""
        return digest(
            self.schema, self.answers_only, self.filters, self.sample, self.max_record, self.code,
            self.few_shot, self.hold_out, self.template.digest if self.template else None,
        )  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """What a folder of the token store says of itself."""
        return {
            "schema": asdict(self.schema),
            "loss": "answers" if self.answers_only else "all",
            "few_shot": self.few_shot,
            "hold_out": self.hold_out,
            "max_tokens": self.max_tokens,
            "template": self.template.describe() if self.template else None,
            "filters": self.filters.model_dump(),
            "sample": self.sample,
            "max_record_bytes": self.max_record,
            "tokenizer_digest": self.tokenizer.digest,
            "abstracts": self.abstracts,
            "program": self.code,
            "decontam": self.decontam.describe() if self.decontam else None,
            "sketch": self.sketch.describe() if self.sketch else None,
        }

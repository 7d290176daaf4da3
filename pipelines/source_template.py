"""What a source of a mixture says about templates → the template, read and tried."""

from dataclasses import replace

from pipelines import files
from pipelines.errors import UserError
from pipelines.mixture import Mixture
from pipelines.retrieval import build_index, list_passages
from pipelines.templates.choice import TemplateSpec, chosen_template
from pipelines.templates.jinja_source import read_template
from pipelines.tokenizer_file import TokenizerFile, reference


def template_spec(
    name: str, mixture: Mixture, tokenizer: TokenizerFile, data_root: str | None, store: str
) -> TemplateSpec | None:
    """The template of a source, read and tried."""
    source = mixture.sources[name]
    if (found := chosen_template(source)) is None:
        return None
    key, options = found
    truth = reference(tokenizer)
    spec = TemplateSpec(
        name=key,
        options=options,
        schema=source.schema_,
        seed=mixture.seed,
        seq_len=mixture.seq_len,
        few_shot=source.policy == "few_shot",
        ignored=tuple(sorted(source.ignore_fields)),
        learns_all=source.loss == "all",
        special=tuple(truth.specials),
        bos=tokenizer.bos_token.text,
        eos=tokenizer.eos_token.text,
    )
    try:
        if source.chat and source.chat.jinja:
            spec = replace(spec, jinja=read_template(source.chat.jinja))
        if source.promptsource:
            spec = replace(spec, content=_content(source.promptsource.path))
        if source.multi_document:
            inputs = list_passages(source.multi_document.passages, data_root=data_root)
            spec = replace(spec, passages=build_index(source.multi_document, inputs, store))
        if spec.reads_records:
            # A template that cannot be used is found before anything is read.
            spec = replace(spec, warning=spec.renderer().warning)
    except UserError as error:
        raise UserError(f"sources.{name}.{key}: {error}") from error
    return spec


def _content(path: str) -> bytes:
    try:
        return files.read_bytes(path)
    except OSError as error:
        raise UserError(f"path: cannot read {path}: {error}") from error

"""Everything a build needs to know before it reads a document: inputs, splits, specs, folders."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pipelines import files
from pipelines.abstracts import build_index, list_abstracts
from pipelines.after import followed
from pipelines.benchmark_index import load_index, open_index
from pipelines.decontaminate import DecontamSpec, policy_of
from pipelines.errors import FaultsError, UserError
from pipelines.mixture import Mixture, Source, digest
from pipelines.prepare_spec import PrepareSpec
from pipelines.records import InputFile, Split
from pipelines.schemas import schema_of
from pipelines.sketch import SketchSpec
from pipelines.source_template import template_spec
from pipelines.sources import list_source, plan_splits
from pipelines.tokenizer import TokenizerFile

if TYPE_CHECKING:
    from decontam.index import Index

# What the bytes of the token store and of the shards depend on. A change in one of these modules
# makes other names, so that nothing made by older code is ever mistaken for the new.
_STORE_MODULES = ("abstracts", "chat_filters", "chat_options", "chat_schemas", "conversations",
                  "decontaminate", "documents", "encode", "filters", "hub", "prepare",
                  "prepare_spec", "readers", "records", "references", "rendering", "retrieval",
                  "schemas", "segment_cache", "sentencepiece_model", "sources", "store",
                  "task_files", "templates/chat", "templates/choice", "templates/denoisers",
                  "templates/few_shot", "templates/fill_in", "templates/jinja_chat",
                  "templates/jinja_source", "templates/long_qa", "templates/multi_document",
                  "templates/oig_dialogue", "templates/passages", "templates/plain",
                  "templates/promptsource", "templates/promptsource_file", "templates/summary",
                  "templates/values", "tokenizer")  # fmt: skip
_SHARD_MODULES = ("after", "arrange", "audit", "candidates", "clusters", "contexts", "corpus",
                  "dedup", "evidence", "finish", "gather", "mixing", "near_duplicates", "ordering",
                  "packing", "planning", "quota", "rows", "shards", "spans", "tasks", "units",
                  "xxh3")  # fmt: skip
_DECONTAM_MODULES = ("bands", "character_kernels", "excerpt", "grid", "index", "index_file", "lsh",
                     "minhash", "normalize", "policy", "records", "report", "search",
                     "search_kernels", "window_kernels", "windows", "word_kernels")  # fmt: skip
_TASK_MODULES = ("bands", "candidates", "likeness", "lsh", "minhash", "tasks", "window_kernels",
                 "windows")  # fmt: skip
_SKETCH_MODULES = ("bands", "character_kernels", "minhash", "normalize", "sketches",
                   "word_kernels")  # fmt: skip
_EDGE_MODULES = ("candidates", "edge_kernels")


@dataclass(frozen=True)
class SourceJob:
    """One source of a build."""

    name: str
    inputs: list[InputFile]
    splits: list[Split]
    spec: PrepareSpec
    store: str
    """Folder of the token store that holds this source's batches."""

    @property
    def has_tasks(self) -> bool:
        """Whether its documents belong to tasks that are compared with benchmarks."""
        named = bool(self.spec.schema.group) or self.spec.names_tasks
        return self.spec.decontam is not None and named

    def without(self, tasks: Mapping[str, str]) -> "SourceJob":
        """The same source but for tasks that are dropped whole, each with the evidence."""
        if self.spec.decontam is None:
            raise ValueError(f"{self.name}: not compared with any benchmark")
        decontam = replace(self.spec.decontam, dropped_groups=tasks)
        spec = replace(self.spec, decontam=decontam)
        return replace(self, spec=spec, store=f"{self.store.rpartition('/')[0]}/{spec.digest}")


@dataclass(frozen=True)
class Job:
    """A build, fully determined."""

    mixture: Mixture
    tokenizer: TokenizerFile
    sources: list[SourceJob]
    output: str
    benchmark: str | None = None
    """Path of the index of benchmarks that documents are compared with."""

    scratch: TemporaryDirectory[str] | None = None
    """Of a dry run: what it had to write, removed with it."""

    @property
    def work(self) -> str:
        """Folder of files that only the running build needs."""
        return files.join(self.output, "build")

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """What identifies the build, part by part, so that a mismatch can be named."""
        inputs = [(s.name, f.name, f.size, f.identity) for s in self.sources for f in s.inputs]
        parts = {
            "mixture": digest(self.mixture.identity()),
            "tokenizer": self.tokenizer.digest,
            "input files": digest(inputs),
            "program": program_digest(),
        }
        if self.benchmark:
            parts["benchmark index"] = load_index(self.benchmark).header["digest"]
        if self.mixture.after:
            parts["data set that it follows"] = followed(self.mixture.after)
        return parts


def code_digest(modules: Iterable[str], package: str = "pipelines") -> str:
    """Digest of the source of modules of a package of this project."""
    folder = Path(__file__).parents[1] / package
    sources = [(folder / f"{module}.py").read_bytes() for module in modules]
    return hashlib.sha256(b"\0".join(sources)).hexdigest()[:32]


@cache
def task_code() -> str:
    """Digest of the code that finds what resembles a benchmark, beside that of `DecontamSpec`."""
    return digest(code_digest(["candidates"]), code_digest(_TASK_MODULES, "decontam"))


@cache
def program_digest() -> str:
    """Digest of the code that the bytes of a data set depend on."""
    return digest(
        code_digest(_STORE_MODULES),
        code_digest(_SHARD_MODULES),
        code_digest(_DECONTAM_MODULES, "decontam"),
        task_code(),
        code_digest((*_SKETCH_MODULES, *_EDGE_MODULES), "decontam"),
    )


def assemble(
    mixture: Mixture,
    tokenizer: TokenizerFile,
    *,
    data_root: str | None,
    store: str,
    output: str,
    dry_run: bool = False,
) -> Job:
    """List the inputs of all sources and cut them into splits.

    A dry run leaves nothing behind and makes no index of abstracts; its job is for estimates only.

    Raises:
        FaultsError: inputs are missing or unreadable, or the benchmark's index is not the one the
            mixture asks for; all of it is named.
    """
    index, faults = open_index(mixture.decontam) if mixture.decontam else (None, [])
    sources: list[SourceJob] = []
    code = code_digest(_STORE_MODULES)
    scratch = TemporaryDirectory() if dry_run else None
    aside = scratch.name if scratch else None
    if mixture.after:
        try:
            followed(mixture.after)
        except UserError as error:
            faults.append(str(error))
    for name in mixture.sources:
        try:
            sources.append(
                _source_job(name, mixture, tokenizer, data_root, store, code, index, aside)
            )
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise FaultsError(f"mixture {mixture.name}", faults)
    benchmark = mixture.decontam and mixture.decontam.path
    return Job(mixture, tokenizer, sources, output, benchmark, scratch)


def _source_job(
    name: str,
    mixture: Mixture,
    tokenizer: TokenizerFile,
    data_root: str | None,
    store: str,
    code: str,
    index: "Index | None",
    scratch: str | None,
) -> SourceJob:
    source = mixture.sources[name]
    inputs = list_source(name, source, data_root=data_root)
    abstracts = None
    if source.abstracts:
        metadata = list_abstracts(name, source.abstracts, data_root=data_root)
        abstracts = None if scratch else build_index(source.abstracts, metadata, store)
    schema = schema_of(source)
    spec = PrepareSpec(
        schema=schema,
        answers_only=source.loss == "answers",
        filters=mixture.filters_of(name),
        sample=source.sample,
        max_record=mixture.max_record_mib << 20,
        tokenizer=tokenizer,
        abstracts=abstracts,
        code=code,
        decontam=_decontam_spec(
            mixture, name, index, grouped=bool(schema.group) or source.must_fit
        ),
        sketch=_sketch_spec(source),
        few_shot=source.policy == "few_shot",
        hold_out=tuple(source.hold_out),
        max_tokens=mixture.seq_len if source.must_fit else None,
        template=template_spec(name, mixture, tokenizer, data_root, scratch or store),
    )
    splits = plan_splits(name, source, inputs)
    return SourceJob(name, inputs, splits, spec, files.join(store, spec.digest))


def _sketch_spec(source: Source) -> SketchSpec | None:
    if source.dedup is None:
        return None
    code = digest(code_digest(["sketch"]), code_digest(_SKETCH_MODULES, "decontam"))
    return SketchSpec(source.dedup.shingle, code)


def _decontam_spec(
    mixture: Mixture, name: str, index: "Index | None", *, grouped: bool
) -> DecontamSpec | None:
    policy = policy_of(mixture, name, grouped=grouped)
    if policy is None or mixture.decontam is None or index is None:
        return None
    code = code_digest(_DECONTAM_MODULES, "decontam")
    return DecontamSpec(mixture.decontam.path, index.header["digest"], policy, code)


def claim_output(job: Job, *, dry_run: bool = False) -> bool:
    """Take the output folder for this build; a dry run only looks whether it could be taken.

    Returns:
        True where the folder already holds this very build, finished.

    Raises:
        UserError: the folder holds another build, or files that are no build.
    """
    path = files.join(job.output, "build.json")
    if files.exists(path):
        found = files.read_json(path)
        parts = {**job.fingerprint, **found}
        different = [part for part in parts if found.get(part) != job.fingerprint.get(part)]
        if different:
            raise UserError(
                f"{job.output}: holds another build; different: {', '.join(different)}. Give "
                "another --output, or remove the folder (the token store is kept apart from it)"
            )
        return files.exists(files.join(job.output, "manifest.json"))
    if names := files.list_names(job.output):
        raise UserError(
            f"{job.output}: not empty, and no build of this program (it holds {names[0]}); give "
            "another --output"
        )
    if not dry_run:
        files.write_json(path, job.fingerprint)
    return False

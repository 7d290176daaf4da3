"""Everything a build needs to know before it reads a document: inputs, splits, specs, folders."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pipelines import files
from pipelines.abstracts import build_index, list_abstracts
from pipelines.after import followed
from pipelines.benchmark_index import load_index, open_index
from pipelines.cleaning import Decontam
from pipelines.decontaminate import DecontamSpec, policy_of
from pipelines.errors import FaultsError, UserError
from pipelines.listing import PassedOver
from pipelines.mixture import Mixture, Source, digest
from pipelines.prepare_spec import PrepareSpec
from pipelines.records import InputFile, Split
from pipelines.schemas import schema_of
from pipelines.sketch import SketchSpec
from pipelines.source_template import template_spec
from pipelines.sources import list_source, plan_splits
from pipelines.tokenizer_file import TokenizerFile

if TYPE_CHECKING:
    from decontam.index import Index


@dataclass(frozen=True)
class SourceJob:
    """One source of a build."""

    name: str
    inputs: list[InputFile]
    splits: list[Split]
    spec: PrepareSpec
    store: str
    """Folder of the token store that holds this source's batches."""

    passed_over: tuple[PassedOver, ...] = ()
    """Files of its folders that are no documents."""

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


@cache
def code_digest(package: str) -> str:
    """Digest of every module of a package of this project, by path and content.

    The names of stored tokens and shards hold it, so that nothing made by older code is taken for
    the new. Code is hashed, whole, and not versioned by hand: a version is a promise that somebody
    remembers at every change, and a list of modules one at every move; where either is forgotten,
    old tokens enter a new data set without a word. A digest that changes too often costs a build.
    """
    folder = Path(__file__).parents[1] / package
    modules = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))
    return digest([(name, (folder / name).read_text()) for name in modules])


@cache
def program_digest() -> str:
    """Digest of the code that the bytes of a data set depend on."""
    return digest(code_digest("pipelines"), code_digest("decontam"))


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
    code = code_digest("pipelines")
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
        except FaultsError as error:
            faults += error.faults
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
    listing = list_source(name, source, data_root=data_root)
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
        decontam=_decontam_spec(source, mixture.decontam, index),
        sketch=_sketch_spec(source),
        few_shot=source.policy == "few_shot",
        hold_out=tuple(source.hold_out),
        max_tokens=mixture.seq_len if source.never_cut else None,
        template=template_spec(name, mixture, tokenizer, data_root, scratch or store),
    )
    splits = plan_splits(name, source, listing.files)
    folder = files.join(store, spec.digest)
    return SourceJob(name, listing.files, splits, spec, folder, listing.passed_over)


def _sketch_spec(source: Source) -> SketchSpec | None:
    if source.dedup is None:
        return None
    return SketchSpec(source.dedup.shingle, program_digest())


def _decontam_spec(
    source: Source, general: Decontam | None, index: "Index | None"
) -> DecontamSpec | None:
    policy = policy_of(source, general)
    if policy is None or general is None or index is None:
        return None
    return DecontamSpec(general.path, index.header["digest"], policy, code_digest("decontam"))


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

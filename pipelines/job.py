"""Everything a build needs to know before it reads a document: inputs, splits, specs, folders."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from pipelines import files
from pipelines.abstracts import build_index, list_abstracts
from pipelines.errors import FaultsError, UserError
from pipelines.mixture import Mixture, digest
from pipelines.prepare import PrepareSpec
from pipelines.records import InputFile, Split
from pipelines.schemas import schema_of
from pipelines.sources import list_source, plan_splits
from pipelines.tokenizer import TokenizerFile

# What the bytes of the token store and of the shards depend on. A change in one of these modules
# makes other names, so that nothing made by older code is ever mistaken for the new.
_STORE_MODULES = ("abstracts", "filters", "hub", "prepare", "readers", "records", "references",
                  "schemas", "segment_cache", "sentencepiece_model", "sources", "store",
                  "templates/plain", "tokenizer")  # fmt: skip
_SHARD_MODULES = ("arrange", "audit", "corpus", "finish", "gather", "mixing", "ordering", "packing",
                  "planning", "rows", "shards", "xxh3")  # fmt: skip


@dataclass(frozen=True)
class SourceJob:
    """One source of a build."""

    name: str
    inputs: list[InputFile]
    splits: list[Split]
    spec: PrepareSpec
    store: str
    """Folder of the token store that holds this source's batches."""


@dataclass(frozen=True)
class Job:
    """A build, fully determined."""

    mixture: Mixture
    tokenizer: TokenizerFile
    sources: list[SourceJob]
    output: str

    @property
    def work(self) -> str:
        """Folder of files that only the running build needs."""
        return files.join(self.output, "build")

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """What identifies the build, part by part, so that a mismatch can be named."""
        inputs = [(s.name, f.name, f.size, f.identity) for s in self.sources for f in s.inputs]
        return {
            "mixture": digest(self.mixture.recipe()),
            "tokenizer": self.tokenizer.digest,
            "input files": digest(inputs),
            "program": program_digest(),
        }


def code_digest(modules: Iterable[str]) -> str:
    """Digest of the source of modules of this package."""
    package = Path(__file__).parent
    sources = [(package / f"{module}.py").read_bytes() for module in modules]
    return hashlib.sha256(b"\0".join(sources)).hexdigest()[:32]


@cache
def program_digest() -> str:
    """Digest of the code that the bytes of a data set depend on."""
    return digest(code_digest(_STORE_MODULES), code_digest(_SHARD_MODULES))


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

    A dry run writes no index of abstracts; its job is for estimates only.

    Raises:
        FaultsError: inputs are missing or unreadable; all of them are named.
    """
    faults: list[str] = []
    sources: list[SourceJob] = []
    code = code_digest(_STORE_MODULES)
    for name in mixture.sources:
        try:
            sources.append(_source_job(name, mixture, tokenizer, data_root, store, code, dry_run))
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise FaultsError(f"mixture {mixture.name}", faults)
    return Job(mixture, tokenizer, sources, output)


def _source_job(
    name: str,
    mixture: Mixture,
    tokenizer: TokenizerFile,
    data_root: str | None,
    store: str,
    code: str,
    dry_run: bool,
) -> SourceJob:
    source = mixture.sources[name]
    inputs = list_source(name, source, data_root=data_root)
    abstracts = None
    if source.abstracts:
        metadata = list_abstracts(name, source.abstracts, data_root=data_root)
        abstracts = None if dry_run else build_index(source.abstracts, metadata, store)
    spec = PrepareSpec(
        schema=schema_of(source),
        completion_only=source.loss == "completion",
        filters=mixture.filters_of(name),
        sample=source.sample,
        max_record=mixture.max_record_mib << 20,
        tokenizer=tokenizer,
        abstracts=abstracts,
        code=code,
    )
    splits = plan_splits(name, source, inputs)
    return SourceJob(name, inputs, splits, spec, files.join(store, spec.digest))


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
        different = [part for part in job.fingerprint if found.get(part) != job.fingerprint[part]]
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

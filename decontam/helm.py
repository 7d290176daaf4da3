"""Benchmark instances, wherever they lie: run directories, light scenarios, published files.

`load_benchmark` reads what a benchmark file (`benchmark_file.py`) declares, and says what is
missing.
HELM's own files need no templates: they hold every text as a model gets it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from decontam.benchmark_file import BenchmarkFile, Parts, Scenario, load_benchmark_file
from decontam.benchmark_sources import SourceFile, source_files
from decontam.helm_files import Batch, light_batches, run_batches
from decontam.published import (
    file_records,
    hub_records,
    matching_files,
    own_records,
    published_instances,
)
from decontam.records import DecontamError, Instance
from decontam.template import did_you_mean

SPLITS = ("train", "valid", "test")
"""The splits that HELM knows."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """What was found of one scenario."""

    scenario: str
    core: bool
    found: tuple[str, ...]
    """Files and hub data sets that hold some of it, in the order of reading."""

    splits: Mapping[str, int]
    """Instances found, by split, those of splits that are not asked for too."""

    instances: int
    """Instances in the benchmark: of the splits that are asked for, each once."""

    problem: str
    """Why there is none; empty where there are some."""

    asked: tuple[str, ...] = ()
    """The splits that are looked for."""

    published: Mapping[str, int] = field(default_factory=dict[str, int])
    """Instances of the whole scenario by split, where they are known."""

    distinct: Mapping[str, int] = field(default_factory=dict[str, int])
    """Of these, found: augmented and contrast copies of an instance are not counted."""

    limits: tuple[int, ...] = ()
    """Values of `max_eval_instances` that runs reached: they hold samples."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Instances by scenario, in the order of the benchmark file, and what was found."""

    instances: tuple[Instance, ...]
    coverage: tuple[Coverage, ...]
    ignored: tuple[str, ...]
    """Scenarios that the sources hold and the benchmark file does not name, with their places."""

    @property
    def missing_core(self) -> tuple[str, ...]:
        """Core scenarios without a single instance."""
        return tuple(row.scenario for row in self.coverage if row.core and not row.instances)


def load_benchmark(
    path: str | Path,
    *,
    sources: Sequence[str | Path],
    scenarios: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    parts: Parts | None = None,
    hub: bool = False,
) -> Benchmark:
    """Read the instances of a benchmark file's scenarios.

    An instance that several sources hold is there once, with the references of all of them. A
    reference is a right answer unless a source says that it is not: light scenarios carry no tags.

    Args:
        path: the benchmark file, such as `benchmark_file.HELM_CORE`.
        sources: run directories, light-scenario files, folders that hold such or the scenarios'
            own published files at any depth, or these files themselves; `.gz` and `.zst` too.
        scenarios: names of the scenarios to look for; by default those with `use: true`.
        splits: train, valid, test; by default as the file says. Instances without one are taken.
        parts: as the file says by default. An instance of `input` has no references; one of
            `reference` has an empty input.
        hub: whether to read the scenarios' hub data sets too, over the network.

    Raises:
        DecontamError: a fault in the benchmark file, an unknown scenario or split, a source that is
            missing, damaged or holds nothing known, an empty scenario, or an instance without
            text.
    """
    file = load_benchmark_file(path)
    used = _used(file, scenarios, str(path))
    for split in splits or ():
        if split not in SPLITS:
            raise DecontamError(f"there is no split '{split}'; HELM has {', '.join(SPLITS)}")
    gathered = {name: _Gathered() for name in file.scenarios}
    ignored: dict[str, None] = {}
    for source in sources:
        known = False
        for batch in _batches(file, source_files(source)):
            known = known or bool(batch.name)
            if not batch.name:
                ignored[f"{batch.called} in {batch.paths[0]}"] = None
            elif batch.name in used:
                gathered[batch.name].add(batch)
        if not known:
            raise DecontamError(
                f"{source}: holds no scenario of {path}: no run directory, light scenario or "
                f"published file under a name that it declares; is it the right path?"
            )
    for batch in _elsewhere(file, used, Path(path).parent, hub=hub):
        gathered[batch.name].add(batch)
    instances: list[Instance] = []
    coverage: list[Coverage] = []
    for name, scenario in file.scenarios.items():
        found = gathered[name]
        choice = _Choice(
            splits or scenario.splits or file.splits, parts or scenario.parts or file.parts
        )
        kept = found.kept(scenario, choice)
        problem = "" if kept else found.problem(choice) if name in used else "switched off"
        paths = tuple(found.paths)
        row = Coverage(
            name, scenario.core, paths, found.splits(), len(kept), problem, tuple(choice.splits),
            scenario.published.splits if scenario.published else {},
            found.distinct(scenario), tuple(sorted(found.limits)),
        )  # fmt: skip
        instances += kept
        coverage.append(row)
    return Benchmark(tuple(instances), tuple(coverage), tuple(ignored))


def coverage_table(benchmark: Benchmark) -> str:
    """The coverage as a table of text: a line for each scenario, then what was ignored."""
    rows = [("scenario", "core", "instances", "splits found", "where, or why not")]
    for row in benchmark.coverage:
        found = ", ".join(f"{split or 'none'} {n:,}" for split, n in row.splits.items())
        where = row.problem or row.found[0] + (f" + {n} more" if (n := len(row.found) - 1) else "")
        rows.append((row.scenario, "core" if row.core else "", f"{row.instances:,}", found, where))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        f"{name:{widths[0]}}  {core:{widths[1]}}  {n:>{widths[2]}}  {found:{widths[3]}}  {where}"
        for name, core, n, found, where in rows
    ]
    return "\n".join(
        [*lines, *(f"not in the benchmark file: {name}" for name in benchmark.ignored)]
    )


class _Choice(NamedTuple):
    splits: Sequence[str]
    parts: Parts


class _Gathered:
    """The instances of one scenario found so far."""

    def __init__(self) -> None:
        self.instances: dict[tuple[str, str, str, str], Instance] = {}
        self.paths: dict[str, None] = {}
        self.limits: set[int] = set()

    def add(self, batch: Batch) -> None:
        """Add what one place holds."""
        empty = True
        evaluated: set[str] = set()
        for place, instance in batch.drafts:
            empty = False
            if instance.split != "train":
                evaluated.add(instance.id or instance.input)
            if not instance.input.strip():
                raise DecontamError(
                    f"{place}: instance {instance.id} of scenario {batch.name} has no text; mend "
                    f"the file, or switch the scenario off (scenarios.{batch.name}.use: false)"
                )
            key = (instance.variant, instance.split, instance.id, instance.input)
            known = self.instances.get(key)
            self.instances[key] = instance if known is None else _merged(known, instance)
        if empty:
            raise DecontamError(
                f"{batch.paths[0]}: scenario {batch.name} ({batch.called}) is empty there; fetch "
                f"the file again, or leave it out"
            )
        self.paths.update(dict.fromkeys(batch.paths))
        if batch.limit is not None and len(evaluated) >= batch.limit:
            self.limits.add(batch.limit)

    def distinct(self, scenario: Scenario) -> dict[str, int]:
        """Instances by split; those of one id are augmented or contrast copies of each other."""
        by_input = scenario.published is not None and scenario.published.counted == "inputs"
        seen = {
            (i.split, i.input if by_input else (i.variant, i.id or i.input))
            for i in self.instances.values()
        }
        return dict(sorted(Counter(split for split, _ in seen).items()))

    def kept(self, scenario: Scenario, choice: _Choice) -> list[Instance]:
        """The instances to look for."""
        wanted = [i for i in self.instances.values() if _wanted(i, choice)]
        if choice.parts == "reference":
            return [replace(instance, input="") for instance in wanted if instance.references]
        if choice.parts == "input":
            wanted = [replace(instance, references=(), correct=()) for instance in wanted]
        return [
            replace(instance, question=question_start(instance.input, scenario.question))
            for instance in wanted
        ]

    def problem(self, choice: _Choice) -> str:
        """Why there is nothing to look for."""
        if not self.instances:
            return "missing"
        if any(_wanted(instance, choice) for instance in self.instances.values()):
            return "no references"
        return f"nothing in {' and '.join(choice.splits)}"

    def splits(self) -> dict[str, int]:
        """Instances by split."""
        return dict(Counter(instance.split for instance in self.instances.values()))


def _wanted(instance: Instance, choice: _Choice) -> bool:
    return instance.split in choice.splits or instance.split not in SPLITS


def question_start(text: str, question: str) -> int:
    """Character at which the question of an input begins; `question` as in `Scenario.question`.

    An input without the marker is all question.
    """
    if question in ("all", "none"):
        return 0 if question == "all" else len(text)
    place = text.rfind(question)
    return place + len(question) if place >= 0 else 0


def _merged(one: Instance, other: Instance) -> Instance:
    """One instance with the references of both; a source that calls one wrong is believed."""
    if one == other:
        return one
    correct = dict(zip(one.references, one.correct, strict=True))
    for reference, right in zip(other.references, other.correct, strict=True):
        correct[reference] = correct.get(reference, True) and right
    return replace(one, references=tuple(correct), correct=tuple(correct.values()))


def _used(file: BenchmarkFile, scenarios: Sequence[str] | None, path: str) -> set[str]:
    if scenarios is None:
        return {name for name, scenario in file.scenarios.items() if scenario.use}
    for name in scenarios:
        if name not in file.scenarios:
            hint = did_you_mean(name, file.scenarios) or f"; known: {', '.join(file.scenarios)}"
            raise DecontamError(f"{path}: there is no scenario '{name}'{hint}")
    return set(scenarios)


def _batches(file: BenchmarkFile, files: Sequence[SourceFile]) -> Iterator[Batch]:
    """All that files hold: HELM's own forms, then the scenarios' own."""
    yield from run_batches(file, files)
    yield from light_batches(file, files)
    for name, scenario in file.scenarios.items():
        for location in scenario.locations:
            matches = matching_files(location, files)
            records = chain.from_iterable(
                file_records(location, source, rule, extra) for rule, source, extra in matches
            )
            if matches:
                drafts = published_instances(name, scenario, location, records)
                paths = tuple(source.path for _, source, _ in matches)
                yield Batch(name, "published files", paths, drafts)


def _elsewhere(file: BenchmarkFile, used: set[str], folder: Path, *, hub: bool) -> Iterator[Batch]:
    """What the used scenarios have outside the sources: files of one's own, hub data sets."""
    for name, scenario in file.scenarios.items():
        for location in scenario.locations if name in used else ():
            if location.path:
                place, records = own_records(location, folder)
                drafts = published_instances(name, scenario, location, records)
                yield Batch(name, "path", (place,), drafts)
            if location.hub and hub:
                drafts = published_instances(name, scenario, location, hub_records(location))
                yield Batch(name, "hub", (f"hf://{location.hub}",), drafts)

"""HELM's own files: run directories and light scenarios, with every text as a model gets it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from decontam.benchmark_file import BenchmarkFile, HelmName
from decontam.benchmark_sources import Draft, SourceFile, json_lines, json_value
from decontam.records import DecontamError, Instance

_RUN_FILES = ("instances.json", "scenario_state.json")
"""Either holds a run's instances; the first where both are there."""

_RUN_KEY = r"(?:data_augmentation|only_contrast|eval_split|valid_topk|model_deployment|[a-z]+)"
"""Names of arguments in the names of run directories: of several words, or of one."""


class Named(NamedTuple):
    """A scenario of the benchmark file, recognised in a file of HELM's."""

    scenario: str
    variant: str


class Batch(NamedTuple):
    """Instances of one scenario in one place."""

    name: str
    """The scenario's name in the benchmark file; empty if it is not there."""

    called: str
    """What the file itself calls the scenario."""

    paths: tuple[str, ...]
    """The files."""

    drafts: Iterator[Draft]

    limit: int | None = None
    """Of a run: evaluation instances that it takes at most, `max_eval_instances`."""


def run_batches(file: BenchmarkFile, files: Sequence[SourceFile]) -> Iterator[Batch]:
    """The run directories among files: a folder with `instances.json` or `scenario_state.json`.

    Its scenario is what `run_spec.json` says, or else the folder's name, such as
    `mmlu:subject=anatomy,model=text` or `mmlu_subject-anatomy_model-text`.
    """
    by_folder: dict[str, dict[str, SourceFile]] = {}
    for source in files:
        folder, _, name = source.name.rpartition("/")
        if name in (*_RUN_FILES, "run_spec.json"):
            by_folder.setdefault(folder, {})[name] = source
    for folder, run in by_folder.items():
        source = next((run[name] for name in _RUN_FILES if name in run), None)
        if source is None:
            continue
        folder_name = folder.rpartition("/")[2]
        named = _of_run(file, folder_name, run.get("run_spec.json"))
        drafts, limit = _run_drafts(named, source), _limit(run)
        yield Batch(named.scenario, folder_name, (source.path,), drafts, limit)


def _limit(run: Mapping[str, SourceFile]) -> int | None:
    """`max_eval_instances` of a run, which is written where its settings are."""
    for name in ("run_spec.json", "scenario_state.json"):
        if name in run:
            value = json_value(run[name].read(), run[name].place)
            settings = cast("Any", value).get("adapter_spec") if isinstance(value, dict) else None
            limit = settings.get("max_eval_instances") if isinstance(settings, dict) else None
            return limit if isinstance(limit, int) and limit > 0 else None
    return None


def _of_run(file: BenchmarkFile, folder: str, run_spec: SourceFile | None) -> Named:
    if run_spec:
        spec = json_value(run_spec.read(), run_spec.place)
        try:
            named = _of_spec(file, spec["scenario_spec"])
        except (KeyError, TypeError, AttributeError):
            raise DecontamError(f"{run_spec.place}: has no `scenario_spec`") from None
        if named.scenario:
            return named
    return _recognised(file, lambda helm: _fits_run(helm, folder), lambda key: _value(key, folder))


def _of_spec(file: BenchmarkFile, spec: Mapping[str, Any]) -> Named:
    class_name = str(spec["class_name"]).rpartition(".")[2]
    args = {key: str(value) for key, value in (spec.get("args") or {}).items()}
    return _recognised(
        file,
        lambda helm: helm.class_name == class_name and helm.args.items() <= args.items(),
        lambda key: args.get(key, ""),
    )


def _recognised(file: BenchmarkFile, fits: Any, value: Any) -> Named:
    """The scenario with a fitting name, of several the one with most arguments."""
    found = [
        (len(helm.args), name)
        for name, scenario in file.scenarios.items()
        for helm in scenario.helm
        if fits(helm)
    ]
    if not found:
        return Named("", "")
    name = max(found, key=lambda item: item[0])[1]
    key = file.scenarios[name].variant
    told = value(key) if key else ""
    return Named(name, f"{key}={told}" if told else "")


def _fits_run(helm: HelmName, folder: str) -> bool:
    if helm.run is None:
        return False
    head = rf"{re.escape(helm.run)}(?:$|:|_{_RUN_KEY}[=-])"
    return bool(re.match(head, folder)) and all(
        _value(key, folder) == value for key, value in helm.args.items()
    )


def _value(key: str, folder: str) -> str:
    """Value of an argument in the name of a run directory; empty if it is not there."""
    match = re.search(rf"[:,_]{re.escape(key)}[=-](.+?)(?:,|_{_RUN_KEY}[=-]|$)", folder)
    return match[1] if match else ""


def _run_drafts(named: Named, source: SourceFile) -> Iterator[Draft]:
    value = json_value(source.read(), source.place)
    try:
        if isinstance(value, dict):
            value = [state["instance"] for state in cast("Any", value)["request_states"]]
        for number, raw in enumerate(value):
            place = f"{source.place} instance {number}"
            for text, references in _inputs(raw):
                yield Draft(
                    place, _instance(named, str(raw.get("split") or ""), raw, text, references)
                )
    except (KeyError, TypeError, AttributeError) as error:
        raise DecontamError(
            f"{source.place}: not instances as HELM writes them ({type(error).__name__}: {error})"
        ) from None


def _inputs(raw: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """(input, references) of an instance and of the contrast instances that it carries."""
    yield raw["input"], raw.get("references")
    inputs = raw.get("contrast_inputs") or []
    references = raw.get("contrast_references") or [[] for _ in inputs]
    yield from zip(inputs, references, strict=True)


def light_batches(file: BenchmarkFile, files: Sequence[SourceFile]) -> Iterator[Batch]:
    """The light scenarios among files: JSON lines, each of a scenario and a split."""
    for source in files:
        if not _is_light(source):
            continue
        for place, line in json_lines(source):
            try:
                key = line["scenario_key"]
                spec, split, instances = key["scenario_spec"], key["split"], line["instances"]
                named = _of_spec(file, spec)
            except (KeyError, TypeError, AttributeError):
                raise DecontamError(f"{place}: not a light scenario as HELM writes it") from None
            drafts = _light_drafts(named, place, str(split), instances)
            yield Batch(named.scenario, str(spec["class_name"]), (source.path,), drafts)


def _is_light(source: SourceFile) -> bool:
    name = source.name.rpartition("/")[2]
    if "." in name and not name.endswith(".jsonl"):
        return False
    key = re.match(rb'\s*\{\s*"(scenario_key|instances)"\s*:', source.head(200))
    return bool(key) and (key[1] == b"scenario_key" or b'"scenario_key"' in source.read())


def _light_drafts(named: Named, place: str, split: str, instances: Any) -> Iterator[Draft]:
    for raw in instances:
        try:
            text, references = raw["input"], raw.get("references")
            yield Draft(place, _instance(named, split, raw, text, references))
        except (KeyError, TypeError, AttributeError):
            raise DecontamError(f"{place}: not an instance: {str(raw)[:80]}") from None


def _instance(
    named: Named, split: str, raw: Mapping[str, Any], text: Any, references: Any
) -> Instance:
    references = references or []
    return Instance(
        scenario=named.scenario,
        variant=named.variant,
        split=split,
        id=str(raw.get("id") or ""),
        input=_text(text),
        references=tuple(_reference(reference) for reference in references),
        correct=tuple(
            isinstance(reference, str) or "correct" in (reference.get("tags") or [])
            for reference in references
        ),
    )


def _reference(reference: Any) -> str:
    """Older files have the text itself as `output`, light scenarios as the reference."""
    return reference if isinstance(reference, str) else _text(reference["output"])


def _text(value: Any) -> str:
    """Older files have the text itself, newer ones an object with `text`."""
    return value if isinstance(value, str) else str(value.get("text") or "")

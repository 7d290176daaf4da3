"""The documents say what is so: keys of the mixture, commands, links."""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from decontam import build_index, scan
from pipelines import build, show, synthesize
from pipelines.chat_filters import ChatFilters
from pipelines.chat_options import Chat
from pipelines.chat_schemas import CHAT_SCHEMAS
from pipelines.cleaning import Decontam, Dedup, SourceDecontam, TaskRules
from pipelines.mixture import (
    CHATS,
    Abstracts,
    Fields,
    Filters,
    Mixture,
    Order,
    RankFile,
    Source,
    TokenizerSpec,
)
from pipelines.mixture_file import load_mixture
from pipelines.options import Token
from pipelines.schemas import SCHEMAS
from pipelines.templates.fill_in import FillIn, Mix
from pipelines.templates.long_qa import LongQA
from pipelines.templates.multi_document import MultiDocument
from pipelines.templates.passages import Passages
from pipelines.templates.promptsource import Promptsource
from pipelines.templates.summary import Summary
from trainer import evaluate, export, train
from trainer.config import CheckpointOptions, LoaderOptions, TrainConfig, load_config
from trainer.metrics import Step
from trainer.rope import Rope
from trainer.schedule import Memory

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def type_name(annotation: Any) -> str:
    """How a person would say a type."""
    if annotation == Token:
        return "true, false, text or integer"
    if "Mapping[str" in str(annotation):
        return "mapping of names to values"
    if "datetime" in str(annotation):
        return "date"
    if RankFile in get_args(annotation):
        return "text, or see RankFile"
    names = {int: "integer", float: "number", str: "text", bool: "true or false"}
    if str(annotation).startswith("tuple[") and "float" in str(annotation):
        return "two numbers"
    if "tuple[" in str(annotation) and "..." in str(annotation) and "int" in str(annotation):
        return "list of integers"
    if "dict[typing.Annotated[int" in str(annotation):
        return "mapping of integers to integers"
    if str(annotation).startswith("dict[str, typing.Annotated[float"):
        return "text, list or mapping of names to shares"
    for option in (annotation, *get_args(annotation)):
        plain = getattr(option, "__origin__", option)  # of Annotated, what is annotated
        if plain in names and (plain is not str or option is annotation):
            return names[plain]
    text = str(annotation)
    if text == "dict[str, int]":
        return "mapping of texts to integers"
    if "dict[" in text:
        return f"mapping of names to {'reasons' if 'dict[str, str]' in text else 'sources'}"
    for model in (annotation, *get_args(annotation)):
        if isinstance(model, type) and issubclass(model, BaseModel):
            return f"see {model.__name__}"
    if "Fraction" in text:
        return "number"
    if "tuple[Annotated[int" in text or "tuple[int" in text:
        return "two integers"
    if "tuple[str" in text:
        return "text or list"
    if literal := re.findall(r"'([^']+)'", text):
        return ", ".join(f"`{value}`" for value in literal)
    return "text or list" if "list[str]" in text else "text"


def key_tables() -> str:
    """The keys of every part of the mixture, as Markdown."""
    models = (Mixture, Source, TokenizerSpec, RankFile, Filters, Order, Fields, Abstracts, Decontam)
    templates = (Chat, ChatFilters, FillIn, Mix, LongQA, MultiDocument, Passages, Promptsource)
    return tables((*models, TaskRules, SourceDecontam, Dedup, *templates, Summary))


def tables(models: Iterable[type[BaseModel]]) -> str:
    """A Markdown table of the keys of each model."""
    parts = []
    for model in models:
        rows = [f"### {model.__name__}", "", "| key | value | default | |", "|---|---|---|---|"]
        for name, info in model.model_fields.items():
            default = "required" if info.is_required() else _plain(info.default)
            meaning = " ".join((info.description or "").split())
            value = type_name(info.annotation)
            rows.append(f"| `{info.alias or name}` | {value} | {default} | {meaning} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def _plain(value: Any) -> str:
    if isinstance(value, BaseModel) or value in (None, [], {}, ()):
        return ""
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    if isinstance(value, dict):
        return ", ".join(f"`{name}: {share:g}`" for name, share in value.items())
    if isinstance(value, list):
        return ", ".join(f"`{item}`" for item in value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def test_the_key_tables_are_those_of_the_program() -> None:
    text = (ROOT / "docs" / "mixture.md").read_text()
    documented = text.partition("<!-- keys -->")[2].partition("<!-- end of keys -->")[0].strip()
    assert documented == key_tables(), "put the output of key_tables() into docs/mixture.md"


def test_the_keys_of_training_are_those_of_the_program() -> None:
    text = (ROOT / "docs" / "training.md").read_text()
    documented = text.partition("<!-- keys -->")[2].partition("<!-- end of keys -->")[0].strip()
    written = tables((TrainConfig, Rope, Memory, CheckpointOptions, LoaderOptions))
    assert documented == written, "put the output of tables(…) into docs/training.md"


def test_the_fields_of_the_log_are_documented() -> None:
    text = (ROOT / "docs" / "training.md").read_text()
    names = {field.name for field in dataclasses.fields(Step)}
    renamed = {
        "number": "step",
        "flops_visible": "mfu_visible",
        "flops_non_causal": "mfu_noncausal",
    }
    assert all(f"`{renamed.get(name, name)}`" in text for name in names)


def test_every_recipe_is_documented_and_valid() -> None:
    text = (ROOT / "docs" / "training.md").read_text()
    for path in (ROOT / "trainer" / "configs").glob("*.yaml"):
        assert f"`{path.name}`" in text
        assert load_config(path).global_batch


def test_every_schema_is_documented() -> None:
    text = (ROOT / "docs" / "mixture.md").read_text()
    for name, schema in SCHEMAS.items():
        assert f"| `{name}` |" in text
        assert all(f"`{origin}`" in text for origin in schema.origin)
    assert set(CHATS) == set(CHAT_SCHEMAS)
    assert all(f"| `{name}` |" in text for name in CHATS)


def commands() -> list[str]:
    found = []
    for document in DOCUMENTS:
        text = re.sub(r"\\\n\s*", "", document.read_text())
        found += re.findall(
            r"^\s*(?:\$ )?((?:python|torchrun [^\n]*?) -m (?:pipelines|decontam|trainer)\.\w+.*)$",
            text,
            re.M,
        )
    return sorted(set(found))


@pytest.mark.parametrize("command", commands())
def test_every_documented_command_is_one_the_program_understands(command: str) -> None:
    words = shlex.split(command.partition("#")[0].partition("  ")[0])
    words = words[words.index("-m") + 1 :]
    module, arguments = words[0], [w for w in words[1:] if w != "…"]
    arguments = arguments[: arguments.index("--")] if "--" in arguments else arguments
    parser = {
        "pipelines.build": build.parser,
        "pipelines.show": show.parser,
        "pipelines.synthesize": synthesize.parser,
        "decontam.build_index": build_index.parser,
        "decontam.scan": scan.parser,
        "trainer.evaluate": evaluate.parser,
        "trainer.export": export.parser,
        "trainer.train": train.parser,
    }[module]()
    parsed = parser.parse_args(["7" if a == "N" else a for a in arguments])
    if module == "pipelines.build" and "mixtures/" in str(parsed.mixture):
        load_mixture(str(ROOT / parsed.mixture), parsed.overrides)
    if module == "trainer.train":
        load_config(ROOT / parsed.config, parsed.set)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|Title:)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), target


def test_the_mixture_in_the_document_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "mixture.md").read_text()
    path = tmp_path / "example.yaml"
    path.write_text(re.findall(r"```yaml\n(.*?)```", text, re.S)[0])
    assert load_mixture(str(path)).sources["books"].weight == 2


@pytest.mark.parametrize("path", sorted((ROOT / "mixtures").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_mixtures_are_valid(path: Path) -> None:
    assert load_mixture(str(path)).name == path.stem


def test_the_project_names_no_machine() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    for name in tracked:
        path = ROOT / name
        if path.suffix in (".py", ".md", ".yaml", ".toml") and path.name != "test_docs.py":
            assert not re.search(r"/(root|home|work)/\w", path.read_text()), name

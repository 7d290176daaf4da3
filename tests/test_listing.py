"""What a folder or a glob stands for: documents, and nothing that is left beside them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import Builder, documents, write_jsonl
from test_readers import splits_of, texts_of

from pipelines import build
from pipelines.errors import FaultsError, UserError
from pipelines.formats import COMPRESSIONS, FORMATS, side_file
from pipelines.listing import ATTRIBUTES, NOT_SAVED, UNKNOWN, Listing, list_files

SIDE_FILES = {
    "hidden": [
        ".hidden.jsonl", "_SUCCESS", "_metadata", "_part.parquet", "._a.jsonl", ".gitattributes",
    ],
    "cache": ["cache-76507b963fedf0c1.arrow", "indices-1.arrow", "CACHE-1.ARROW"],
    "metadata": [
        "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json",
        "metadata.json", "manifest.json", "MANIFEST", "manifest.txt",
    ],
    "documentation": [
        "README", "README.md", "readme.txt", "README_en.md", "LICENSE", "LICENCE.txt",
        "license.html", "COPYING", "NOTICE.md", "CITATION.cff", "CHANGELOG.md",
    ],
    "checksum": ["a.jsonl.crc", "a.md5", "a.sha256", "SHA256SUMS", "md5sum.txt", "a.asc", "a.sig"],
}  # fmt: skip
DOCUMENTS = [
    "a.jsonl", "readme.jsonl", "license.parquet", "cache.arrow", "cache-1.jsonl", "metadata.jsonl",
    "state.jsonl", "statement.json", "licence_to_kill.txt", "manifesto.txt", "readmes.txt",
    "readme_test.py", "__init__.py", "_impl.c",
]  # fmt: skip


def listed(*patterns: Any, **values: Any) -> Listing:
    options: dict[str, Any] = {"root": None, "any_ending": False} | values
    return list_files([str(pattern) for pattern in patterns], **options)


def names(listing: Listing, root: Path) -> list[str]:
    return [os.path.relpath(file.path, root) for file in listing.files]


def passed(listing: Listing, root: Path) -> dict[str, tuple[int, list[str]]]:
    return {
        over.reason: (over.count, [name.replace(f"{root}/", "") for name in over.examples])
        for over in listing.passed_over
    }


def put(root: Path, *paths: str) -> Path:
    for path in paths:
        write_jsonl(root / path, [{"text": path}])
    return root


@pytest.mark.parametrize("reason", SIDE_FILES)
def test_every_side_file_is_passed_over_for_its_reason_and_read_where_it_is_named(tmp_path, reason):
    for name in SIDE_FILES[reason]:
        assert side_file(name) == reason
        put(tmp_path / name / "in", name, "a.jsonl")
        for pattern in ("", "*", "**", "**/*"):
            listing = listed(tmp_path / name / "in" / pattern)
            assert names(listing, tmp_path / name / "in") == ["a.jsonl"]
            assert passed(listing, tmp_path / name / "in") == {reason: (1, [name])}
        assert names(listed(tmp_path / name / "in" / name, any_ending=True), tmp_path) == [
            f"{name}/in/{name}"
        ]


def test_names_that_only_resemble_side_files_are_documents():
    assert [name for name in DOCUMENTS if side_file(name)] == []


def test_the_document_names_every_ending_and_every_reason():
    text = (Path(__file__).parents[1] / "docs" / "mixture.md").read_text()
    inputs = text.partition("\n## Inputs\n")[2].partition("\n## ")[0]
    said = set(re.findall(r"`([^`]+)`", inputs))
    assert {f"*{ending}" for ending in FORMATS} <= said
    assert COMPRESSIONS.keys() <= said
    assert {*SIDE_FILES, UNKNOWN, NOT_SAVED, ATTRIBUTES} <= said


def test_folders_of_editors_and_of_unfinished_jobs_are_passed_over_whole_and_count_once(tmp_path):
    left = [".ipynb_checkpoints/a-checkpoint.jsonl", "_temporary/0/b.jsonl", "x/.cache/c.jsonl",
            ".git/config", ".git/objects/00/aa"]  # fmt: skip
    put(tmp_path, "a.jsonl", "x/b.jsonl", *left)
    for pattern in (tmp_path, tmp_path / "**" / "*.jsonl"):
        listing = listed(pattern)
        assert names(listing, tmp_path) == ["a.jsonl", "x/b.jsonl"]
        expected = [".git/", ".ipynb_checkpoints/", "_temporary/"]
        assert passed(listing, tmp_path) == {"hidden": (4, expected)}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("_temporary", ["_temporary/0/b.jsonl"]),
        ("_temporary/*/*.jsonl", ["_temporary/0/b.jsonl"]),
        ("**/_temporary/**/*.jsonl", ["_temporary/0/b.jsonl", "x/_temporary/c.jsonl"]),
        ("_temp*/**", ["_temporary/0/b.jsonl"]),
        ("x/.*.jsonl", ["x/.d.jsonl"]),
        ("**/README*", ["README.md"]),
        ("?temporary/**", None),
        ("[_]temporary/0/b.jsonl", None),
    ],
)
def test_a_part_of_a_glob_names_side_files_only_by_how_it_begins(tmp_path, pattern, expected):
    put(tmp_path, "_temporary/0/b.jsonl", "_temporary/_c.jsonl", "x/_temporary/c.jsonl",
        "x/.d.jsonl", "README.md")  # fmt: skip
    if expected is None:
        with pytest.raises(UserError, match="no file to read"):
            listed(tmp_path / pattern)
    else:
        assert names(listed(tmp_path / pattern), tmp_path) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jsonl", ["a.jsonl"]),
        ("*/*.jsonl", ["x/a.jsonl", "y/b.jsonl"]),
        ("**/*.jsonl", ["a.jsonl", "x/a.jsonl", "x/y/c.jsonl", "y/b.jsonl"]),
        ("**/y/*.jsonl", ["x/y/c.jsonl", "y/b.jsonl"]),
        ("x/**", ["x/a.jsonl", "x/y/c.jsonl"]),
        ("**/x/**/c.jsonl", ["x/y/c.jsonl"]),
        ("[xy]/?.jsonl", ["x/a.jsonl", "y/b.jsonl"]),
        ("**/**/a.*", ["a.jsonl", "x/a.jsonl"]),
    ],
)
def test_globs_name_what_they_name_in_a_shell(tmp_path, pattern, expected):
    put(tmp_path, "a.jsonl", "x/a.jsonl", "x/y/c.jsonl", "y/b.jsonl")
    assert names(listed(tmp_path / pattern), tmp_path) == expected


def test_links_to_folders_above_beside_and_to_each_other_end(tmp_path):
    put(tmp_path, *(f"{folder}/{folder}.jsonl" for folder in "abcdefgh"))
    for here in "abcdefgh":
        (tmp_path / here / "up").symlink_to(tmp_path)
        (tmp_path / here / "self").symlink_to(".")
        for there in "abcdefgh":
            (tmp_path / here / f"to-{there}").symlink_to(tmp_path / there)
    expected = [f"{folder}/{folder}.jsonl" for folder in "abcdefgh"]
    assert names(listed(tmp_path), tmp_path) == expected
    assert names(listed(tmp_path / "**" / "*.jsonl"), tmp_path) == expected
    found = names(listed(tmp_path / "**" / "to-c" / "*.jsonl"), tmp_path)
    assert found == ["a/to-c/c.jsonl"]


def test_what_only_a_link_leads_to_is_read(tmp_path):
    put(tmp_path, "elsewhere/deep/a.jsonl", "in/b.jsonl")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    assert names(listed(tmp_path / "in"), tmp_path) == ["in/b.jsonl", "in/link/deep/a.jsonl"]


def test_a_link_to_itself_and_what_is_no_file_are_named(tmp_path):
    put(tmp_path, "a.jsonl")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    with pytest.raises(UserError, match=r"loop\.jsonl: a link to nothing; remove it"):
        listed(tmp_path)
    (tmp_path / "loop.jsonl").unlink()
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(UserError, match=r"pipe\.jsonl: no regular file"):
        listed(tmp_path)


def test_unknown_endings_stop_are_skipped_by_name_or_not_touched(tmp_path):
    put(tmp_path, "a.jsonl", "b.jsonl.incomplete", "c.pdf", "part-0", "x/d.docx")
    with pytest.raises(
        UserError,
        match=r"beside known ones \(endings \.docx, \.incomplete, \.pdf, …: b\.jsonl\.incomplete, "
        r"c\.pdf, part-0 and 1 more\).*`unknown_files: skip`",
    ):
        listed(tmp_path)
    listing = listed(tmp_path, unknown_files="skip")
    assert names(listing, tmp_path) == ["a.jsonl"]
    assert passed(listing, tmp_path) == {
        "unknown ending": (4, ["b.jsonl.incomplete", "c.pdf", "part-0"])
    }
    assert listed(tmp_path / "**" / "*.jsonl").passed_over == ()
    with pytest.raises(UserError, match=r"c\.pdf: no file to read \(endings \.pdf: c\.pdf\)"):
        listed(tmp_path / "c.pdf")


def test_all_faults_of_all_patterns_are_named_at_once(tmp_path):
    put(tmp_path, "x/a.jsonl", "x/a.pdf", "y/b.pdf")
    with pytest.raises(FaultsError) as stopped:
        splits_of("x", "y", "z/*", root=tmp_path)
    assert [fault.partition(" (")[0] for fault in stopped.value.faults[:2]] == [
        f"sources.s: {tmp_path}/x: files with unknown endings beside known ones",
        f"sources.s: {tmp_path}/y: no file to read",
    ]
    assert stopped.value.faults[2].startswith(f"sources.s: {tmp_path}/z/*: no file to read; is")


def test_endings_in_upper_case_are_endings(tmp_path):
    put(tmp_path, "A.JSONL", "B.Json", "c.NdJson")
    (tmp_path / "d.TXT").write_text("d")
    assert texts_of(splits_of(tmp_path)) == ["A.JSONL", "B.Json", "c.NdJson", "d"]


def save(rows: int, folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    texts = [f"{folder.name} {i}" for i in range(rows)]
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(str(folder), num_shards=2)


@pytest.mark.parametrize("pattern", ["", "*", "*.arrow", "**/*.arrow"])
def test_of_a_saved_data_set_the_files_that_it_names_are_read(tmp_path, pattern):
    save(5, tmp_path / "saved")
    data = (tmp_path / "saved" / "data-00000-of-00002.arrow").read_bytes()
    for name in ("cache-0123456789abcdef.arrow", "data-00000-of-00003.arrow"):
        (tmp_path / "saved" / name).write_bytes(data)
    splits = splits_of(tmp_path / "saved" / pattern)
    assert texts_of(splits) == [f"saved {i}" for i in range(5)]
    over = passed(listed(tmp_path / "saved" / pattern), tmp_path / "saved")
    assert over["not named by state.json"] == (1, ["data-00000-of-00003.arrow"])
    assert over["cache"] == (1, ["cache-0123456789abcdef.arrow"])


def test_of_a_saved_data_set_with_splits_one_has_to_be_named(tmp_path):
    datasets = pytest.importorskip("datasets")
    parts = {n: datasets.Dataset.from_dict({"text": [n]}) for n in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match=r"saved holds the splits train, test; name the one to rea"):
        splits_of(tmp_path)
    assert texts_of(splits_of(tmp_path / "saved" / "train")) == ["train"]
    datasets.DatasetDict({"train": parts["train"]}).save_to_disk(str(tmp_path / "one"))
    assert texts_of(splits_of(tmp_path / "one")) == ["train"]


def test_a_saved_data_set_that_lacks_a_file_stops_the_build(tmp_path):
    save(5, tmp_path / "saved")
    (tmp_path / "saved" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(UserError, match=r"names data-00001-of-00002\.arrow, not there; fetch"):
        splits_of(tmp_path)


def test_of_dolmas_layout_documents_are_read_and_attributes_are_named(tmp_path):
    put(tmp_path, "v1/documents/a.jsonl", "v1/documents/x/b.jsonl", "v1/attributes/toxic/a.jsonl",
        "v1/attributes/toxic/x/b.jsonl", "other/attributes/c.jsonl")  # fmt: skip
    listing = listed(tmp_path)
    assert names(listing, tmp_path) == [
        "other/attributes/c.jsonl", "v1/documents/a.jsonl", "v1/documents/x/b.jsonl"
    ]  # fmt: skip
    assert passed(listing, tmp_path)["attributes"][0] == 2
    assert names(listed(tmp_path / "v1" / "attributes"), tmp_path) == [
        "v1/attributes/toxic/a.jsonl", "v1/attributes/toxic/x/b.jsonl"
    ]  # fmt: skip


@pytest.mark.parametrize("pattern", ["in", "in/**", "in/**/*.jsonl", "in/*/*.jsonl"])
def test_stores_are_listed_by_the_same_rules(tmp_path, pattern):
    put(tmp_path, "in/x/a.jsonl", "in/x/.b.jsonl", "in/_old/c.jsonl", "in/x/state.json")
    fs = fsspec.filesystem("memory")
    fs.put(f"{tmp_path}/in", "/side/in", recursive=True)
    listing = listed(f"memory://side/{pattern}")
    assert [file.path for file in listing.files] == ["memory://side/in/x/a.jsonl"]
    assert texts_of(splits_of("memory://side/in/x/.b.jsonl")) == ["in/x/.b.jsonl"]
    assert texts_of(splits_of("memory://side/in/_old/*.jsonl")) == ["in/_old/c.jsonl"]
    fs.rm("/side", recursive=True)


def test_plan_and_manifest_name_what_was_passed_over(builder: Builder, capfd):
    write_jsonl(builder.folder / "in" / "a.jsonl", documents(1, 30))
    put(builder.folder / "in", "README.md", "_old/b.jsonl", "c.pdf")
    source = {"a": {"weight": 1, "path": "in", "unknown_files": "skip"}}
    arguments = ["--mixture", str(builder.mixture(source)), "--data-root", str(builder.folder)]
    assert build.main([*arguments, "--dry-run"]) == 0
    said = capfd.readouterr().out.splitlines()
    assert [line for line in said if line.startswith("a: not read")] == [
        "a: not read, documentation: 1 file (in/README.md)",
        "a: not read, hidden: 1 file (in/_old/)",
        "a: not read, unknown ending: 1 file (in/c.pdf)",
    ]
    built = builder.build(source, tokens=2_000)
    assert built.accounts[0].documents_read == 30
    assert built.dataset.manifest["passed_over"] == [
        {"source": "a", "reason": reason, "count": 1, "examples": [name]}
        for reason, name in [("documentation", "in/README.md"), ("hidden", "in/_old/"),
                             ("unknown ending", "in/c.pdf")]
    ]  # fmt: skip
    assert json.dumps(built.dataset.manifest["inputs"]).count("in/") == 1

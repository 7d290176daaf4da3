"""Which module may know what: the import rules, read from the source and tried out."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipelines", "decontam", "trainer")
MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
)
PIPELINES = [name for name in MODULES if name.startswith("pipelines/")]
DECONTAM = [name for name in MODULES if name.startswith("decontam/")]
READS_CORPORA = tuple(
    f"decontam/{name}.py" for name in ("scan", "scan_report", "scanning", "comparing", "corpora")
)
"""The command that reads corpora as builds do, and its work."""

# A process that may import the standard library, numpy, pyarrow, and of this project what the
# argument names. Whatever else is asked for is missing, as on a machine that has only these.
ONLY_NUMPY_AND_PYARROW = """
import sys
allowed = {"numpy", "pyarrow", *sys.argv[1].split(), *sys.stdlib_module_names}

class Refuse:
    refused = []
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in allowed and not name.startswith("pipelines."):
            return None
        if name in allowed:
            return None
        self.refused.append(name)
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
"""


def imported_by(module: str) -> Iterator[str]:
    """Full names of what a module imports, anywhere in it."""
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import; write the full name"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            (name, *_) = node.args
            yield name.value if isinstance(name, ast.Constant) else "?"


def top_level(module: str) -> set[str]:
    return {name.split(".")[0] for name in imported_by(module)}


@pytest.mark.parametrize("module", MODULES)
def test_only_the_wiring_knows_beam(module):
    if module != "pipelines/transforms.py":
        assert "apache_beam" not in top_level(module)


@pytest.mark.parametrize("module", MODULES)
def test_only_kernels_know_numba(module):
    if module != "pipelines/segment_cache.py" and module not in DECONTAM:
        assert {"numba", "llvmlite"}.isdisjoint(top_level(module))


@pytest.mark.parametrize("module", PIPELINES)
def test_building_data_needs_no_torch_and_knows_no_trainer(module):
    unwanted = {"torch", "torchvision", "transformers", "trainer", "tests"}
    assert unwanted.isdisjoint(top_level(module))


@pytest.mark.parametrize("module", DECONTAM)
def test_decontam_stands_alone(module):
    unwanted = {"pipelines", "trainer", "torch", "apache_beam", "tests"}
    if module in READS_CORPORA:
        unwanted.remove("pipelines")
    assert unwanted.isdisjoint(top_level(module))


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("trainer/")])
def test_the_trainer_takes_only_shards_and_how_errors_are_told_of_the_pipelines(module):
    taken = {n for n in imported_by(module) if n.split(".")[0] == "pipelines"}
    names = ("shards", "records", "xxh3", "errors", "options", "yaml_model", "references")
    # The tokenizer that a run carries is the data set's, in the form that transformers loads.
    names += ("byte_level", "probe", "sentencepiece_json", "sentencepiece_model", "tokenizer_file")
    allowed = tuple(f"pipelines.{name}" for name in names)
    assert all(name.startswith(allowed) or name == "pipelines" for name in taken)


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("trainer/")])
def test_the_trainer_needs_nothing_of_the_builds(module):
    unwanted = {"apache_beam", "datasets", "decontam", "numba", "gigatoken", "tests"}
    assert unwanted.isdisjoint(top_level(module))


@pytest.mark.parametrize("module", MODULES)
def test_no_module_outgrows_400_lines(module):
    assert len((ROOT / module).read_text().splitlines()) <= 400


def test_nothing_is_imported_by_a_computed_name():
    assert not [module for module in MODULES if "?" in imported_by(module)]


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter in the root of the project."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_shards_need_only_numpy_and_pyarrow():
    code = f"{ONLY_NUMPY_AND_PYARROW}\nimport pipelines.shards\nprint(sorted(Refuse.refused))"
    ran = python(code, "pipelines pipelines.shards pipelines.xxh3")
    assert ran.returncode == 0, ran.stderr
    # numpy and pyarrow ask for optional packages and do without them; this project asks for none.
    ours = ("xxhash", "fsspec", "pydantic", "apache_beam", "torch", "pipelines")
    assert not [name for name in ast.literal_eval(ran.stdout) if name.startswith(ours)]


def test_a_data_set_is_read_and_verified_with_numpy_and_pyarrow_alone(builder):
    from conftest import documents, write_jsonl

    write_jsonl(builder.folder / "a.jsonl", documents(1, 10, high=200))
    built = builder.build({"a": {"weight": 1, "path": "a.jsonl"}}, tokens=1_000)
    code = f"""{ONLY_NUMPY_AND_PYARROW}
from pipelines.shards import ShardedDataset
dataset = ShardedDataset({str(built.dataset.folder)!r})
print(len(dataset), sum(dataset.sequence(i).n_real for i in range(len(dataset))))
print(list(dataset.verify()))
from pathlib import Path
path = dataset.folder / "00000.tok"
content = bytearray(path.read_bytes())
content[5] ^= 1
path.write_bytes(content)
print(*dataset.verify(), sep="\\n")
"""
    ran = python(code, "pipelines pipelines.shards pipelines.xxh3")
    assert ran.returncode == 0, ran.stderr
    first, second, *damage = ran.stdout.splitlines()
    assert first == f"{len(built.dataset)} 1000"
    assert second == "[]"
    assert any("sequence 0" in line for line in damage), "rows are hashed without xxhash too"


def test_the_refusal_that_these_tests_rely_on_refuses():
    ran = python(f"{ONLY_NUMPY_AND_PYARROW}\nimport xxhash", "pipelines")
    assert "No module named 'xxhash'" in ran.stderr


def test_help_needs_no_beam():
    ran = python(
        "import sys, pipelines.build as b\n"
        "try: b.main(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'apache_beam', 'torch', 'datasets', 'numba'} & set(sys.modules)"
    )
    assert ran.returncode == 0, ran.stderr

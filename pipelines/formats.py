"""What the name of a file says: its format, its compression, or that it is no document at all."""

import os
import re

COMPRESSIONS = {
    ".zst": "zstd",
    ".zstd": "zstd",
    ".gz": "gzip",
    ".xz": "xz",
    ".bz2": "bz2",
    ".lz4": "lz4",
}
FORMATS = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".jsonlines": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".tex": "text",
    ".md": "text",
    ".html": "html",
    ".htm": "html",
    ".tar": "tar",
    ".tgz": "tar",
}
"""Upper and lower case are equal in endings."""

HIDDEN = "hidden"
CACHE = "cache"
METADATA = "metadata"
DOCUMENTATION = "documentation"
CHECKSUM = "checksum"

_METADATA = re.compile(
    r"(dataset_info|dataset_infos|dataset_dict|state|metadata|manifest)\.json|manifest(\.txt)?"
)
_DOCUMENTATION = re.compile(
    r"(readme([-_. ].*)?|licen[cs]e|copying|notice|citation|changelog)(\.[a-z]+)?"
)
_PROSE = ("", ".rst", ".cff", ".bib", ".pdf")
_CHECKSUM = re.compile(r".*\.(crc|md5|sha1|sha256|sha512|asc|sig)|(md5|sha\d+)sums?(\.txt)?")


def compression_of(name: str) -> str | None:
    """`zstd`, `gzip`, `xz`, `bz2`, `lz4` or None, by the ending of the name."""
    ending = os.path.splitext(name)[1].lower()
    return "gzip" if ending == ".tgz" else COMPRESSIONS.get(ending)


def without_compression(name: str) -> str:
    """The name without the ending that says how the file is compressed."""
    base, ending = os.path.splitext(name)
    return base if ending.lower() in COMPRESSIONS else name


def ending_of(name: str) -> str:
    """The ending that stands for the format, in lower case: `.jsonl` of `a.JSONL.zst`."""
    return os.path.splitext(without_compression(name))[1].lower()


def format_of(name: str) -> str | None:
    """The format that the ending of a name stands for, compression ending aside."""
    return FORMATS.get(ending_of(name))


def side_file(name: str) -> str | None:
    """Why the name of a file or folder is not that of documents; None where it may be.

    Programs and people leave such files beside data: caches, checkpoints of editors, descriptions
    of the data set, licences, checksums.
    """
    lower = name.lower()
    # Of source code the underscore says something else: `__init__.py`, `_pytest.py`.
    is_code = ending_of(name) not in ("", *FORMATS)
    if name.startswith(".") or (name.startswith("_") and not is_code):
        return HIDDEN
    if lower.startswith(("cache-", "indices-")) and ending_of(name) == ".arrow":
        return CACHE
    if _METADATA.fullmatch(lower):
        return METADATA
    is_prose = format_of(name) in ("text", "html") or ending_of(name) in _PROSE
    if is_prose and _DOCUMENTATION.fullmatch(lower):
        return DOCUMENTATION
    return CHECKSUM if _CHECKSUM.fullmatch(lower) else None

"""Texts of a batch → signatures and samples, by which near duplicates of the source are found."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipelines.errors import UserError
from pipelines.mixture import digest

if TYPE_CHECKING:  # numba takes a second to import; builds that compare nothing do without
    from decontam.sketches import Sketches

BANDS, ROWS = 32, 4
PERMUTATIONS = BANDS * ROWS
SAMPLED = 256
"""One in so many shingles is sampled."""


def band_column(band: int) -> str:
    """Name of the column of a band's hashes."""
    return f"band_{band:02d}"


SKETCH_SCHEMA = pa.schema(
    [
        ("uid", pa.binary(16)),
        ("n_words", pa.int64()),
        ("signature", pa.binary(4 * PERMUTATIONS)),
        ("samples", pa.list_(pa.uint64())),
        *((band_column(band), pa.uint64()) for band in range(BANDS)),
    ]
)
"""One row a kept document. A column is read without the others."""


@dataclass(frozen=True)
class SketchSpec:
    """Everything that sketches of a source's texts depend on, but for the texts."""

    shingle: int
    """Words in a row that are compared."""

    code: str
    """Digest of the modules that do the work."""

    unicode: str = unicodedata.unidata_version
    """Of the character table; that of a worker must be the same."""

    @cached_property
    def digest(self) -> str:
        """Part of the name of the token store's folder."""
        return digest(self.shingle, self.code, self.unicode)

    def describe(self) -> dict[str, Any]:
        """What a folder of the token store says of it."""
        return {"shingle": self.shingle, "program": self.code, "unicode": self.unicode}


class Sketcher:
    """Makes the sketches of one source, batch by batch."""

    def __init__(self, spec: SketchSpec) -> None:
        from decontam.normalize import Normalizer

        if spec.unicode != unicodedata.unidata_version:
            raise UserError(
                f"a worker's Python has Unicode {unicodedata.unidata_version}, the command that "
                f"started it {spec.unicode}; install the same Python on the workers"
            )
        self._shingle = spec.shingle
        self._normalizer = Normalizer.of("default")

    def sketch(self, texts: Sequence[bytes]) -> "Sketches":
        """Sketches of the kept documents of a batch, in their order."""
        from decontam.sketches import sketches_of_texts

        return sketches_of_texts(
            texts, self._normalizer, shingle=self._shingle, one_in=SAMPLED,
            permutations=PERMUTATIONS,
        )  # fmt: skip


def sketch_table(uids: Sequence[bytes], sketches: "Sketches") -> pa.Table:
    """Sketches as the token store keeps them."""
    from decontam.bands import band_hashes

    bands = band_hashes(sketches.signatures, bands=BANDS, rows=ROWS)
    signatures = np.ascontiguousarray(sketches.signatures, "<u4")
    samples = pa.ListArray.from_arrays(sketches.bounds.astype(np.int32), sketches.samples)
    columns = {
        "uid": pa.array(uids, pa.binary(16)),
        "n_words": sketches.n_words,
        "signature": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(4 * PERMUTATIONS), len(uids), [None, pa.py_buffer(signatures)]
        ),
        "samples": samples,
        **{band_column(band): bands[band] for band in range(BANDS)},
    }
    return pa.table(columns, schema=SKETCH_SCHEMA)

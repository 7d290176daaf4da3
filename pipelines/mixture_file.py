"""YAML → checked `Mixture`."""

from collections.abc import Sequence

from pipelines import files
from pipelines.errors import UserError
from pipelines.mixture import Mixture
from pipelines.yaml_model import parse_model


def load_mixture(path: str, overrides: Sequence[str] = ()) -> Mixture:
    """Read a mixture file and apply `KEY.KEY=VALUE` overrides (`KEY.KEY=null` removes a key).

    Raises:
        UserError: the file cannot be read or is not YAML.
        FaultsError: it is YAML but no mixture; every fault is named.
    """
    try:
        content = files.read_bytes(path)
    except OSError as error:
        raise UserError(f"{path}: cannot read the mixture: {error}") from error
    return parse_model(
        content,
        Mixture,
        overrides,
        path=path,
        what="mixture",
        holds="`name`, `tokens` and `sources`",
    )

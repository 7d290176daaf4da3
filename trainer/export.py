"""Write a trained model as a folder that plain transformers loads.

    python -m trainer.export --run RUN --output FOLDER

takes the newest complete checkpoint of a run, on the CPU, with no process group: weights as
safetensors, `config.json` with the RoPE settings, and the tokenizer's files of the run.

    python -m trainer.export --model syzymon/long_llama_3b_v1_1 --output FOLDER

writes a published LongLLaMA, or any other checkpoint that can be trained, in the same way. What has
memory layers is then a plain Llama to others, which read no more than its local context;
`config.json` still names its memory, so here it is a model with memory again.
"""

import argparse
import copy
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.utils.hub import cached_file
from transformers.utils.logging import disable_progress_bar

from pipelines.errors import UserError
from trainer.checkpoint import checkpoint_of, read_into, saved_shapes
from trainer.model import checkpoint_config, checkpoint_weights


def gathered_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter of a model in training, whole, on the CPU of rank 0; others get nothing."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return cast(dict[str, Tensor], get_model_state_dict(model, options=options))


def saved_weights(path: Path) -> dict[str, Tensor]:
    """Every parameter in a checkpoint, float32 on the CPU."""
    weights = {name: torch.empty(shape) for name, shape in saved_shapes(path).items()}
    read_into(path, {"model": weights})
    return weights


def export_model(
    weights: dict[str, Tensor], config: PreTrainedConfig, output: Path, *,
    dtype: torch.dtype = torch.bfloat16, tokenizer: str | Path | None = None,
) -> None:  # fmt: skip
    """Write a folder for `from_pretrained`; it appears when it is complete.

    Args:
        weights: by name; emptied while they are converted, so that memory holds them once.
        config: of the model, RoPE settings included.
        output: the folder; must not exist, or be empty.
        dtype: what the weights are rounded to.
        tokenizer: folder or hub name whose tokenizer's files are copied, where it has any.

    Raises:
        UserError: the weights are not those of the model.
    """
    config = copy.deepcopy(config)  # the model that was trained still uses its own
    with torch.device("meta"):  # and attention may be by a kernel that is not to be had elsewhere
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="eager"
        )
    converted = {name: weights.pop(name).to(dtype) for name in list(weights)}
    found = model.load_state_dict(converted, strict=False, assign=True)
    model.tie_weights()
    missing = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    if missing or found.unexpected_keys:
        names = ", ".join([*missing, *found.unexpected_keys][:5])
        raise UserError(f"{output}: the weights are not those of the configuration: {names}")
    output = output.resolve()
    aside = output.with_name(f"{output.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside, max_shard_size="5GB")
    for file in _tokenizer_files(str(tokenizer)) if tokenizer else ():
        shutil.copyfile(file, aside / file.name)
    aside.replace(output)


def _tokenizer_files(place: str) -> list[Path]:
    found = list[Path]()
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json",
                 "special_tokens_map.json"):  # fmt: skip
        with suppress(OSError):  # it has no such file
            found.append(Path(cast(str, cached_file(place, name))))
    return found


def export_run(run: Path, output: Path, *, step: int | None, dtype: torch.dtype) -> str:
    """Export a checkpoint of a run; gives its name.

    Raises:
        UserError: the run has no such checkpoint.
    """
    if not (run / "config.json").exists():
        raise UserError(f"{run}: not the folder of a run (config.json is missing)")
    path = checkpoint_of(run, step)
    config = AutoConfig.from_pretrained(run)
    export_model(saved_weights(path), config, output, dtype=dtype, tokenizer=run)
    return f"{path.name} of {run}"


def export_checkpoint(name: str, output: Path, *, dtype: torch.dtype) -> str:
    """Export what is on the hub or in a folder, as `checkpoint_config` names it; gives the name.

    Raises:
        UserError: there is no such model, or it cannot be trained.
    """
    config, weights = checkpoint_config(name), checkpoint_weights(name)
    export_model(weights, config, output, dtype=dtype, tokenizer=name.partition("::")[0])
    return name


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m trainer.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=Path, metavar="DIR", help="output folder of the training")
    what.add_argument("--model", metavar="NAME", help="checkpoint: a folder or a name on the hub")
    add("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    add("--step", type=int, metavar="N", help="of --run: step of the checkpoint (default: newest)")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="default: %(default)s")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 2 where the user has something to mend."""
    given = parser().parse_args(arguments)
    disable_progress_bar()
    try:
        name = _export(given)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    print(f"{name}: {given.output}")
    return 0


def _export(given: argparse.Namespace) -> str:
    output, dtype = given.output, getattr(torch, given.dtype)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: holds something already; give a new folder to --output")
    if given.run:
        return export_run(given.run, output, step=given.step, dtype=dtype)
    if given.step is not None:
        raise UserError("--step: has a meaning with --run alone")
    return export_checkpoint(given.model, output, dtype=dtype)


if __name__ == "__main__":
    sys.exit(main())

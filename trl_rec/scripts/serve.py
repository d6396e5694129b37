"""`trl-rec serve`: serves recommendations over HTTP, with a page for trying the model in a browser."""

from __future__ import annotations

from importlib.util import find_spec

from trl_rec.scripts.options.parsing import parse, show_progress
from trl_rec.serving import ServingConfig


KINDS = (ServingConfig,)


def main(argv: list[str]) -> None:
    """Runs the server until it is interrupted."""
    config = parse(ServingConfig, argv, "serve")
    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ValueError(f"serving needs {' and '.join(missing)}; run pip install 'trl-rec[serve]'")
    show_progress()

    from trl_rec.serving import serve

    source = config.model if config.lists is None else config.lists
    serve(config, lambda address: print(f"serving {source} at {address} (Ctrl-C stops)", flush=True))
    print("stopped")

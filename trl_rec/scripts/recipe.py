"""`trl-rec recipe`: the shipped recipes by name, or one of them as it is written, to be copied and changed."""

from __future__ import annotations

import argparse

from trl_rec.scripts.parsing import find_recipe, recipe_names


def main(argv: list[str]) -> None:
    """Prints a recipe, or the names of all."""
    parser = argparse.ArgumentParser(prog="trl-rec recipe", description="Prints a recipe, or the names of all.")
    parser.add_argument("name", nargs="?", help="such as bear/toy")
    name = parser.parse_args(argv).name
    print("\n".join(recipe_names()) if name is None else find_recipe(name).read_text(encoding="utf-8").rstrip("\n"))

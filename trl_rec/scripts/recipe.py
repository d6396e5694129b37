"""`trl-rec recipe`: prints a shipped recipe, to be copied and edited, or the names of all shipped recipes."""

from __future__ import annotations

import argparse

from trl_rec.scripts.options.recipe_files import find_recipe, recipe_names
from trl_rec.scripts.verbs import VERBS


def main(argv: list[str]) -> None:
    """Prints a recipe, or the names of all shipped recipes if no name is given."""
    parser = argparse.ArgumentParser(prog="trl-rec recipe", description=VERBS["recipe"])
    parser.add_argument("name", nargs="?", help="name of a recipe, such as bear/toy; if unset, all names are listed")

    name = parser.parse_args(argv).name
    if name is None:
        print("\n".join(recipe_names()))
    else:
        print(find_recipe(name).read_text(encoding="utf-8").rstrip("\n"))

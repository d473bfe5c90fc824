"""`lwmm_recipe.yaml`: what it takes to run a merge again bit for bit, and its strict reader."""

from __future__ import annotations

from lwmm_hub.recipe.reading import parse_recipe, read_recipe
from lwmm_hub.recipe.values import Recipe, RecipeModel, is_path, moved_recipe, recipe_of
from lwmm_hub.recipe.writing import write_recipe

__all__ = [
    "Recipe",
    "RecipeModel",
    "is_path",
    "moved_recipe",
    "parse_recipe",
    "read_recipe",
    "recipe_of",
    "write_recipe",
]

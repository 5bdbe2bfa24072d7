"""Recipes that start pipeflow on clusters. The library itself knows none of them."""

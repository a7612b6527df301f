"""Studying a model: edited queries, paired comparisons, the space's shape, mistakes. Numbers in, tables and figures out."""

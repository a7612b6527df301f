"""Embeddings that last, what they depend on, and exact search among many of them."""

"""Coral's training objective (arXiv 2506.03144), in the open: losses, reconstruction, one contrastive step, the loop."""

"""The paper's experiments and findings, beside ours; one page about a checkpoint."""

"""Checkpoints: loading and saving them, and how Qwen2.5-VL runs quickly.

`loading` is the door. What stands behind it makes the same embeddings in less time: pictures are looked at once
(`pixels`, `batching`), what prompts begin with alike is read once (`prefixes`), only the last place of the last layer is
worked out (`last_layer`), and CPUs get the kernels that suit them (`window_attention`, `cpu_attention`, `cpu_linear`).
"""

"""The offline world: MERIT-mini, a drawn catalogue, and coral-mini, the small Qwen2.5-VL that is trained on it."""

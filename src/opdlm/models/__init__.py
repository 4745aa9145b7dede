"""Any Hugging Face decoder as a block-diffusion model: masks, cache, tokens, checkpoints."""

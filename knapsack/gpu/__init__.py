"""For whoever has a GPU: Unsloth and 4 bit for the training, vLLM for the evaluation."""

"""ULMFiT."""

"""Text: sources of records, tokens, corpora on disk, batches of ids. Numbers leave as numpy arrays, never tensors."""

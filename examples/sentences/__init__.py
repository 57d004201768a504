"""Embeddings of sentences by a trained model, in NumPy with `multihead`'s attention."""

"""Pure verifiers: an answer in, a verdict out."""

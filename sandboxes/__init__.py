"""Where untrusted code runs; knows nothing of tasks or models."""

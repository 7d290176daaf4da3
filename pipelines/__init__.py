"""Public corpora to weighted, packed long-context training sets."""

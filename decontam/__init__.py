"""Finding benchmark text in training documents, and what to do about it."""

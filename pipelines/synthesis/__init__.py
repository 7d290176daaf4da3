"""Questions and answers about long documents, written and checked by a chat model."""

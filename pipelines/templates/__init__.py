"""Record(s) → text. One module for each kind; `plain` is the text as it stands."""

"""Continued training on finished data sets, and evaluation; needs torch and transformers."""

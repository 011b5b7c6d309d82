"""Adapters in lm-evaluation-harness: a model for any task of the harness, and task files from an owner's labelled text."""

"""Serving: adapters over one backbone, by HTTP, with a page for people.

Walk of a request: :mod:`~ifedicl.serve.access` (key, size, time) → :mod:`~ifedicl.serve.routes` → :mod:`~ifedicl.serve.catalog`
(which adapter) → :mod:`~ifedicl.serve.worker` (the thread that owns the model) → answer.
"""

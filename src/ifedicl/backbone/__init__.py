"""The frozen model: loading it, finding its writes, reading and changing them, scoring label words. The only room that
imports transformers.
"""

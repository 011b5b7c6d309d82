"""Attacks on what a client would send, run by its owner on its own text before anything is sent."""

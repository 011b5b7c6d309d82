"""Privacy: what may leave a client, and what has."""

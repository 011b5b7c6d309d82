"""The data owner's side: what its policy lets out, and what has left."""

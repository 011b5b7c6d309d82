"""The demo: a federation of four places with a real model and real text."""

"""The demo: a real model and real text from registry packages, and a story told with them."""

"""Tests that need llama.cpp, which `make llama-cpp` installs in a folder of its own."""

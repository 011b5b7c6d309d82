"""The benchmark: methods × data sets × seeds × models, each cell measured once, with what it cost."""

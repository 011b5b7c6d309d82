"""The benchmark: methods × data sets × seeds × models, each cell is measured once, with its costs."""

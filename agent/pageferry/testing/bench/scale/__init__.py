"""`make bench-scale`: what a guest's size costs, apart from the memory that it uses."""

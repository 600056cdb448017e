"""Public data sets in the layouts in which they are distributed, one module a family; ``registry`` lists them."""

"""A small world of streets: drawn scenes with truth, several domains, and networks for them."""

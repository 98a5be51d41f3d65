"""Every table and figure of the papers: what it is made of, what of it is there, the rest of it."""

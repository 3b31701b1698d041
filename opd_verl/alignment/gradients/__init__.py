"""Local gradients at the nodes of a tree: the ideal one, each objective's, and the table of their cosines."""

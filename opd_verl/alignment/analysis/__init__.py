"""From the node table to the numbers of the report (Unmasking 4 and appendix E)."""

"""From the node table to the numbers, tables and suggestions of the report (Unmasking 4 and appendix E)."""

"""The LM head in chunks of rows: statistics, losses and gradients without a [T, V] tensor. Knows torch only."""

"""The LM head in chunks of rows: statistics, losses and gradients without a tensor of all logits. Torch only."""

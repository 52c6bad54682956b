"""Which labels runs wrote, which of them people changed since, and how new labels join them."""

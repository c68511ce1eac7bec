"""Recipe, plan, run and ledger."""

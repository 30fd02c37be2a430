"""From what was measured to curves: harvested runs, tables, data and pools."""

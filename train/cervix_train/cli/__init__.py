"""The commands `cervix-train`, `cervix-evaluate` and `cervix-audit`."""

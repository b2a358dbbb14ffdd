"""What no single machine here shows: many GPUs, many machines, a million rows."""

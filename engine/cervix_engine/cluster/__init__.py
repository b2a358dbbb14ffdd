"""One run on many machines: blocks of whole batches go to workers, digests come back, and one table is committed."""

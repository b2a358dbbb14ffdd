"""What a table is put together of: new rows, rows of an earlier table, the finished shards of one listing."""

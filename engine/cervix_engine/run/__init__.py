"""One run: from a listing to one durable table, whatever happens meanwhile."""

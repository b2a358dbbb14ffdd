"""Parquet: a table in one file, or in a folder of many."""

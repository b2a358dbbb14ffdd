"""What a run costs besides its model: the stream alone, decode workers, automatic sizes, what is left end to end."""

"""From predictions to one finished table."""

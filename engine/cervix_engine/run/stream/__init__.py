"""The stream from listed tiles to predictions: slots that circulate, one stop for all, order by construction."""

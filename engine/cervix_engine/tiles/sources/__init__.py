"""Where tiles come from: one seam, and one module for each kind of source."""

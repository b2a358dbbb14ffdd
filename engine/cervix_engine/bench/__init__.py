"""The engine measures itself: each stage alone, the model alone, all of it from files, and what bounds a run."""

"""Where tiles come from and what decodes them: folders, archives, stores, whole slides; decoders against each other."""

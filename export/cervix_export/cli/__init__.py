"""The commands `cervix-export` and `cervix-parity`."""

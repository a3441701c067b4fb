"""Files that somebody else may have written: each is checked before anything in it is used."""

"""How training meets Lightning: everything that neither quantizes nor optimizes."""

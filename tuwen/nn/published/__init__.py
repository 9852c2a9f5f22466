"""Published weights of towers: whose names mean which of ours, read from files that nothing is unpickled from."""

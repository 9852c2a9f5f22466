"""The parts every system is built from; it knows nothing of pairs or losses."""

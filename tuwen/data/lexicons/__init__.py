"""Entities and what is known of them: lexicons, how texts are linked to them, and where they come from."""

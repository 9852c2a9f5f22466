"""Two-stage search over one's own pictures: index, query, service, page."""

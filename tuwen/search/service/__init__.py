"""Search over HTTP: routes, API keys, limits, batches across requests, metrics and logs."""

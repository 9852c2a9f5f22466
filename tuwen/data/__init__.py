"""Pictures and texts become batches."""

"""Videos on disk to batches of clips."""

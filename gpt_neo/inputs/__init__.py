"""From TFRecords to batches."""

"""From documents to TFRecords."""

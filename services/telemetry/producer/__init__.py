"""The producer: HTTP to Kafka."""

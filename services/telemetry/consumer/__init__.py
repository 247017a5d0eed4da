"""The consumer: Kafka to Postgres."""

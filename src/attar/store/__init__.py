"""The embedding store: what a teacher said, asked once, kept in shards that survive a crash."""

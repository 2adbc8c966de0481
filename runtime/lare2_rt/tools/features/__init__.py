"""LaRE maps of a whole data set in shards: extraction, and reading them again."""

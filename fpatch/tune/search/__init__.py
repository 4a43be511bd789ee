"""What a sweep searches, and what it tries next."""

"""What a sweep leaves to read: tables, figures, its log."""

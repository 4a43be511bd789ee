"""What a printer makes of a patch."""

"""Print models: stages that show a patch in the colors of a printer."""

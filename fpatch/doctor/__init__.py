"""Why a patch does not learn: one batch followed through every stage."""

"""Which sampled values matter: permutation importance and a scatter page."""

from fpatch.analysis.importance import Importance, Importances, permutation_importance
from fpatch.analysis.scatter import scatter

__all__ = ["Importance", "Importances", "permutation_importance", "scatter"]

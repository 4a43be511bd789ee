"""Loss stages: one number per row for each term."""

from fpatch.losses.criterion import criterion
from fpatch.losses.ensemble import ensemble
from fpatch.losses.hallucinate import hallucinate
from fpatch.losses.latency import latency
from fpatch.losses.lp_distance import lp_distance
from fpatch.losses.metric_learning import metric_learning
from fpatch.losses.misclassify import misclassify
from fpatch.losses.non_printability import color_list, non_printability
from fpatch.losses.online_k_means import online_k_means
from fpatch.losses.relabel import relabel
from fpatch.losses.saliency import saliency
from fpatch.losses.total_variation import total_variation
from fpatch.losses.vanish import vanish

__all__ = [
    "color_list",
    "criterion",
    "ensemble",
    "hallucinate",
    "latency",
    "lp_distance",
    "metric_learning",
    "misclassify",
    "non_printability",
    "online_k_means",
    "relabel",
    "saliency",
    "total_variation",
    "vanish",
]

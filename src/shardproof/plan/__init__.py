"""Plans: source byte ranges to destination byte ranges for every rank, before any byte is read."""

from shardproof.plan.plan import ExpertMap, Plan, make_plan
from shardproof.plan.shape import Cut, LayerShape

__all__ = ["Cut", "ExpertMap", "LayerShape", "Plan", "make_plan"]

"""A language model with routed attention heads: model, routers, estimators, backward passes, sparse computation."""

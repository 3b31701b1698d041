"""The teacher: scores every sampled token of a rollout, early, and answers questions about it late (DESIGN.md 1).

Reading order: `score` (the record), `wire` (its bytes), `head` (LM head in chunks), `batching`, `scorer`
(forward passes, no Ray), `store` (which states are kept), `actor` (one replica), `pool` (all replicas, over Ray).
"""

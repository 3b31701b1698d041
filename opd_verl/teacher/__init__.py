"""The teacher: scores every sampled token of a rollout, early, and answers questions about it late (DESIGN.md 1).

Reading order: `score` (the record), `wire` (its bytes), `batching`, `scorer` (forward passes, no Ray; the LM head in
chunks is `opd_verl.fused.statistics`), `store` (which states are kept), `actor` (one replica), `pool` (all replicas,
over Ray), `needs` (what a configuration asks for), `remote_head` (the LM head in an actor worker).
"""

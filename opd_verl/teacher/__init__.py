"""The teacher: scores every sampled token of a rollout, early, and answers questions about it late.

Reading order: `score` (the record), `wire` (its bytes), `batching` and `body` (which rollouts are read together, and
how), `reader`, `scorer` (forward passes, no Ray; the LM head in chunks is `opd_verl.fused.statistics`), `store` (which
states are kept), `actor` (one replica), `launch`, `gather`, `pool` (all replicas, over Ray), `several` (several
teachers). Beside them: `sharded`, `shard_reader`, `followers` (a replica on several devices), `snapshot` (the student's
weights as the teacher's), `needs` (what a configuration asks for), `remote_head` (the LM head in an actor worker).
"""

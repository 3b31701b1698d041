"""The teacher's side: one Ray actor per replica, its shards, its device and its host memory."""

"""One teacher replica: the Ray actor that queues, scores and answers, and the actors that hold its other shards."""

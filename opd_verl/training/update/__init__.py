"""The update half of a step, inside the actor's workers: the FSDP engine, the actor loss and its terms."""

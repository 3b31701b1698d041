"""The update half of a step: the actor's loss, its exact terms, and the engine that feeds them from the LM head."""
